"""Every setting of a run and its default, once."""

import os
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import unquote_to_bytes

import tomli_w

LEVELS = ("participant", "group")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # read at import of numpy
TENSORFLOW_SETTINGS = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}  # at its own
DEFAULT_DETECTOR = "two-stage"
RESEARCH_DETECTORS = ("cascade", "distilled", "gated")  # they find less on real scans
BALANCED = "balanced"  # the operating point of a card's own threshold
SENSITIVE = "sensitive"  # the one below which nothing is worth a look
OPERATING_POINTS = (SENSITIVE, BALANCED, "specific")


@dataclass(frozen=True)
class Config:
    """What a run was asked to do. Built once, at the door; saved in the run's log folder.

    The flag of a setting has its name with hyphens; ``cli`` says what each one means.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: tuple[str, ...]

    participant_label: tuple[str, ...] = ()
    exclude_participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    suffix: tuple[str, ...] = ("T2starw", "swi")
    echo: tuple[str, ...] = ()
    acq: tuple[str, ...] = ()
    rec: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    bids_database_dir: Path | None = None
    reset_database: bool = False
    shard: tuple[int, ...] | None = None  # (I, N): the I-th of N parts, from 1
    validate: str = "warn"

    detector: tuple[str, ...] = (DEFAULT_DETECTOR,)
    model_dir: Path | None = None
    members: tuple[str, ...] = ()
    precision: str = "auto"
    anatomy: str = "network"
    operating_point: str = BALANCED
    threshold: float | None = None
    min_volume: float | None = None
    exclude_flags: tuple[str, ...] = ("large",)
    deep_wm_distance_mm: float = 10.0
    templateflow_fetch: bool = False
    derivatives: tuple[Path, ...] = ()
    mask_desc: str = "brain"
    skip_brain_extraction: bool = False

    output_level: str = "standard"
    longitudinal: str = "on"
    report: str = "static"
    reports_only: bool = False
    reviews: Path | None = None
    work_dir: Path | None = None
    clean_workdir: bool = False
    overwrite: bool = False
    dry_run: bool = False
    boilerplate_only: bool = False
    stop_on_first_crash: bool = False

    device: str = "auto"
    engine: str = "auto"
    gpu_id: str | None = None
    share_networks: str = "auto"
    n_cpus: int | None = None
    omp_nthreads: int | None = None
    mem_mb: int | None = None
    scan_time_limit: float | None = None  # minutes
    dask_scheduler: str | None = None
    verbosity: int = 0


RESULT_SETTINGS = (  # those that change what is found in a scan or which files tell of it
    "detector",
    "members",
    "precision",
    "anatomy",
    "operating_point",
    "threshold",
    "min_volume",
    "exclude_flags",
    "deep_wm_distance_mm",
    "mask_desc",
    "skip_brain_extraction",
    "output_level",
)


def result_settings(config: Config) -> dict:
    """The settings on which a scan's results depend, as plain data."""
    return {name: _plain(getattr(config, name)) for name in RESULT_SETTINGS}


def to_toml(config: Config) -> str:
    """The settings as a TOML text that ``--config-file`` takes back.

    What is unset, or a list that is empty by default, is left out.
    """
    values = {field.name: getattr(config, field.name) for field in fields(Config)}
    empty = {field.name for field in fields(Config) if field.default == ()}
    return tomli_w.dumps(
        {
            name: _plain(value)
            for name, value in values.items()
            if value is not None and not (name in empty and value == ())
        }
    )


def read_config_file(path: Path) -> dict[str, object]:
    """The settings of a TOML file as they stand there; `cli.settings` checks them like flags.

    Raises:
        ValueError: If the file is no TOML or names a setting that does not exist.
        OSError: If it cannot be read.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: a config file must be TOML; {error}.") from error
    known = [field.name for field in fields(Config)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(
            f"{path}: every setting must be one of {', '.join(known)}; found {', '.join(unknown)}."
        )
    return settings


def read_path(text: str) -> Path:
    """A path as `to_toml` wrote it: names that are no Unicode stand in a ``file:`` URI."""
    if text.startswith("file:///"):
        return Path(os.fsdecode(unquote_to_bytes(text.removeprefix("file://"))))
    return Path(text)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        is_unicode = not re.search("[\ud800-\udfff]", str(value))
        return str(value) if is_unicode else value.absolute().as_uri()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
