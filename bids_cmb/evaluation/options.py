"""Options of an evaluation."""

from dataclasses import dataclass
from pathlib import Path

from bids_cmb.metrics.matching import RULES

DEFAULT_DRAWS = 2000
UNCERTAIN_MODES = ("ignore", "include")

REFERENCE_FOLDER = Path("derivatives", "truth")


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of an evaluation.

    Attributes:
        match: Matching rule, a key of ``RULES``.
        threshold: Predicted lesions of a lower probability are left out; the FROC takes all.
        uncertain: ``ignore`` if true lesions that are marked possible, not visible or not included
            are neither missed nor found, ``include`` if they count like all others.
        seed: Of the bootstrap.
        draws: Of the bootstrap.
    """

    match: str = "valdo"
    threshold: float = 0.0
    uncertain: str = "ignore"
    seed: int = 0
    draws: int = DEFAULT_DRAWS


def check_options(options: EvaluationOptions) -> None:
    """Check that options are possible.

    Raises:
        ValueError: If one is not.
    """
    for name, value, allowed in (
        ("match", options.match, tuple(RULES)),
        ("uncertain", options.uncertain, UNCERTAIN_MODES),
    ):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; found {value!r}.")
    if not 0 <= options.threshold <= 1:
        raise ValueError(f"`threshold` must lie between 0 and 1; found {options.threshold:g}.")
    if options.draws < 0 or options.seed < 0:
        raise ValueError(
            f"`bootstrap` and `seed` must be 0 or more; found {options.draws} and {options.seed}."
        )


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Check that a folder is empty, unless it may be overwritten.

    Raises:
        ValueError: If the folder holds anything.
    """
    if folder.exists() and not overwrite and any(folder.iterdir()):
        raise ValueError(
            f"{folder}: an evaluation needs an empty folder or --overwrite; found files in it."
        )


def locate_reference(truth: Path) -> Path:
    """Locate the reference annotations: of a BIDS dataset in its ``derivatives/truth``."""
    within = truth / REFERENCE_FOLDER
    return within if within.is_dir() else truth
