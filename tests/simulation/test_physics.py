"""Fields, dephasing and sampling obey the formulas of the textbooks."""

import numpy as np
import pytest
from grids import OBLIQUE
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation import dephasing, physics, slice_sampling

TURN = euler2mat(0.2, -0.1, 0.15)
AT_60 = physics.phase_per_ppm(field_t=3, echo_time_s=0.02)  # B0 times TE is 60 T·ms


def centred(spacing, shape):
    """An oblique, left-right flipped grid with the origin of the world in its middle."""
    matrix = TURN @ np.diag(np.array([-1, 1, 1]) * spacing)
    return from_matvec(matrix, -matrix @ ((np.array(shape) - 1) / 2))


def places(affine, shape):
    return Volume(np.zeros(shape), affine).world(
        np.argwhere(np.ones(shape)).astype(float)
    ).reshape(*shape, 3)  # fmt: skip


def sampling(spacing, reach, *, thickness=None, kind="2D"):
    shape = tuple(2 * int(np.ceil(reach / side)) + 1 for side in spacing)
    return slice_sampling.Sampling(centred(spacing, shape), shape, thickness or spacing[2], kind)


def ball_field(offset: np.ndarray, radius: float, chi: float) -> np.ndarray:
    """Field of a sphere in ppm of B0, at ``offset`` (..., 3) in mm from its centre."""
    square = np.maximum((offset**2).sum(axis=-1), 1e-12)
    field = chi / 3 * radius**3 * square**-1.5 * (3 * offset[..., 2] ** 2 / square - 1)
    return np.where(square < radius**2, 0, field)


def tube_field(offset: np.ndarray, direction: np.ndarray, radius: float, chi: float) -> np.ndarray:
    """Field of an endless straight tube in ppm of B0, ``offset`` in mm from a point of its axis."""
    along_z = np.array([0.0, 0.0, 1.0])
    across = along_z - (along_z @ direction) * direction
    away = (offset**2).sum(axis=-1) - (offset @ direction) ** 2
    away = np.maximum(away, 1e-12)
    outside = radius**2 / away * (2 * (offset @ across) ** 2 / away - across @ across)
    inside = (along_z @ direction) ** 2 - 1 / 3
    return chi / 2 * np.where(away < radius**2, inside, outside)


def disturbed(grid, points, radius, **source):
    """The factors of a source in ``grid``, shape of the grid; 1 where it does not reach."""
    known = {"rad_per_ppm": AT_60, "chi": 1.0, "water": 0.0, "decay": 0.0, **source}
    voxels, factor = dephasing.perturb_signal(
        np.atleast_2d(points), np.atleast_1d(radius), grid, **known
    )
    whole = np.ones(grid.shape, complex)
    whole.flat[voxels] = factor
    return whole


def ball(grid, radius, chi, **known):
    return disturbed(grid, np.zeros(3), radius, chi=chi, **known)


def test_the_dipole_kernel_gives_the_field_of_a_ball_on_an_oblique_grid():
    shape = (56, 56, 44)
    affine = centred((0.5, 0.5, 0.6), shape)
    world = places(affine, shape)
    away = np.linalg.norm(world, axis=-1)
    chi = np.clip((4 - away) / 0.5 + 0.5, 0, 1)
    field = physics.dipole_field(Volume(chi, affine))
    truth = ball_field(world, 4, 1.0)
    clear = (np.abs(away - 4) > 1) & (away < 11)
    np.testing.assert_allclose(field[clear], truth[clear], atol=0.02)
    assert truth[clear].max() == pytest.approx(2 / 3 * (4 / 5) ** 3, rel=0.1)  # 2 chi/3 on the pole


@pytest.mark.parametrize("direction", [(1, 0, 0), (0, 0.6, 0.8), (0, 0, 1)])
def test_the_dipole_kernel_gives_the_field_of_a_tube(direction):
    shape, direction = (80, 80, 80), np.array(direction, float)
    affine = from_matvec(np.diag([-0.5, 0.5, 0.5]), [19.75, -19.75, -19.75])
    world = places(affine, shape)
    away = np.linalg.norm(world - (world @ direction)[..., None] * direction, axis=-1)
    chi = np.clip((3 - away) / 0.5 + 0.5, 0, 1)
    field = physics.dipole_field(Volume(chi, affine))
    truth = tube_field(world, direction, 3, 1.0)
    clear = (np.abs(away - 3) > 1) & (np.linalg.norm(world, axis=-1) < 8)
    field -= np.median(field[clear] - truth[clear])  # the grid's ends shift the whole middle
    np.testing.assert_allclose(field[clear], truth[clear], atol=0.04)


def test_a_uniform_world_has_no_field():
    assert not physics.dipole_field(Volume(np.zeros((8, 9, 10)), OBLIQUE)).any()


@pytest.mark.parametrize("spacing", [(0.45, 0.45, 4.0), (1.0, 1.0, 3.0), (0.8, 0.8, 0.8)])
def test_a_voxel_is_the_complex_mean_over_its_volume(spacing):
    grid = sampling(spacing, 6)
    heights, weights = grid.heights(0.05)
    factor = ball(grid, 0.6, 2.0)
    for index in np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0)]) + np.array(grid.shape) // 2:
        across = (np.arange(24) + 0.5) / 24 - 0.5
        fine = np.stack(np.meshgrid(across, across, heights / spacing[2], indexing="ij"), -1)
        world = (fine + index) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        phase = AT_60 * ball_field(world, 0.6, 2.0)
        outside = (world**2).sum(-1) >= 0.36
        truth = (np.exp(1j * phase) * outside).mean((0, 1)) @ weights
        assert abs(factor[tuple(index)] - truth) < 0.05


def test_a_straight_tube_is_the_complex_mean_over_its_volume():
    grid = sampling((0.5, 0.5, 2.0), 8)
    way = TURN @ np.array([0.8, 0, 0.6])
    line = np.linspace(-20, 20, 30)[:, None] * way
    factor = disturbed(grid, line, np.full(30, 0.5), chi=0.45)
    heights, weights = grid.heights(0.05)
    for step in [(0, 0, 0), (2, 1, 0), (1, -3, 0)]:
        index = np.array(grid.shape) // 2 + step
        across = (np.arange(24) + 0.5) / 24 - 0.5
        fine = np.stack(np.meshgrid(across, across, heights / 2, indexing="ij"), -1)
        world = (fine + index) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        phase = AT_60 * tube_field(world, way, 0.5, 0.45)
        outside = (world**2).sum(-1) - (world @ way) ** 2 >= 0.25
        truth = (np.exp(1j * phase) * outside).mean((0, 1)) @ weights
        assert abs(factor[tuple(index)] - truth) < 0.06


def test_a_ball_costs_the_signal_of_the_static_dephasing_law():
    # Yablonskiy & Haacke 1994: 2 pi / (3 sqrt 3) times the phase at the equator, in ball volumes
    grid = sampling((0.5, 0.5, 0.5), 14, kind="2D")
    factor = ball(grid, 0.5, 8.0)
    lost = (1 - factor.real).sum() * 0.5**3 / (4 / 3 * np.pi * 0.5**3)
    assert lost == pytest.approx(2 * np.pi / (3 * np.sqrt(3)) * AT_60 * 8 / 3, rel=0.08)


def test_only_the_moment_of_a_ball_shows():
    grid = sampling((0.5, 0.5, 2.0), 6)
    small, large = ball(grid, 0.4, 4.0), ball(grid, 0.8, 0.5)
    assert np.abs(small - large).max() < 0.15
    assert 1 - np.abs(small).min() > 0.6


def test_blooming_doubles_in_volume_with_the_echo_time():
    # Liu et al. 2012: 2.30 on T2*-weighted images from 20 to 40 ms
    grid = sampling((0.5, 0.5, 1.0), 8)
    volumes = [
        np.count_nonzero(np.abs(ball(grid, 0.5, 6.0, rad_per_ppm=times * AT_60)) < 0.8)
        for times in (1, 2)
    ]
    assert 1.7 < volumes[1] / volumes[0] < 2.6


def test_a_thick_slice_hides_what_a_thin_one_shows():
    losses = [
        1 - np.abs(ball(sampling((0.5, 0.5, thick), 6), 0.5, 1.2)).min() for thick in (1, 2, 4, 6)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0.8
    assert losses[-1] < 0.5


def test_calcification_dephases_like_iron_and_turns_the_phase_back():
    grid = sampling((0.5, 0.5, 1.0), 6)
    iron, lime = ball(grid, 0.6, 1.0), ball(grid, 0.6, -1.0)
    np.testing.assert_allclose(lime, np.conj(iron), atol=1e-5)


def test_water_inside_a_source_shines_and_decays():
    grid = sampling((0.5, 0.5, 0.5), 3)
    middle = tuple(np.array(grid.shape) // 2)
    dry, wet, decayed = (
        abs(ball(grid, 1.5, 0.0, water=water, decay=decay)[middle])
        for water, decay in ((0, 0), (1, 0), (1, 1))
    )
    assert (dry, wet) == pytest.approx((0, 1), abs=1e-6)
    assert decayed == pytest.approx(np.exp(-1), abs=1e-6)


def test_what_lies_outside_the_grid_changes_nothing():
    grid = sampling((0.5, 0.5, 2.0), 4)
    voxels, factor = dephasing.perturb_signal(
        np.full((1, 3), 90.0), np.ones(1), grid, rad_per_ppm=AT_60, chi=1.0, water=0.0, decay=0.0
    )
    assert (len(voxels), len(factor)) == (0, 0)


def test_a_spoiled_echo_is_strongest_at_the_ernst_angle():
    known = {"echo_time_s": 0.0, "repetition_time_s": 0.05}
    flips = np.arange(1, 90, 0.5)
    signals = [physics.spoiled_signal(1, 0.9, 20, flip_deg=flip, **known) for flip in flips]
    ernst = np.degrees(np.arccos(np.exp(-0.05 / 0.9)))
    assert flips[np.argmax(signals)] == pytest.approx(ernst, abs=0.5)
    rested = physics.spoiled_signal(
        0.7, 0.9, 20, echo_time_s=0.05, repetition_time_s=99, flip_deg=90
    )
    assert rested == pytest.approx(0.7 * np.exp(-1))


@pytest.mark.parametrize("kind", ["2D", "3D"])
def test_a_slice_is_as_thick_as_its_protocol_says(kind):
    heights = np.linspace(-6, 6, 2401)
    profile = slice_sampling.slice_profile(heights, thickness=4, kind=kind)
    assert profile.max() == pytest.approx(1, abs=0.001)
    assert np.ptp(heights[profile >= 0.5]) == pytest.approx(4, rel=0.05)
    _, weights = sampling((1, 1, 4), 4, kind=kind).heights(1.0)
    assert weights.sum() == pytest.approx(1)


def test_a_field_that_rises_through_the_slice_dephases_it():
    grid = sampling((1.0, 1.0, 4.0), 8)
    world = places(*(box := (centred((1, 1, 1), (31, 31, 31)), (31, 31, 31))))
    normal = grid.axes[:, 2]
    ones = Volume(np.ones(box[1], np.float32), box[0])
    for slope in (0.0, 0.005, 0.01, 0.016):  # ppm/mm; 1/62 takes a 4 mm slice once around
        field = Volume((world @ normal * slope).astype(np.float32), box[0])
        plane = list(slice_sampling.sum_background_slices(ones, field, grid, rad_per_ppm=AT_60))[2]
        turns = AT_60 * slope * 4 / (2 * np.pi)
        middle = abs(plane[8, 8])
        assert middle == pytest.approx(np.sinc(turns), abs=0.08)
