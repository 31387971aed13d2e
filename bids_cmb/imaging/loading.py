"""Load the images of one scan: its echoes as one image, and its phase."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bids_cmb.bids.metadata import describe_read_error
from bids_cmb.imaging.nifti import LoadReport, load
from bids_cmb.imaging.phase import load_phase_map
from bids_cmb.imaging.phase_files import PhaseMatch
from bids_cmb.imaging.volume import Volume

WITHOUT_PHASE = "Networks that take phase did without."


@dataclass(frozen=True, eq=False)
class LoadedPhase:
    """The phase of a scan, for networks that take it.

    Attributes:
        map: As `imaging.phase.load_phase_map` gives it; None where there is none that can be used.
        path: Where it came from; None likewise.
        notes: For the log.
    """

    map: Volume | None = None
    path: Path | None = None
    notes: tuple[str, ...] = ()


def load_echoes(paths: Sequence[Path]) -> tuple[Volume, LoadReport]:
    """Load a scan; several echoes are combined as the root of their mean square.

    Args:
        paths: The scan, or its echoes.

    Returns:
        The image, (X, Y, Z) float32, and what was noticed while its files were opened.

    Raises:
        ValueError: If an echo cannot be used or does not lie on the grid of the first.
        OSError: If one cannot be read.
    """
    first, *others = paths
    image, header = load(first)
    if not others:
        return image, header
    squares = image.data**2
    for path in others:
        echo, more = load(path)
        _check_grid(path, echo, first, image)
        squares += echo.data**2
        header = _merge_reports(header, more)
    return Volume(np.sqrt(squares / len(paths)), image.affine), header


def _check_grid(path: Path, echo: Volume, first: Path, image: Volume) -> None:
    if not echo.shares_grid(image):
        raise ValueError(
            f"{path}: echoes to be combined must share one grid; found {echo.shape} voxels "
            f"here and {image.shape} in {first.name}, or another affine."
        )


def _merge_reports(header: LoadReport, more: LoadReport) -> LoadReport:
    return replace(
        header,
        nonfinite_voxels=header.nonfinite_voxels + more.nonfinite_voxels,
        notes=header.notes + more.notes,
        header_mended=header.header_mended or more.header_mended,
    )


def load_phase(match: PhaseMatch | None, image: Volume, brain: Volume, name: str) -> LoadedPhase:
    """Load the phase of a scan; a note says what was used, or why nothing.

    Args:
        match: Which phase image belongs to the scan; None where no network takes phase.
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
        name: Of the scan's file, for the notes.
    """
    if match is None:
        return LoadedPhase()
    if match.path is None:
        reason = match.note or f"{name}: no matching phase image."
        return LoadedPhase(notes=(f"{reason} {WITHOUT_PHASE}",))
    try:
        phase = load_phase_map(match.path, image, brain)
    except OSError as error:
        reason = f"{match.path} {describe_read_error(error)}."
    except ValueError as error:
        reason = f"{str(error).rstrip('.')}."
    else:
        note = f"{name}: networks that take phase were shown {match.path.name}."
        return LoadedPhase(phase, match.path, (note,))
    return LoadedPhase(notes=(f"{reason} {WITHOUT_PHASE}",))
