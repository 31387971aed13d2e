"""Summary at the head of a page: where the lesions of a scan lie, and how adequate the scan is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bids_cmb.anatomy.mars import list_regions
from bids_cmb.imaging.protocol_kinds import THICK_SLICES_MM
from bids_cmb.lesions.table import SMALL_MM, TERRITORIES, get_size
from bids_cmb.quality.ghosting import GHOST_LIMIT_PERCENT
from bids_cmb.quality.measures import MAX_TRUNCATION_PERCENT, MIN_ECHO_T_MS
from bids_cmb.report.performance import describe_entry

USUAL_ECHO_T_MS = 60  # 3 T and 20 ms, 1.5 T and 40 ms
COARSE_SLICES_MM = 3.0  # thick sections miss microbleeds: Nandigam et al., AJNR 2009;30:338-343
COVERED_PERCENT = 5.0  # of FOV truncation: the spinal end of the brainstem
SIDES = ("left", "right")
MOTION_HARM = "Motion hides small microbleeds, and where dark streaks cross they look like them."


@dataclass(frozen=True)
class Statement:
    """A statement on how adequate a scan is for microbleeds.

    Attributes:
        name: Of what it is about.
        text: A sentence.
        doubtful: Whether it makes the counts doubtful.
    """

    name: str
    text: str
    doubtful: bool = False


def tabulate_counts(lesions: Sequence[Mapping]) -> list[dict[str, object]]:
    """Tabulate lesions by territory, region of MARS, side and size class.

    Args:
        lesions: Rows of the lesion table that count; a lesion that a reader added has no size.

    Returns:
        A row for each territory (none if no place is known), for each region in it with a lesion,
        for the lesions whose place is not known if there are any, and for all: ``name``, ``level``
        (``territory``, ``region`` or ``all``), and the numbers ``left``, ``right``, ``small``,
        ``large`` and ``all``.
    """
    rows = []
    lost = [row for row in lesions if row.get("territory") not in TERRITORIES]
    for territory in TERRITORIES if len(lost) < len(lesions) else ():
        inside = [row for row in lesions if row.get("territory") == territory]
        rows.append(_count(territory, "territory", inside))
        for region in (*list_regions(territory), None):
            here = [row for row in inside if row.get("mars_region") == region]
            if here:
                rows.append(_count(region or "lobe not known", "region", here))
    if lost:
        rows.append(_count("place not known", "territory", lost))
    return [*rows, _count("all", "all", lesions)]


def _count(name: str, level: str, lesions: Sequence[Mapping]) -> dict[str, object]:
    sizes = [get_size(row) for row in lesions if row.get("equivalent_diameter_mm")]
    sides = [row.get("mars_side") for row in lesions]
    small = sum(size < SMALL_MM for size in sizes)
    return {
        "name": name,
        "level": level,
        **{side: sides.count(side) for side in SIDES},
        "small": small,
        "large": len(sizes) - small,
        "all": len(lesions),
    }


def describe_adequacy(row: Mapping, measured: Sequence[Mapping] = ()) -> list[Statement]:
    """Describe in words how adequate a scan is for microbleeds.

    Args:
        row: Of the scan table.
        measured: What its detector found and missed, as `detection.performance` selects it from
            the model card.
    """
    flags = (row.get("quality_flags") or "").split(",")
    return [
        _describe_echo(row.get("field_strength_t"), row.get("echo_time_ms")),
        _describe_slices(row, measured),
        _describe_coverage(row, implausible="brain_volume" in flags),
        _describe_noise(row.get("brain_snr")),
        _describe_motion(row.get("ghost_percent")),
        *_describe_file(flags),
    ]


def _describe_echo(field_t: float | None, echo_ms: float | None) -> Statement:
    name = "field and echo"
    if field_t is None and echo_ms is None:
        text = "Field strength and echo time are not known: the scan's sidecar has neither."
        return Statement(name, text, doubtful=True)
    if field_t is None or echo_ms is None:
        known = f"{field_t:g} T; the echo time" if echo_ms is None else (
            f"Echo time {echo_ms:g} ms; the field strength"
        )  # fmt: skip
        return Statement(name, f"{known} is not known.", doubtful=True)
    product = field_t * echo_ms
    known = f"{field_t:g} T, echo time {echo_ms:g} ms: {product:.0f} T ms"
    if product < MIN_ECHO_T_MS:
        text = f"{known}, too short; small microbleeds may not show."
        return Statement(name, text, doubtful=True)
    return Statement(name, f"{known}; about {USUAL_ECHO_T_MS} are usual for microbleeds.")


def _describe_slices(row: Mapping, measured: Sequence[Mapping]) -> Statement:
    spacing = row.get("slice_spacing_mm")
    if spacing is None:
        return Statement("slices", "Their thickness is not known.", doubtful=True)
    voxel = (
        f"{row['voxel_size_1_mm']:.2g} × {row['voxel_size_2_mm']:.2g} mm, {spacing:.2g} mm apart"
    )
    if spacing < THICK_SLICES_MM:
        return Statement("slices", f"{voxel}: thin enough to tell dots from vessels.")
    text = (
        f"{voxel}: thick. Small microbleeds fade in them or are missed, and vessels across a slice "
        f"look like microbleeds. {_describe_thick_performance(row, measured)}"
    )
    return Statement("slices", text, doubtful=spacing >= COARSE_SLICES_MM)


def _describe_thick_performance(row: Mapping, measured: Sequence[Mapping]) -> str:
    """Describe what a detector found in scans with slices like these."""
    alike = [entry for entry in measured if "Kind" in entry]
    if not alike:
        return "What this detector finds and misses in such slices was not measured by itself."
    return " ".join(describe_entry(entry, float(row["threshold"])) for entry in alike)


def _describe_coverage(row: Mapping, *, implausible: bool) -> Statement:
    name, percent = "coverage", row.get("fov_truncation_percent")
    side = row.get("fov_truncation_side") or "outermost"
    if implausible:
        text = f"The brain mask has {row['brain_ml']:.0f} ml, which no whole adult brain has."
        return Statement(name, f"{text} See its outline below.", doubtful=True)
    if percent is None:
        return Statement(name, "It is not known.", doubtful=True)
    if percent < COVERED_PERCENT:
        return Statement(name, "The whole brain.")
    shown = f"The {side} edge of the field of view still shows {percent:.0f} % of the largest"
    shown += " cross-section of the brain"
    if percent <= MAX_TRUNCATION_PERCENT:
        return Statement(name, f"{shown}: nearly the whole brain.")
    return Statement(name, f"{shown}: the brain is not covered whole.", doubtful=True)


def _describe_noise(snr: float | None) -> Statement:
    if snr is None:
        return Statement("noise", "Not measured: look at the overview.")
    return Statement("noise", f"Signal to noise {snr:.0f} or more.")


def _describe_motion(ghost_percent: float | None) -> Statement:
    name = "motion"
    if ghost_percent is None:
        text = (
            "Not measured: ghosts show in the air around a head, and this scan has too little of "
            "it, or its background was removed. Look in the overview for ghosts and blurred edges."
        )
        return Statement(name, f"{text} {MOTION_HARM}")
    measured = f"Ghosts beside the head have {ghost_percent:.1f} % of the brain's signal"
    if ghost_percent < GHOST_LIMIT_PERCENT:
        text = (
            f"{measured}, as those of a head at rest. A single jerk may leave few: look for blur."
        )
        return Statement(name, text)
    text = f"{measured}; a head at rest has less than {GHOST_LIMIT_PERCENT:g} %. {MOTION_HARM}"
    return Statement(name, text, doubtful=True)


def _describe_file(flags: Sequence[str]) -> list[Statement]:
    texts = {
        "header_corrected": "Its header was corrected, or two entries of it disagree: see below.",
        "nonfinite": "It has voxels that are no numbers.",
    }
    return [Statement("file", text, doubtful=True) for key, text in texts.items() if key in flags]
