"""Cohort statistics: histograms, strata and outliers, for the cohort's page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

MIN_OUTLIER_SCORE = 3.5  # modified z-score; Iglewicz & Hoaglin 1993
MIN_SCANS = 8  # below, there are no outliers
SIZES_MM = (0, 1, 2, 3, 4, 5, 6, 8, 10)  # diameters
MAX_COUNT_BIN = 10  # microbleeds of a scan; the last bin has all above
MEASURES = {  # column of the scan table: its name, and the distance within which none is an outlier
    "brain_ml": ("brain, ml", 50),
    "brain_snr": ("signal to noise", 2),
    "ghost_percent": ("ghosts beside the head, %", 1),
    "fov_truncation_percent": ("brain at the edge of the field of view, %", 5),
    "mni_registration_rms_mm": ("MNI registration RMS, mm", 0.5),
    "n_cmb": ("microbleeds", 3),
    "n_excluded": ("excluded lesions", 3),
}
PROTOCOL: dict[str, Callable[[Mapping], object]] = {
    "field strength": lambda row: _format_value(row, "field_strength_t", "T"),
    "echo time": lambda row: _bin_value(row, "echo_time_ms", (15, 20, 25, 30, 40), "ms"),
    "slices": lambda row: _bin_value(row, "slice_spacing_mm", (1, 2, 3, 4, 5), "mm"),
    "in plane": lambda row: _bin_value(row, "voxel_size_1_mm", (0.5, 0.75, 1), "mm"),
    "detector": lambda row: row.get("detector"),
    "quality flags": lambda row: row.get("quality_flags") or "none",
}


def bin_counts(rows: Iterable[Mapping]) -> list[tuple[str, int]]:
    """Count the scans with 0, 1, 2, … microbleeds: (number, scans)."""
    counts = [int(row["n_cmb"]) for row in rows if row.get("n_cmb") is not None]
    names = [*map(str, range(MAX_COUNT_BIN)), f"{MAX_COUNT_BIN} or more"]
    return [
        (name, sum(min(count, MAX_COUNT_BIN) == number for count in counts))
        for number, name in enumerate(names)
    ]


def bin_diameters(diameters: Sequence[float]) -> list[tuple[str, int]]:
    """Count the lesions by diameter: (diameter in mm, lesions)."""
    numbers, _ = np.histogram(diameters, [*SIZES_MM, np.inf])
    names = [f"{low} to {high}" for low, high in pairwise(SIZES_MM)]
    return list(zip([*names, f"{SIZES_MM[-1]} and more"], numbers.tolist(), strict=True))


def compare_reviewed(rows: Sequence[Mapping]) -> list[dict[str, object]]:
    """Count scans by burden and by pattern before review and after, a row for each class.

    Scans without a review are the same in both.
    """
    made = []
    for column in ("burden", "pattern"):
        before = [row.get(column) for row in rows]
        after = [
            row.get(column if row.get("reviewed_by") is None else f"{column}_reviewed")
            for row in rows
        ]
        for name in sorted(
            {*before, *after}, key=lambda value: _sort_key(str(value or "not known"))
        ):
            labels = {"by": column, "class": name or "not known"}
            made.append({**labels, "before": before.count(name), "after": after.count(name)})
    return made


def summarize_strata(
    rows: Sequence[Mapping], groups: Mapping[str, Mapping]
) -> list[dict[str, object]]:
    """Summarize counts by protocol and site, a row for each class: quartiles and prevalence.

    Args:
        rows: Of the group table, those of processed scans.
        groups: Site and scanner of each participant: column → participant → value.
    """
    classifiers: dict[str, Callable[[Mapping], object]] = dict(PROTOCOL)
    for column, values in groups.items():
        classifiers[column] = lambda row, values=values: values.get(str(row["participant_id"]))
    strata = []
    for name, classify in classifiers.items():
        classes: dict[str, list[int]] = {}
        for row in rows:
            if row.get("n_cmb") is not None:
                classes.setdefault(str(classify(row) or "not known"), []).append(int(row["n_cmb"]))
        for value in sorted(classes, key=_sort_key):
            counts = np.array(classes[value])
            low, middle, high = np.percentile(counts, [25, 50, 75])
            strata.append(
                {
                    "by": name,
                    "class": value,
                    "scans": len(counts),
                    "low": float(low),
                    "median": float(middle),
                    "high": float(high),
                    "mean": round(float(counts.mean()), 2),
                    "with_any": round(float((counts > 0).mean()), 3),
                }
            )
    return strata


def find_outliers(rows: Sequence[Mapping]) -> list[dict[str, object]]:
    """Find the scans whose measures are far from the median, the farthest first.

    The distance is the modified z-score, in median absolute deviations; where more than half of
    the scans are equal, in mean absolute deviations. What is within a small distance of the median
    (``MEASURES``) is no outlier.
    """
    outliers = []
    for column, (name, tolerance) in MEASURES.items():
        known_rows = [row for row in rows if row.get(column) is not None]
        values = np.array([float(row[column]) for row in known_rows])
        if len(values) < MIN_SCANS:
            continue
        median = float(np.median(values))
        distances = np.abs(values - median)
        scale = 1.4826 * np.median(distances) or 1.2533 * distances.mean()
        for row, value, distance in zip(known_rows, values, distances, strict=True):
            if scale > 0 and distance > max(tolerance, MIN_OUTLIER_SCORE * scale):
                outliers.append(
                    {
                        "row": row,
                        "measure": name,
                        "value": float(value),
                        "median": median,
                        "score": round(float(distance / scale), 1),
                    }
                )
    return sorted(outliers, key=lambda outlier: -outlier["score"])


def _format_value(row: Mapping, column: str, unit: str) -> str | None:
    value = row.get(column)
    return None if value is None else f"{float(value):g} {unit}"


def _bin_value(row: Mapping, column: str, edges: Sequence[float], unit: str) -> str | None:
    """Name the bin of a value: up to the first edge, between two edges, or above the last."""
    if row.get(column) is None:
        return None
    value = float(row[column])
    index = int(np.searchsorted(edges, value - 1e-6))
    if index == 0:
        return f"up to {edges[0]:g} {unit}"
    if index == len(edges):
        return f"above {edges[-1]:g} {unit}"
    return f"{edges[index - 1]:g} to {edges[index]:g} {unit}"


def _sort_key(name: str) -> tuple:
    """Sort classes by their numbers; ``up to`` first, words last."""
    order = {"up": 0, "above": 2}.get(name.split(maxsplit=1)[0], 1)
    number = name.split(maxsplit=1)[0]
    try:
        return (order, float(number), name)
    except ValueError:
        return (order if order != 1 else 3, 0.0, name)
