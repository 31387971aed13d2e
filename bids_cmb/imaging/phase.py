"""The phase image of a scan: found by its name, made calm, turned one way round.

As scanners write it, phase is wrapped, drifts by many turns over the head, comes in several units
and turns forwards or backwards in a higher field as the vendor pleases. The map that is made of it
has none of that: it is a half where nothing disturbs the field, more where the field is higher than
around, as in veins along B0 and in the middle of microbleeds, and less where it is lower.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.bids.filters import (
    INDICES,
    PHASE,
    PHASE_LABELS,
    Image,
    Query,
    image_at,
    rejection_reason,
)
from bids_cmb.bids.metadata import echo_time_s, sidecar_reader
from bids_cmb.imaging.preprocessing import Grid, near, preprocess
from bids_cmb.imaging.volume import Volume, load

# Of names: SWI has no `part` in BIDS' draft, so its phase often goes by the gradient echo's suffix.
OF_SWI = ("T2starw", "T2star", "GRE")
SAME_ECHO = 0.0005  # s
# Of units: one turn as files have it (rad, degrees, rad x 1000, 12, 13 and 16 bits), and how much
# of it an image must span to be in that unit.
TURNS = (2 * np.pi, 360.0, 2000 * np.pi, 4096.0, 8192.0, 65536.0)
SPANNED = (0.9, 1.01)
MOST_RAD = 200.0  # that unwrapped phase may reach; whole numbers up to 4096 are no rad
FEWEST_VALUES = 16
LEAST_TURN = 0.005  # between the 1st and the 99th percentile of the brain
CORNER = 0.1  # of the smallest voxel, by which grids may lie apart
# Of the filter
SLOW_MM = 3.0  # standard deviation, in the slice, of what is slow
IN_STEP = 0.3  # share of the signal about a place that is in step; the map fades below
NEUTRAL = 0.5  # of the map
SPAN = np.pi  # rad from 0 to 1 of the map
# Of the sign
DEEP_MM = 6.0  # below the brain's surface, where no air bends the field
ABOUT_MM = 1.5  # standard deviation, in the slice, of the surround of a dark voxel
DARKEST = 0.003  # share of the deep voxels that are darkest against their surround
MOST_SAID = 1.0  # rad that a voxel may say: in black ones phase is noise
FEWEST_SLICES = 5
DECIDED = 2.0  # standard errors over slices


@dataclass(frozen=True)
class Partner:
    """Which phase image belongs to a scan.

    Attributes:
        path: None if there is none, or several fit equally well.
        note: A sentence on those that do.
    """

    path: Path | None = None
    note: str = ""


class UndecidedError(ValueError):
    """A phase image that does not tell which way its phase turns."""


# --- Which one ------------------------------------------------------------------------------------


def find_phase(scan: Path) -> Partner:
    """The phase image that lies beside a scan, by names alone (and echo times, between equals).

    It has the entities of the scan, but ``part-phase`` for ``part-mag`` or none; the same suffix,
    for SWI also one of `OF_SWI`. Instead of ``part-phase`` it may be labelled as phase in ``acq``,
    ``rec`` or ``desc`` (``acq-phase``, ``rec-filteredphase``, as discovery knows them), the scan
    having any label there, unless that makes it the phase of several scans. It may lack the scan's
    ``rec``, and beside SWI it may have an ``echo``. What differs least is taken.

    Args:
        scan: The magnitude or SWI, within a BIDS dataset.
    """
    root = _root(scan)
    own = image_at(scan, root)
    beside = {}  # the packed one of two files of one name
    for path in sorted(scan.parent.iterdir(), key=lambda path: (path.suffix != ".gz", path.name)):
        if path.name.endswith((".nii", ".nii.gz")) and path != scan:
            image = image_at(path, root)
            beside.setdefault(path.name.removesuffix(image.extension), image)
    ranks = {image: rank for image in beside.values() if (rank := _rank(own, image)) is not None}
    best = [image for image, rank in ranks.items() if rank == min(ranks.values())]
    if len(best) > 1:
        best = _same_echo(own, best, root) or best
    if not best:
        return Partner()
    names = " and ".join(image.path.name for image in best)
    if len(best) > 1:
        return Partner(note=f"{scan.name}: {names} fit equally well as its phase; none was taken.")
    [chosen] = best
    rivals = [
        image.path.name
        for image in beside.values()
        if ranks[chosen][0]
        and image.spelling == own.spelling
        and not rejection_reason(image, Query(suffixes=(own.spelling,)))
        and _rank(image, chosen) == ranks[chosen]
    ]
    if rivals:
        also = " and ".join(rivals)
        return Partner(note=f"{scan.name}: {names} may be the phase of {also} too; not taken.")
    return Partner(chosen.path)


def _root(path: Path) -> Path:
    """The dataset: the folder that holds the participant's."""
    participant = next((one for one in path.parents if one.name.startswith("sub-")), path)
    return participant.parent


def _rank(scan: Image, other: Image) -> tuple[int, int, int] | None:
    """How far a name is from that of the scan's phase, the least first; None if it is none."""
    alike, swi = other.spelling == scan.spelling, scan.spelling == "swi"
    part = other.entities.get("part")
    labels = [key for key in PHASE_LABELS if _says_phase(other.entities.get(key, ""))]
    if other.odd_words or part not in (None, "phase") or not (part or labels):
        return None
    own, its = _entities(scan), _entities(other)
    lacking = [key for key in ("rec",) if key in own and key not in its]
    more = [key for key in ("echo",) if swi and key in its and key not in own]
    apart = {
        key
        for key in (own.keys() | its.keys()) - {"part", *labels, *lacking, *more}
        if own.get(key) != its.get(key)
    }
    if apart or not (alike or (swi and other.spelling in OF_SWI)):
        return None
    return (len(labels), len(lacking) + len(more), int(not alike))


def _says_phase(label: str) -> bool:
    return re.fullmatch(PHASE, label, re.IGNORECASE) is not None


def _entities(image: Image) -> dict[str, str]:
    """Of a name; run-01 and run-1 are the same."""
    return {
        key: str(int(value)) if key in INDICES and value.isdecimal() else value
        for key, value in image.entities.items()
    }


def _same_echo(scan: Image, images: list[Image], root: Path) -> list[Image]:
    """Those that were read at the scan's echo time, by their sidecars."""
    read = sidecar_reader(root)
    times = {image: echo_time_s(read(image.path).metadata) for image in (scan, *images)}
    return [
        image
        for image in images
        if times[scan] and times[image] and abs(times[scan] - times[image]) < SAME_ECHO
    ]


# --- What it says ---------------------------------------------------------------------------------


def read_phase(path: Path, scan: Volume, brain: Volume) -> Volume:
    """The calm map of a phase image.

    Args:
        path: The phase image, within a BIDS dataset.
        scan: The magnitude or SWI it belongs to.
        brain: True inside the brain, on the grid of ``scan``.

    Returns:
        On the grid of ``scan``, 0 to 1, float32: 0, 1/2 and 1 are a quarter turn back, none and a
        quarter turn forth of the phase without its slow part, forth being a higher field.

    Raises:
        ValueError: If it cannot be used, lies on another grid than ``scan`` or is no plausible
            phase. The sentence names the file.
        UndecidedError: If it does not tell which way it turns.
        OSError: If it cannot be read at all.
    """
    image, _ = load(path)
    if image.shape != scan.shape or _apart(image, scan) > CORNER * scan.spacing.min():
        raise ValueError(
            f"{path}: a phase image must lie on the grid of its scan, {_times(scan)} voxels; "
            f"found {_times(image)}, their corners up to {_apart(image, scan):.1f} mm elsewhere."
        )
    try:
        turn = full_turn(image.data, units_of(path), brain.data)
        return calm(Volume(image.data * np.float32(2 * np.pi / turn), scan.affine), scan, brain)
    except UndecidedError as error:
        raise UndecidedError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def units_of(path: Path) -> object:
    """What the sidecars of a phase image give as its ``Units``; None where they give nothing."""
    return sidecar_reader(_root(path))(path).metadata.get("Units")


def full_turn(data: np.ndarray, units: object, brain: np.ndarray) -> float:
    """One turn of phase in the unit of a file.

    It is 2 pi for ``rad``. Else it is the one of `TURNS` that the image spans, or, if it spans none
    of them, all that it spans.

    Args:
        data: Phase as stored, (X, Y, Z).
        units: As the sidecar says; BIDS knows ``rad`` and ``arbitrary``.
        brain: Bool, (X, Y, Z).

    Raises:
        ValueError: If this can be no phase.
    """
    low, high = float(data.min()), float(data.max())
    some = np.unique(data[brain][:: max(1, brain.sum() // 100_000)])
    if len(some) < FEWEST_VALUES:
        raise ValueError(
            f"a phase image must have {FEWEST_VALUES} values or more in the brain; "
            f"found {len(some)}."
        )
    if units in ("rad", "radian", "radians"):
        if max(-low, high) > MOST_RAD:
            raise ValueError(
                f"phase in rad, as its sidecar has it, must lie within ±{MOST_RAD:g}; "
                f"found {low:g} to {high:g}."
            )
        turn = 2 * np.pi
    else:
        span = high - low
        least, most = SPANNED
        turn = next((one for one in TURNS if least * one <= span <= most * one), span)
    first, last = np.percentile(some, [1, 99])
    if last - first < LEAST_TURN * turn:
        raise ValueError(
            f"phase must vary by {LEAST_TURN:g} of a turn in the brain; found "
            f"{(last - first) / turn:.3f} of a turn of {turn:g}."
        )
    return float(turn)


def calm(phase: Volume, scan: Volume, brain: Volume) -> Volume:
    """The map of `read_phase`, of phase in rad.

    The complex image is divided by itself, smoothed in the slice (homodyne), so neither wraps nor
    slow drifts matter. Where little of the signal about a place is in step the map fades to a half.
    Which way the phase turns is told by `handed`.

    Raises:
        UndecidedError: If that cannot be told.
    """
    fast, steady = filtered(phase.data, scan)
    hand = handed(fast * steady, scan, brain)
    shown = NEUTRAL + (hand / SPAN) * fast * np.minimum(steady / IN_STEP, 1)
    return Volume(np.clip(shown, 0, 1).astype(np.float32), scan.affine)


def filtered(phase: np.ndarray, scan: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Phase without its slow part, -pi to pi, and the share of the signal that is in step.

    Args:
        phase: rad, (X, Y, Z).
        scan: Magnitude or SWI on the same grid.

    Source:
        Homodyne filter of SWI: Reichenbach et al. 1997, doi:10.1148/radiology.204.1.9205259.
    """
    fast, steady = np.zeros((2, *scan.shape), np.float32)
    width, layers = _in_slice(scan, SLOW_MM)
    for at in range(scan.shape[scan.slice_axis]):
        here = layers(at)
        weight = np.maximum(scan.data[here], 0)
        wave = weight * np.exp(1j * phase[here])
        slow = _smooth(wave.real, width) + 1j * _smooth(wave.imag, width)
        fast[here] = np.angle(wave * np.conj(slow))
        steady[here] = np.abs(slow) / np.maximum(_smooth(weight, width), 1e-6 * scan.data.max())
    return fast, steady


def handed(fast: np.ndarray, scan: Volume, brain: Volume) -> int:
    """1 if phase turns forwards in a higher field, -1 if backwards.

    No sidecar says. But what is darkest against its surround deep in the brain is nearly all
    paramagnetic, veins and iron, and its field is higher: the mean of its phase has the sign.
    Slices vote, each with the mean of its own.

    Args:
        fast: Phase without its slow part, (X, Y, Z).
        scan: Magnitude or SWI.
        brain: On its grid.

    Raises:
        UndecidedError: If there are too few slices, or they do not agree.
    """
    inside = np.asarray(brain.data, bool)
    wide = 2 * np.ceil(DEEP_MM / scan.spacing).astype(int) + 1
    deep = (scan.data > 0) & (ndimage.minimum_filter(inside.view(np.uint8), wide) > 0)
    dark = np.zeros(scan.shape, np.float32)
    width, layers = _in_slice(scan, ABOUT_MM)
    for at in range(scan.shape[scan.slice_axis]):
        here = layers(at)
        if deep[here].any():
            share = _smooth(inside[here].astype(np.float32), width)
            around = _smooth(np.where(inside[here], scan.data[here], 0), width)
            dark[here] = 1 - scan.data[here] * share / np.maximum(around, 1e-6 * scan.data.max())
    if not deep.any():
        raise UndecidedError(
            f"which way phase turns is told {DEEP_MM:g} mm deep; found no such place."
        )
    chosen = deep & (dark >= np.quantile(dark[deep], 1 - DARKEST))
    slices = np.nonzero(chosen)[scan.slice_axis]
    count = np.bincount(slices)
    said = np.clip(fast[chosen], -MOST_SAID, MOST_SAID)
    votes = (np.bincount(slices, said) / np.maximum(count, 1))[count > 0]
    weights = count[count > 0] / count.sum()
    mean = float(votes @ weights)
    # The standard error of a weighted mean.
    error = float(np.sqrt(((weights * (votes - mean)) ** 2).sum()))
    if len(votes) < FEWEST_SLICES or abs(mean) < DECIDED * error or mean == 0:
        raise UndecidedError(
            f"the darkest places of {FEWEST_SLICES} slices or more must agree on which way phase "
            f"turns; found {mean:.3f} ± {error:.3f} rad over {len(votes)}."
        )
    return 1 if mean > 0 else -1


def _in_slice(scan: Volume, width_mm: float):
    """A width in voxels of a slice, and from a slice's number to its place in the array."""
    axis = scan.slice_axis

    def layer(at: int) -> tuple:
        return (*(slice(None),) * axis, at)

    return width_mm / np.delete(scan.spacing, axis), layer


def _smooth(plane: np.ndarray, width: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(plane.astype(np.float32), width, truncate=3)


def _apart(image: Volume, scan: Volume) -> float:
    """How far the corners of two grids lie apart at most, mm."""
    corners = [
        one.world(np.array(np.meshgrid(*[(0, size - 1) for size in one.shape])).reshape(3, -1).T)
        for one in (image, scan)
    ]
    return float(np.linalg.norm(np.subtract(*corners), axis=1).max())


def _times(volume: Volume) -> str:
    return " × ".join(map(str, volume.shape))


# --- As a network takes it ------------------------------------------------------------------------


def on_grid(phase: Volume, brain: Volume, grid: Grid) -> np.ndarray:
    """The calm map on the grid of a network, a half beyond the brain and its surface, (X, Y, Z).

    Args:
        phase: Of `read_phase`.
        brain: On the scan's grid.
        grid: That of the network.
    """
    even = replace(grid, intensity="none", masked=False)
    moved = preprocess(Volume(phase.data - NEUTRAL, phase.affine), brain, even)
    return np.where(near(moved.brain), moved.image.data + NEUTRAL, NEUTRAL).astype(np.float32)
