"""Counts without positions: a rating by MARS as a table, and the app's counts held against it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_cmb.anatomy.mars import classify_pattern, list_regions
from bids_cmb.bids.paths import list_participant_dirs
from bids_cmb.bids.tables import read_results, read_table, write_table
from bids_cmb.files import write_json
from bids_cmb.lesions.table import TERRITORIES, burden, mars_columns
from bids_cmb.metrics.scores import measure_count_agreement
from bids_cmb.provenance import software

COUNTS = "phenotype/mars.tsv"  # where BIDS keeps what was assessed


def mars_counts(counts: dict[str, int]) -> dict[str, object]:
    """A rating as the columns of the app's scan table; None for what was not rated.

    Args:
        counts: As `datasets.mars_sheets` gives them.
    """
    known = {name for name in counts if not name.endswith("_possible")}
    known |= {name.removesuffix("_possible") for name in counts}
    by_region = {
        name: counts.get(name, 0) + counts.get(f"{name}_possible", 0) if name in known else None
        for name, _, _ in mars_columns()
    }
    by_territory = {
        name: sum_or_none(
            by_region[column]
            for column, region, _ in mars_columns()
            if region in list_regions(name)
        )
        for name in TERRITORIES
    }
    total = sum_or_none(by_territory.values())
    possible = sum(value for name, value in counts.items() if name.endswith("_possible"))
    cerebellar = sum_or_none(by_region[f"n_cerebellum_{side}"] for side in ("left", "right"))
    return {
        "n_cmb": total,
        "n_definite": None if total is None else total - possible,
        "n_possible": possible,
        "burden": None if total is None else burden(total),
        **{f"n_{name}": count for name, count in by_territory.items()},
        "pattern": None if total is None else classify_pattern(by_territory, cerebellar),
        **by_region,
    }


def sum_or_none(parts: Iterable[int | None]) -> int | None:
    """The sum; None if a part is not known."""
    parts = list(parts)
    return None if None in parts else sum(parts)


# --- Found counts against rated ones --------------------------------------------------------------

ENTITIES = ("sub", "ses", "acq", "ce", "rec", "run", "echo", "part")
FILES = ("counts.tsv", "agreement.tsv", "agreement.json")


@dataclass(frozen=True)
class Agreement:
    """How well counts agree.

    Attributes:
        rows: For each place, with ``n_scans`` in which both sides know it: found and rated sums,
            ICC(2,1), mean absolute error, mean error, weighted kappa of burden.
        missing: Rated scans without a result of the app.
    """

    rows: list[dict]
    missing: tuple[str, ...]


def rated_table(truth: Path) -> Path | None:
    """The table of counts, if that is what a truth consists of."""
    table = truth / COUNTS if truth.is_dir() else truth
    return table if table.name == Path(COUNTS).name and table.is_file() else None


def compare_counts(results: Path, table: Path, folder: Path, *, overwrite: bool) -> Agreement:
    """Hold the app's counts against rated ones, and write ``FILES``.

    Args:
        results: Output folder of the app.
        table: As `mars_counts` fills it.
        folder: Where to; must not hold anything unless ``overwrite``.
        overwrite: Whether an earlier comparison there may be replaced.

    Raises:
        ValueError: If ``folder`` is not empty, no scan is in both, or several results may be of one
            rated scan.
        OSError: If a file cannot be read or written.
    """
    if folder.exists() and not overwrite and any(folder.iterdir()):
        raise ValueError(
            f"{folder}: an evaluation needs an empty folder or --overwrite; found files in it."
        )
    found: dict[tuple, list[tuple[str, dict]]] = {}
    for home in list_participant_dirs(results):
        for sidecar, row in read_results(home):
            found.setdefault(_entities(row["filename"]), []).append((_source(sidecar, row), row))
    pairs, missing = [], []
    rows = read_table(table)
    if rows and "scan" not in rows[0]:
        raise ValueError(f"{table}: the column scan is needed; found {', '.join(rows[0])[:200]}.")
    for rated in rows:
        name = str(rated["scan"])
        try:
            own = _result_of(name, found.get(_entities(name), []))
        except ValueError as error:
            raise ValueError(f"{table}: {error}") from None
        if own is None:
            missing.append(name)
        else:
            pairs.append((name, own, rated))
    if not pairs:
        raise ValueError(
            f"{results}: the app's results and {table} need a scan in common; found "
            f"{sum(map(len, found.values()))} results and {len(missing)} rated scans."
        )
    rows = [_agreement(place, pairs) for place in _places()]
    _write(folder, pairs, rows, missing)
    return Agreement(rows, tuple(missing))


def _result_of(scan: str, results: Sequence[tuple[str, dict]]) -> dict | None:
    """Choose the result of a rated scan: of its very name, else of its suffix; None without.

    Args:
        scan: Path or name of the rated scan; it may lack a suffix.
        results: With the same entities: the name of the source, and the row of the scan table.

    Raises:
        ValueError: If several fit.
    """
    stem, suffix = _stem(scan), _suffix(scan)
    fitting = [(source, row) for source, row in results if not suffix or _suffix(source) == suffix]
    fitting = [(source, row) for source, row in fitting if source == stem] or fitting
    if len(fitting) > 1:
        names = " and ".join(Path(row["filename"]).name for _, row in fitting[:3])
        raise ValueError(f"{scan} needs one result of the app; found {len(fitting)}: {names}.")
    return fitting[0][1] if fitting else None


def _source(sidecar: dict, row: dict) -> str:
    """Name the scan that a result was made from, by its ``Sources``, else by its ``desc``."""
    sources = sidecar.get("Sources") or [_stem(row["filename"]).replace("_mask", "")]
    return _stem(sources[0])


def _stem(path: object) -> str:
    return Path(str(path)).name.partition(".")[0]


def _suffix(path: object) -> str:
    """Give the last word of a name in small letters; empty if it is an entity, as ``sub-01``."""
    key, _, value = _stem(path).rpartition("_")[2].rpartition("-")
    return "" if key in ENTITIES else value.casefold()


def _places() -> list[str]:
    territories = [f"n_{name}" for name in TERRITORIES]
    return ["n_cmb", "n_definite", "n_possible", *territories, *(c for c, _, _ in mars_columns())]


def _agreement(place: str, pairs: Sequence[tuple[str, dict, dict]]) -> dict[str, object]:
    both = [(_number(own.get(place)), _number(rated.get(place))) for _, own, rated in pairs]
    known = np.array([pair for pair in both if None not in pair], float).reshape(-1, 2)
    row = {"region": place.removeprefix("n_"), "n_scans": len(known)}
    if not len(known):
        return row
    figures = measure_count_agreement(known[:, 0], known[:, 1])
    rounded = {key: round(v, 4) if np.isfinite(v) else None for key, v in figures.items()}
    return {**row, "found": int(known[:, 0].sum()), "rated": int(known[:, 1].sum()), **rounded}


def _number(value: object) -> int | None:
    return None if value in (None, "") else int(value)


def _entities(path: object) -> tuple[tuple[str, str], ...]:
    """The entities of a file that belong to the scan."""
    parts = dict(part.partition("-")[::2] for part in _stem(path).split("_"))
    return tuple((key, parts[key]) for key in ENTITIES if parts.get(key))


def _write(folder: Path, pairs: Sequence, rows: list[dict], missing: Iterable[str]) -> None:
    counts, agreement, summary = (folder / name for name in FILES)
    names_of = ["scan", *(f"{place}_{side}" for place in _places() for side in ("found", "rated"))]
    table = [
        {
            "scan": name,
            **{f"{place}_found": own.get(place) for place in _places()},
            **{f"{place}_rated": rated.get(place) for place in _places()},
        }
        for name, own, rated in pairs
    ]
    write_table(counts, names_of, table)
    empty = dict.fromkeys(next(row for row in rows if row["n_scans"]))
    write_table(agreement, empty, [{**empty, **row} for row in rows])
    write_json(summary, {"software": software(), "missing": list(missing), "agreement": rows})
