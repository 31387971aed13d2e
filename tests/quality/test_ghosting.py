"""Ghosts of motion, against heads that move by known amounts while their k-space is read."""

from itertools import pairwise

import numpy as np
import pytest
from grids import OBLIQUE
from nibabel.affines import from_matvec
from scipy import fft

from bids_cmb.imaging.volume import Volume
from bids_cmb.quality.ghosting import GHOST_LIMIT_PERCENT, measure_ghosting

SHAPE, SPACING = (128, 128, 12), (1.8, 1.8, 5.0)
NOISE = 0.03  # of the brain
AMOUNTS_MM = (0.0, 0.25, 0.5, 1.0, 2.0)


def oblique(spacing):
    turn = OBLIQUE[:3, :3] / np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    return from_matvec(turn @ np.diag(spacing), [10, -20, 30])


def head(rng):
    """A complex head in air, (X, Y, Z), brain 1 and scalp 1.5, and its brain."""
    x, y, z = (np.arange(n) - (n - 1) / 2 for n in SHAPE)
    place = [axis * size for axis, size in zip(np.ix_(x, y, z), SPACING, strict=True)]

    def shell(*axes):
        return sum((part / axis) ** 2 for part, axis in zip(place, axes, strict=True)) <= 1

    brain = shell(62, 78, 60)
    values = 1.5 * (shell(72, 90, 72) & ~shell(67, 85, 66)) + brain * (
        1 + 0.15 * rng.standard_normal(SHAPE)
    )
    return values.astype(complex), brain


def scan(rng, *, mm=0.0, axis=0, noise=NOISE, jerk=False):
    """A magnitude scan of a head that moves to and fro, or once, along both in-plane axes.

    A shift turns the phase of a line of k-space in proportion to its frequency.
    """
    still, brain = head(rng)
    line = np.arange(SHAPE[axis])
    moved = mm * (np.sin(0.7 * line) if not jerk else (line > 0.4 * len(line)))
    along = fft.fftshift(fft.fftfreq(SHAPE[axis], SPACING[axis]))
    across = fft.fftshift(fft.fftfreq(SHAPE[1 - axis], SPACING[1 - axis]))
    turns = (moved * along)[:, None] + np.outer(moved, across)
    turns = np.moveaxis(turns, 0, axis)[..., None]
    lines = fft.fftshift(fft.fft2(still, axes=(0, 1)), axes=(0, 1)) * np.exp(-2j * np.pi * turns)
    seen = fft.ifft2(fft.ifftshift(lines, axes=(0, 1)), axes=(0, 1))
    seen += noise * (rng.standard_normal(SHAPE) + 1j * rng.standard_normal(SHAPE))
    affine = oblique(SPACING)
    return Volume(300 * np.abs(seen), affine), Volume(brain, affine)


def ghosting(image, brain, level=300.0):
    return measure_ghosting(image, brain, level)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_more_a_head_moved_to_and_fro_the_more_ghosts(rng, axis):
    """Either axis may be that of phase encoding; nobody says which."""
    measured = [ghosting(*scan(rng, mm=mm, axis=axis)) for mm in AMOUNTS_MM]
    assert measured == sorted(measured)
    assert measured[0] < 0.5
    assert measured[2] > GHOST_LIMIT_PERCENT  # half a millimetre
    assert all(after > 1.05 * before for before, after in pairwise(measured))


def test_a_single_jerk_leaves_fewer_ghosts_than_going_to_and_fro(rng):
    still, jerk, swing = (
        ghosting(*scan(rng, mm=mm, jerk=jerk)) for mm, jerk in ((0, True), (1, True), (1, False))
    )
    assert 3 * still < jerk < swing / 2


def test_the_ghost_is_as_strong_as_theory_says(rng):
    """A phase error of ±e rad in turns, line by line, sends sin e of the image half a field away.

    There is that much more power than of noise alone, whatever the noise.
    """
    still, brain = head(rng)
    error = 0.06
    turns = np.exp(1j * error * (-1.0) ** np.arange(SHAPE[0]))[:, None, None]
    lines = fft.fft2(still, axes=(0, 1)) * turns
    seen = fft.ifft2(lines, axes=(0, 1))
    ghost = np.sin(error) * np.roll(np.abs(still), SHAPE[0] // 2, axis=0)
    beside = np.abs(np.arange(SHAPE[0]) - (SHAPE[0] - 1) / 2) * SPACING[0] > 72 + 8
    rows = np.abs(still).any(axis=0)
    power = [
        (ghost[beside, :, k][:, rows[:, k]] ** 2).mean()
        for k in range(SHAPE[2])
        if brain[..., k].sum() > 0.25 * brain.sum(axis=(0, 1)).max()
    ]
    expected = 100 * np.sqrt(np.median(power))
    affine = oblique(SPACING)
    for noise in (0.01, 0.05):
        hurt = seen + noise * (rng.standard_normal(SHAPE) + 1j * rng.standard_normal(SHAPE))
        measured = ghosting(Volume(np.abs(hurt), affine), Volume(brain, affine), 1.0)
        assert measured == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize(("noise", "most"), [(0.01, 0.5), (0.05, 1.5), (0.12, 3.0)])
def test_noise_alone_is_no_motion(rng, noise, most):
    """The mean of a few hundred pixels differs by chance, in noisy scans more."""
    assert ghosting(*scan(rng, noise=noise)) < most <= GHOST_LIMIT_PERCENT


def test_another_unit_of_intensity_changes_nothing(rng):
    image, brain = scan(rng, mm=1.0)
    scaled = Volume(image.data * 0.004, image.affine)
    assert ghosting(scaled, brain, 1.2) == pytest.approx(ghosting(image, brain), rel=1e-4)


def test_axes_in_another_order_and_flipped_change_nothing(rng):
    image, brain = scan(rng, mm=1.0)
    turned = [
        Volume(
            np.ascontiguousarray(part.data.transpose(2, 0, 1)[:, ::-1]),
            part.affine[:, [2, 0, 1, 3]] @ np.diag([1, -1, 1, 1]),
        )
        for part in (image, brain)
    ]
    assert ghosting(*turned) == pytest.approx(ghosting(image, brain), rel=0.02)


def test_where_the_background_was_removed_nothing_is_measured(rng):
    image, brain = scan(rng, mm=1.0)
    stripped = np.where(brain.data, image.data, 0)
    assert ghosting(Volume(stripped, image.affine), brain) is None
    resampled = stripped + 0.001 * rng.random(SHAPE)  # what rounding leaves of zeros
    assert ghosting(Volume(resampled, image.affine), brain) is None


def test_a_face_that_was_removed_leaves_the_other_sides(rng):
    image, brain = scan(rng, mm=1.0)
    masked = image.data.copy()
    masked[:, 112:] = 0  # in front of the scalp of most slices
    assert ghosting(Volume(masked, image.affine), brain) == pytest.approx(
        ghosting(image, brain), rel=0.1
    )


def test_a_tight_field_of_view_leaves_nothing_to_measure(rng):
    image, brain = scan(rng, mm=1.0)
    tight = [Volume(part.data[20:-20], part.affine) for part in (image, brain)]
    assert ghosting(*tight) is None


def test_an_image_without_signal_is_not_measured(blank):
    assert ghosting(blank, Volume(blank.data == 0, blank.affine), 0.0) is None
