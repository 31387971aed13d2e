"""What the cohort's page shows besides its table: histograms, strata, and what is odd."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

ODD = 3.5  # modified z-score; Iglewicz & Hoaglin 1993
FEWEST = 8  # scans of which one can be odd
SIZES_MM = (0, 1, 2, 3, 4, 5, 6, 8, 10)  # diameters
MOST_COUNTED = 10  # microbleeds of a scan that have a bar of their own
MEASURES = {  # columns of the scan table: what they are called, and what is never odd
    "brain_ml": ("brain, ml", 50),
    "brain_snr": ("signal to noise", 2),
    "fov_truncation_percent": ("FOV truncation, %", 5),
    "mni_registration_rms_mm": ("MNI registration RMS, mm", 0.5),
    "n_cmb": ("microbleeds", 3),
    "n_excluded": ("excluded lesions", 3),
}
PROTOCOL: dict[str, Callable[[Mapping], object]] = {
    "field strength": lambda row: _unit(row, "field_strength_t", "T"),
    "echo time": lambda row: _within(row, "echo_time_ms", (15, 20, 25, 30, 40), "ms"),
    "slices": lambda row: _within(row, "slice_spacing_mm", (1, 2, 3, 4, 5), "mm"),
    "in plane": lambda row: _within(row, "voxel_size_1_mm", (0.5, 0.75, 1), "mm"),
    "detector": lambda row: row.get("detector"),
    "quality flags": lambda row: row.get("quality_flags") or "none",
}


def count_bars(rows: Iterable[Mapping]) -> list[tuple[str, int]]:
    """How many scans have 0, 1, 2, … microbleeds: (number, scans)."""
    counts = [int(row["n_cmb"]) for row in rows if row.get("n_cmb") is not None]
    names = [*map(str, range(MOST_COUNTED)), f"{MOST_COUNTED} or more"]
    return [
        (name, sum(min(n, MOST_COUNTED) == at for n in counts)) for at, name in enumerate(names)
    ]


def size_bars(diameters: Sequence[float]) -> list[tuple[str, int]]:
    """How many lesions are how wide: (diameter in mm, lesions)."""
    numbers, _ = np.histogram(diameters, [*SIZES_MM, np.inf])
    names = [f"{low} to {high}" for low, high in pairwise(SIZES_MM)]
    return list(zip([*names, f"{SIZES_MM[-1]} and more"], numbers.tolist(), strict=True))


def shifts(rows: Sequence[Mapping]) -> list[dict[str, object]]:
    """Scans by burden and by pattern before review and after, a row for each class.

    Scans that nobody reviewed are the same on both sides.
    """
    made = []
    for column in ("burden", "pattern"):
        before = [row.get(column) for row in rows]
        after = [
            row.get(column if row.get("reviewed_by") is None else f"{column}_reviewed")
            for row in rows
        ]
        for name in sorted(
            {*before, *after}, key=lambda value: _natural(str(value or "not known"))
        ):
            one = {"by": column, "class": name or "not known"}
            made.append({**one, "before": before.count(name), "after": after.count(name)})
    return made


def strata(rows: Sequence[Mapping], groups: Mapping[str, Mapping]) -> list[dict[str, object]]:
    """Counts against protocol and site, a row for each class: scans, quartiles and prevalence.

    Args:
        rows: Of the group table, those that were read.
        groups: Site and scanner of each participant: column → participant → value.
    """
    by: dict[str, Callable[[Mapping], object]] = dict(PROTOCOL)
    for column, values in groups.items():
        by[column] = lambda row, values=values: values.get(str(row["participant_id"]))
    made = []
    for name, of in by.items():
        classes: dict[str, list[int]] = {}
        for row in rows:
            if row.get("n_cmb") is not None:
                classes.setdefault(str(of(row) or "not known"), []).append(int(row["n_cmb"]))
        for value in sorted(classes, key=_natural):
            counts = np.array(classes[value])
            low, middle, high = np.percentile(counts, [25, 50, 75])
            made.append(
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
    return made


def odd_ones(rows: Sequence[Mapping]) -> list[dict[str, object]]:
    """Scans that lie far from the others, the farthest first.

    The distance is the modified z-score, in median absolute deviations; where more than half of
    the scans are equal, in mean absolute deviations. What is within a small distance of the median
    (``MEASURES``) is never odd.
    """
    found = []
    for column, (name, near) in MEASURES.items():
        known = [row for row in rows if row.get(column) is not None]
        values = np.array([float(row[column]) for row in known])
        if len(values) < FEWEST:
            continue
        middle = float(np.median(values))
        away = np.abs(values - middle)
        scale = 1.4826 * np.median(away) or 1.2533 * away.mean()
        for row, value, distance in zip(known, values, away, strict=True):
            if scale > 0 and distance > max(near, ODD * scale):
                found.append(
                    {
                        "row": row,
                        "measure": name,
                        "value": float(value),
                        "median": middle,
                        "score": round(float(distance / scale), 1),
                    }
                )
    return sorted(found, key=lambda one: -one["score"])


def _unit(row: Mapping, column: str, unit: str) -> str | None:
    value = row.get(column)
    return None if value is None else f"{float(value):g} {unit}"


def _within(row: Mapping, column: str, edges: Sequence[float], unit: str) -> str | None:
    """The class of a value: up to the first edge, from one to the next, or above the last."""
    if row.get(column) is None:
        return None
    value = float(row[column])
    at = int(np.searchsorted(edges, value - 1e-6))
    if at == 0:
        return f"up to {edges[0]:g} {unit}"
    if at == len(edges):
        return f"above {edges[-1]:g} {unit}"
    return f"{edges[at - 1]:g} to {edges[at]:g} {unit}"


def _natural(name: str) -> tuple:
    """Classes in the order of their numbers; ``up to`` first, words last."""
    order = {"up": 0, "above": 2}.get(name.split(maxsplit=1)[0], 1)
    number = name.split(maxsplit=1)[0]
    try:
        return (order, float(number), name)
    except ValueError:
        return (order if order != 1 else 3, 0.0, name)
