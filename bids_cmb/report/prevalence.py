"""Prevalence of microbleeds by region, overall and by site or scanner."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from bids_cmb.lesions.table import TERRITORIES, list_mars_columns


def make_region_rows(
    processed: Sequence[dict], groups: Mapping[str, Mapping[str, str]]
) -> list[dict[str, object]]:
    """Compute prevalence and number of lesions by region, overall and by site or scanner.

    A participant with several scans counts once, by the scan with most lesions in the region; if
    that has none, and the regions of another are not known, the participant is not evaluable there.

    Args:
        processed: Rows of the group table, of processed scans.
        groups: Site and scanner of each participant: column → participant → value.

    Returns:
        A row for each region of each stratum.
    """
    territories, regions = (f"n_{name}" for name in TERRITORIES), list_mars_columns()
    counts = ["n_cmb", *territories, *(name for name, _, _ in regions)]
    return [
        {"stratum_variable": column, "stratum": value, **_compute_prevalence(rows, count)}
        for column, value, rows in _select_strata(processed, groups)
        for count in counts
    ]


def _compute_prevalence(rows: Sequence[dict], column: str) -> dict[str, object]:
    """Compute the prevalence of lesions that a column of the scan table counts."""
    highest: dict[str, int] = {}  # of each participant
    unknown = set()
    for row in rows:
        participant = str(row["participant_id"])
        if row.get(column) is None:
            unknown.add(participant)
        else:
            highest[participant] = max(highest.get(participant, 0), int(row[column]))
    highest = {name: count for name, count in highest.items() if count or name not in unknown}
    n_positive = sum(count > 0 for count in highest.values())
    low, high = compute_wilson_interval(n_positive, len(highest))
    return {
        "region": column.removeprefix("n_"),
        "n_participants": len({str(row["participant_id"]) for row in rows}),
        "n_evaluable": len(highest),
        "n_lesions": sum(highest.values()) if highest else None,
        "n_positive": n_positive if highest else None,
        "prevalence": round(n_positive / len(highest), 4) if highest else None,
        "prevalence_low": low,
        "prevalence_high": high,
    }


def _select_strata(
    processed: Sequence[dict], groups: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, str, Sequence[dict]]]:
    """Select the rows of all participants, then those of each site and scanner."""
    yield "all", "all", processed
    for column, values in groups.items():
        by_value: dict[str, list[dict]] = {}
        for row in processed:
            if value := values.get(str(row["participant_id"])):
                by_value.setdefault(value, []).append(row)
        for value, rows in sorted(by_value.items()):
            yield column, value, rows


@lru_cache(maxsize=4096)  # half a millisecond each, and the same counts come often
def compute_wilson_interval(successes: int, trials: int) -> tuple[float, float] | tuple[None, None]:
    """Compute the 95 % interval of a proportion (Wilson 1927); None, None without trials."""
    if not trials:
        return None, None
    from scipy.stats import binomtest  # noqa: PLC0415 half a second that only the group level needs

    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return round(float(interval.low), 4), round(float(interval.high), 4)
