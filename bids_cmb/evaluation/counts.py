"""Counts without positions: ratings by MARS as a table, and their agreement with the app's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_cmb.anatomy.mars import classify_pattern, list_regions
from bids_cmb.bids.entities import SCAN_ENTITIES, parse_scan_entities
from bids_cmb.bids.paths import list_participant_dirs
from bids_cmb.bids.tables import read_results, read_table, write_table
from bids_cmb.evaluation.options import check_folder, locate_reference
from bids_cmb.files import write_json
from bids_cmb.lesions.table import TERRITORIES, classify_burden, list_mars_columns
from bids_cmb.metrics.agreement import measure_count_agreement
from bids_cmb.provenance import software

COUNTS_FILE = "phenotype/mars.tsv"  # BIDS's folder of assessments
FILES = ("counts.tsv", "agreement.tsv", "agreement.json")


def convert_rating(counts: dict[str, int]) -> dict[str, object]:
    """Convert a rating to columns of the app's scan table; None for what was not rated.

    Args:
        counts: As `datasets.mars_sheets` gives them.
    """
    rated = {name for name in counts if not name.endswith("_possible")}
    rated |= {name.removesuffix("_possible") for name in counts}
    by_region = {
        name: counts.get(name, 0) + counts.get(f"{name}_possible", 0) if name in rated else None
        for name, _, _ in list_mars_columns()
    }
    by_territory = {
        name: sum_or_none(
            by_region[column]
            for column, region, _ in list_mars_columns()
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
        "burden": None if total is None else classify_burden(total),
        **{f"n_{name}": count for name, count in by_territory.items()},
        "pattern": None if total is None else classify_pattern(by_territory, cerebellar),
        **by_region,
    }


def sum_or_none(parts: Iterable[int | None]) -> int | None:
    """Sum up; None if a part is not known."""
    parts = list(parts)
    return None if None in parts else sum(parts)


# --- Agreement of the app's counts with rated ones -----------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Agreement of the app's counts with rated ones.

    Attributes:
        rows: For each column, over the ``n_scans`` in which both know it: found and rated sums,
            ICC(2,1), mean absolute error, mean error, weighted kappa of burden.
        missing: Rated scans without a result of the app.
    """

    rows: list[dict]
    missing: tuple[str, ...]


def find_rated_table(truth: Path) -> Path | None:
    """Find the table of rated counts in a truth; None if it consists of lesions."""
    table = locate_reference(truth) / COUNTS_FILE if truth.is_dir() else truth
    return table if table.name == Path(COUNTS_FILE).name and table.is_file() else None


def compare_counts(results: Path, table: Path, folder: Path, *, overwrite: bool) -> Agreement:
    """Compare the app's counts with rated ones, and write ``FILES``.

    Args:
        results: Output folder of the app.
        table: With columns as from `convert_rating`.
        folder: To write; must be empty unless ``overwrite``.
        overwrite: Whether an earlier comparison there may be replaced.

    Raises:
        ValueError: If ``folder`` is not empty, no scan is in both, or several results may be of one
            rated scan.
        OSError: If a file cannot be read or written.
    """
    check_folder(folder, overwrite=overwrite)
    by_entities: dict[tuple, list[tuple[str, dict]]] = {}
    for results_dir in list_participant_dirs(results):
        for sidecar, row in read_results(results_dir):
            named = (_get_source_name(sidecar, row), row)
            by_entities.setdefault(_get_entities(row["filename"]), []).append(named)
    pairs, missing = [], []
    rows = read_table(table)
    if rows and "scan" not in rows[0]:
        raise ValueError(f"{table}: the column scan is needed; found {', '.join(rows[0])[:200]}.")
    for rated in rows:
        name = str(rated["scan"])
        try:
            result = _find_result(name, by_entities.get(_get_entities(name), []))
        except ValueError as error:
            raise ValueError(f"{table}: {error}") from None
        if result is None:
            missing.append(name)
        else:
            pairs.append((name, result, rated))
    if not pairs:
        raise ValueError(
            f"{results}: the app's results and {table} need a scan in common; found "
            f"{sum(map(len, by_entities.values()))} results and {len(missing)} rated scans."
        )
    rows = [_measure_agreement(column, pairs) for column in _list_columns()]
    _write_files(folder, pairs, rows, missing)
    return Agreement(rows, tuple(missing))


def _find_result(scan: str, results: Sequence[tuple[str, dict]]) -> dict | None:
    """Find the result of a rated scan: of the same name, else of the same suffix; None without.

    Args:
        scan: Path or name of the rated scan; it may lack a suffix.
        results: With the same entities: the name of the source, and the row of the scan table.

    Raises:
        ValueError: If several fit.
    """
    stem, suffix = _get_stem(scan), _get_suffix(scan)
    matching = [
        (source, row) for source, row in results if not suffix or _get_suffix(source) == suffix
    ]
    matching = [(source, row) for source, row in matching if source == stem] or matching
    if len(matching) > 1:
        names = " and ".join(Path(row["filename"]).name for _, row in matching[:3])
        raise ValueError(f"{scan} needs one result of the app; found {len(matching)}: {names}.")
    return matching[0][1] if matching else None


def _get_source_name(sidecar: dict, row: dict) -> str:
    """Name the scan that a result was made from, by its ``Sources``, else by its ``desc``."""
    sources = sidecar.get("Sources") or [_get_stem(row["filename"]).replace("_mask", "")]
    return _get_stem(sources[0])


def _get_stem(path: object) -> str:
    return Path(str(path)).name.partition(".")[0]


def _get_suffix(path: object) -> str:
    """Give the last word of a name in small letters; empty if it is an entity, as ``sub-01``."""
    key, _, value = _get_stem(path).rpartition("_")[2].rpartition("-")
    return "" if key in SCAN_ENTITIES else value.casefold()


def _list_columns() -> list[str]:
    territories, regions = (f"n_{name}" for name in TERRITORIES), list_mars_columns()
    return ["n_cmb", "n_definite", "n_possible", *territories, *(name for name, _, _ in regions)]


def _measure_agreement(column: str, pairs: Sequence[tuple[str, dict, dict]]) -> dict[str, object]:
    """Measure the agreement of a column over the scans in which both counts are known."""
    values = [
        (_parse_count(result.get(column)), _parse_count(rated.get(column)))
        for _, result, rated in pairs
    ]
    counts = np.array([pair for pair in values if None not in pair], float).reshape(-1, 2)
    row = {"region": column.removeprefix("n_"), "n_scans": len(counts)}
    if not len(counts):
        return row
    figures = measure_count_agreement(counts[:, 0], counts[:, 1])
    rounded = {key: round(v, 4) if np.isfinite(v) else None for key, v in figures.items()}
    return {**row, "found": int(counts[:, 0].sum()), "rated": int(counts[:, 1].sum()), **rounded}


def _parse_count(value: object) -> int | None:
    return None if value in (None, "") else int(value)


def _get_entities(path: object) -> tuple[tuple[str, str], ...]:
    """Get the entities of a file that belong to the scan."""
    return tuple(parse_scan_entities(_get_stem(path)).items())


def _write_files(folder: Path, pairs: Sequence, rows: list[dict], missing: Iterable[str]) -> None:
    counts, agreement, summary = (folder / name for name in FILES)
    column_names = [
        "scan",
        *(f"{column}_{side}" for column in _list_columns() for side in ("found", "rated")),
    ]
    table = [
        {
            "scan": name,
            **{f"{column}_found": result.get(column) for column in _list_columns()},
            **{f"{column}_rated": rated.get(column) for column in _list_columns()},
        }
        for name, result, rated in pairs
    ]
    write_table(counts, column_names, table)
    empty = dict.fromkeys(next(row for row in rows if row["n_scans"]))
    write_table(agreement, empty, [{**empty, **row} for row in rows])
    write_json(summary, {"software": software(), "missing": list(missing), "agreement": rows})
