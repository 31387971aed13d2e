"""What a count may miss, in sentences for a reader of the page."""

from collections.abc import Mapping, Sequence

from bids_cmb.detection.performance import REAL

CONTRASTS = {"T2starw": "T2*-weighted", "T2star": "T2*-weighted", "swi": "SWI"}  # by BIDS suffix
CLOSING = "A count of 0 does not exclude microbleeds, and some that are counted may be mimics."


def describe_performance(sidecar: Mapping) -> dict:
    """Describe what a detector found and missed on scans with known microbleeds.

    Args:
        sidecar: Of a scan's lesion mask. Its ``Performance`` has ``Contrast``, the BIDS suffix of
            the scan; ``Measured``, as `detection.performance.select_performance` gives it; and
            ``Limits``. Its ``Microbleeds`` have the threshold that the scan was processed with.

    Returns:
        ``warning``: a sentence if the detector was never tried on real scans of that contrast, or
        on none at all, else None; ``found``: sentences on what it found and missed, the last one
        on what a count means; ``limits``: those of its card.
    """
    performance = sidecar.get("Performance") or {}
    measured = performance.get("Measured", [])
    contrast = _name_contrast(performance.get("Contrast", ""))
    tried = any(
        entry["Data"] == REAL and _name_contrast(entry["Contrast"]) == contrast
        for entry in measured
    )
    unknown = "What this detector finds and misses was not measured."
    sentences = _list_sentences(measured, sidecar["Microbleeds"]["threshold"]) if measured else []
    return {
        "warning": None
        if tried or not contrast
        else f"This detector was never tried on real {contrast} scans with known microbleeds.",
        "found": [*(sentences or [unknown]), CLOSING],
        "limits": performance.get("Limits", []),
    }


def describe_candidates(sidecar: Mapping) -> dict | None:
    """Describe the candidates that a scan lists below the threshold of its lesions.

    Args:
        sidecar: Of a scan's lesion mask. Its ``Candidates`` have ``Threshold``, ``Listed`` and
            ``Omitted`` (numbers of candidates), and ``Measured``, what the detector found and
            missed down to that threshold.

    Returns:
        ``threshold``, ``omitted``, and ``found``: sentences on real scans, if it was measured on
        any at that threshold; None where the detector has no lower threshold.
    """
    listed = sidecar.get("Candidates")
    if not listed:
        return None
    threshold = listed["Threshold"]
    real = [
        entry
        for entry in listed.get("Measured", [])
        if entry["Data"] == REAL and not _describe_threshold(entry, threshold)
    ]
    return {
        "threshold": threshold,
        "omitted": listed["Omitted"],
        "found": _list_sentences(real, threshold),
    }


def describe_entry(entry: Mapping, threshold: float) -> str:
    """Describe in a sentence what a detector found and missed on some scans.

    Args:
        entry: As `detection.performance.select_performance` gives it.
        threshold: Of the scan; another one that the entry has is named.
    """
    return (
        f"On {_describe_scans(entry)} this detector found {entry['Found']} of "
        f"{entry['Microbleeds']} microbleeds, with {entry['FalsePerScan']:.1f} false per scan"
        f"{_describe_threshold(entry, threshold)}."
    )


def _list_sentences(measured: Sequence[Mapping], threshold: float) -> list[str]:
    return [describe_entry(entry, threshold) for entry in measured]


def _describe_scans(entry: Mapping) -> str:
    """Describe the scans of an entry: "5 real T2*-weighted scans"."""
    words = [str(entry["Scans"]), entry["Data"]]
    if "Contrast" in entry:
        words.append(_name_contrast(entry["Contrast"]))
    kind = f" of this kind ({entry['Kind']})" if "Kind" in entry else ""
    return f"{' '.join(words)} scan{'' if entry['Scans'] == 1 else 's'}{kind}"


def _name_contrast(suffix: str) -> str:
    return CONTRASTS.get(suffix, suffix)


def _describe_threshold(entry: Mapping, threshold: float) -> str:
    """Name the threshold of an entry if it is not that of the scan."""
    measured = entry["Threshold"]
    return "" if round(measured, 3) == round(threshold, 3) else f" at threshold {measured:.3g}"
