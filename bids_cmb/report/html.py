"""HTML pages: a participant's and the cohort's.

Pages come from derivatives and pictures, need no network, and escape what comes from data.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import jinja2

from bids_cmb import __version__
from bids_cmb.bids.attempts import describe_open_attempt
from bids_cmb.bids.markers import read_marker
from bids_cmb.bids.paths import (
    Output,
    get_figure_stem,
    list_dirs_of_participant,
    list_session_pages,
    locate_candidate_table,
    locate_figures,
    locate_lesion_table,
)
from bids_cmb.bids.tables import get_source, read_columns, read_results, read_table
from bids_cmb.files import read_json, write_text
from bids_cmb.lesions.table import get_position
from bids_cmb.provenance import fingerprint, software
from bids_cmb.quality.familiarity import compare_with_training_set, load_training_reference
from bids_cmb.report.cohort import (
    bin_counts,
    bin_diameters,
    compare_reviewed,
    find_outliers,
    summarize_strata,
)
from bids_cmb.report.embedding import MAX_EMBEDDED_BYTES, embed_pictures, is_linked
from bids_cmb.report.follow_up import collect_follow_ups, list_crops
from bids_cmb.report.methods import DEEP_WHITE_MATTER
from bids_cmb.report.performance import describe_candidates, describe_performance
from bids_cmb.report.summary import describe_adequacy, tabulate_counts
from bids_cmb.report.viewer import VIEWER
from bids_cmb.resource_files import RESOURCES
from bids_cmb.review.records import read_record
from bids_cmb.review.reviews import NOT_REVIEWED

MAX_SESSIONS_PER_PAGE = 3
MAX_KEY_IMAGES = 6
MAX_HEAD_CHARACTERS = 2**16  # within which a page names the results that it shows


@lru_cache(maxsize=1)
def _load_templates() -> jinja2.Environment:
    """Load the templates; whatever comes from data is escaped."""
    templates = (RESOURCES / "templates").iterdir()
    texts = {template.name: template.read_text("utf-8") for template in templates}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["known"] = lambda value: "–" if value is None else value
    return environment


def write_page(folder: Path, subject: str) -> Path:
    """Write a participant's page from its derivatives.

    With more than ``MAX_SESSIONS_PER_PAGE`` sessions each has a page of its own, to which the
    participant's page links.

    Args:
        folder: The derivative dataset.
        subject: Label, without ``sub-``.
    """
    path = get_page_path(folder, subject)
    written = None
    # Several processes may finish scans of one participant at the same time: see the scan tables.
    while written != (scans := _collect_scans(folder, subject)):
        by_session: dict[str, list[dict]] = {}
        for scan in scans:
            by_session.setdefault(scan["session"] or "", []).append(scan)
        links, stale = [], set(list_session_pages(folder, subject))
        if len(by_session) > MAX_SESSIONS_PER_PAGE:
            for session, session_scans in sorted(by_session.items()):
                name = f"sub-{subject}_{session}" if session else f"sub-{subject}_other"
                page = folder / f"{name}.html"
                write_text(page, _render_page(folder, name, session_scans))
                stale.discard(page)
                links.append({"name": name, "scans": session_scans})
        follow_ups = collect_follow_ups(folder, subject)
        states = [item["state"] for item in (*scans, *follow_ups)]
        shown = [] if links else scans
        write_text(path, _render_page(folder, path.stem, shown, links, states, follow_ups))
        for page in stale:
            page.unlink(missing_ok=True)
        written = scans
    return path


def get_page_path(folder: Path, subject: str) -> Path:
    """Get the path of a participant's page in a derivative dataset."""
    return folder / f"sub-{subject}.html"


def refresh_page(folder: Path, subject: str) -> None:
    """Write a participant's page again, or remove it if no scan has pictures any more."""
    if any(locate_figures(folder, subject).glob("*_overview.json")):
        write_page(folder, subject)
        return
    for page in (get_page_path(folder, subject), *list_session_pages(folder, subject)):
        page.unlink(missing_ok=True)


def shows_result(output: Output) -> bool:
    """Check whether the participant's page shows the current result and pictures of a scan.

    A page names in its head the states of what it shows.
    """
    folder, subject, mask = output.folder, output.scan.subject, output.mask()
    state = _compute_state(folder, subject, mask, read_marker(output.mask(".json")) or {})
    if state not in _read_states(get_page_path(folder, subject)):
        return False
    session_page = folder / f"sub-{subject}_{_get_session(mask) or 'other'}.html"
    sessions = {_get_session(path) for path in _list_masks(folder, subject)}
    return len(sessions) <= MAX_SESSIONS_PER_PAGE or state in _read_states(session_page)


def shows_follow_ups(folder: Path, subject: str) -> bool:
    """Check whether the participant's page shows its follow-ups as they are."""
    states = {follow_up["state"] for follow_up in collect_follow_ups(folder, subject)}
    return states <= _read_states(get_page_path(folder, subject))


def _list_masks(folder: Path, subject: str) -> list[Path]:
    return [
        results_dir / str(row["filename"])
        for results_dir in list_dirs_of_participant(folder / f"sub-{subject}")
        for _, row in read_results(results_dir)
    ]


def _read_states(page: Path) -> set[str]:
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            start = file.read(MAX_HEAD_CHARACTERS)
    except OSError:
        return set()
    match = re.search(r'<meta name="results" content="([^"]*)">', start)
    return set(match[1].split()) if match else set()


def _compute_state(folder: Path, subject: str, mask: Path, sidecar: Mapping) -> str:
    """Compute a digest of what a page shows of a scan: result, pictures, and if it is current."""
    figures, stem = locate_figures(folder, subject), get_figure_stem(mask)
    provenance = sidecar.get("Provenance", {})
    return fingerprint(
        result=[provenance.get("Fingerprint"), provenance.get("Finished")],
        pictures=read_json(figures / f"{stem}_overview.json"),
        review=read_record(mask),
        outdated=describe_open_attempt(folder, get_source(sidecar)),
    )[:16]


def _get_session(mask: Path) -> str | None:
    return next((part for part in mask.name.split("_") if part.startswith("ses-")), None)


def _collect_scans(folder: Path, subject: str) -> list[dict]:
    return [
        _collect_scan(folder, subject, results_dir / str(row["filename"]), sidecar, row)
        for results_dir in list_dirs_of_participant(folder / f"sub-{subject}")
        for sidecar, row in read_results(results_dir)
    ]


def _render_page(
    folder: Path,
    title: str,
    scans: list[dict],
    links: Sequence[dict] = (),
    states: Sequence[str] | None = None,
    follow_ups: Sequence[dict] = (),
) -> str:
    methods = folder / "logs" / "CITATION.md"
    pictures = [*list_crops(follow_ups), *_list_pictures(scans)]
    addresses = embed_pictures(folder, pictures, limit=MAX_EMBEDDED_BYTES)
    return (
        _load_templates()
        .get_template("participant.html")
        .render(
            subject=title,
            scans=scans,
            addresses=addresses,
            linked=sum(map(is_linked, addresses.values())),
            links=links,
            follow_ups=follow_ups,
            states=[scan["state"] for scan in scans] if states is None else states,
            about=_make_review_data(title, scans),
            viewer=any(scan["view"] for scan in scans),
            methods=methods.read_text("utf-8") if methods.is_file() else "",
            software=software(),
            deep_white_matter=DEEP_WHITE_MATTER,
        )
    )


def _make_review_data(title: str, scans: list[dict]) -> dict:
    """Collect what the script of the review on the page needs."""
    return {
        "subject": title,
        "version": __version__,
        "columns": list(read_columns("review")),
        "viewer": f"{VIEWER}/niivue.umd.js",
        "scans": [
            {
                "filename": scan["filename"],
                "participant_id": scan["participant"],
                "session_id": scan["session"],
                "lesions": [
                    {
                        "index": int(lesion["index"]),
                        "at": [float(x) for x in get_position(lesion)],
                        "kind": kind,
                    }
                    for kind in ("included", "excluded", "candidates")
                    for lesion in scan[kind]
                ],
                "view": scan["view"],
            }
            for scan in scans
        ],
    }


def _collect_scan(folder: Path, subject: str, mask: Path, sidecar: Mapping, row: Mapping) -> dict:
    """Collect what the page shows of a scan."""
    stem, figures = get_figure_stem(mask), locate_figures(folder, subject)

    def relative(name: str) -> str:
        return (figures / name).relative_to(folder).as_posix()

    overview = read_json(figures / f"{stem}_overview.json") or {}
    lesions = _read_lesions(locate_lesion_table(mask))
    candidates = _read_lesions(locate_candidate_table(mask))
    record = read_record(mask)
    for lesion in (*lesions, *candidates):
        lesion["picture"] = relative(f"{stem}_lesion-{int(lesion['index']):03d}.webp")
        lesion["tiles"] = overview.get("closeups", {}).get(lesion["index"], [])
        lesion["verdict"] = record["Verdicts"].get(lesion["index"]) if record else None
    slabs, network_view = overview.get("slabs", []), overview.get("look")
    for picture in (*slabs, *([network_view] if network_view else [])):
        picture["path"] = relative(picture["file"])
    counting = [*lesions, *candidates] if record else lesions
    counting = [lesion for lesion in counting if _counts(lesion)]
    viewer_data = relative(f"{stem}_view.js")
    return {
        "name": stem.replace("_space-orig", "").replace("_desc-", "_"),
        "filename": mask.relative_to(folder).as_posix(),
        "participant": f"sub-{subject}",
        "session": _get_session(mask),
        "state": _compute_state(folder, subject, mask, sidecar),
        "outdated": describe_open_attempt(folder, get_source(sidecar)),
        "view": quote(viewer_data) if (folder / viewer_data).is_file() else None,
        "review": record,
        "table": tabulate_counts([*counting, *(record["Added"] if record else [])]),
        "key": [lesion for lesion in counting if lesion["tiles"]][:MAX_KEY_IMAGES],
        "adequacy": describe_adequacy(row, (sidecar.get("Performance") or {}).get("Measured", [])),
        "row": row,
        "included": [lesion for lesion in lesions if lesion["included"] == "yes"],
        "excluded": [lesion for lesion in lesions if lesion["included"] != "yes"],
        "candidates": candidates,
        "below": describe_candidates(sidecar),
        "thick": overview.get("thick", False),
        "slabs": slabs,
        "quality": relative(f"{stem}_quality.webp") if overview else None,
        "look": network_view,
        "comparison": compare_with_training_set(overview["measures"])
        if "measures" in overview
        else [],
        "histogram": _make_histogram_points(overview["histogram"])
        if "histogram" in overview
        else None,
        "notes": sidecar.get("Notes", []),
        "performance": describe_performance(sidecar),
        "provenance": sidecar.get("Provenance", {}),
    }


def _counts(lesion: Mapping) -> bool:
    """Check whether a lesion or candidate counts, after its review if there is one."""
    if lesion["verdict"] in (None, NOT_REVIEWED):
        return lesion["included"] == "yes"
    return lesion["verdict"] == "accept"


def _list_pictures(scans: Sequence[Mapping]) -> list[str]:
    """List the pictures of a page, the most important first."""
    listed = [lesion["picture"] for scan in scans for lesion in (*scan["key"], *scan["included"])]
    listed += [slab["path"] for scan in scans for slab in scan["slabs"]]
    listed += [scan["quality"] for scan in scans if scan["quality"]]
    for kind in ("excluded", "candidates"):
        listed += [lesion["picture"] for scan in scans for lesion in scan[kind]]
    return listed + [scan["look"]["path"] for scan in scans if scan["look"]]


def _read_lesions(table: Path) -> list[dict]:
    try:
        return read_table(table)
    except FileNotFoundError:  # another process may be replacing the result
        return []


@dataclass(frozen=True)
class Cohort:
    """Results of a cohort, as its page shows them.

    Attributes:
        rows: Of the group table.
        regions: Rows of the table of prevalence.
        diameters: Of the counted lesions, mm.
        groups: Site and scanner of each participant: column → participant → value.
        agreement: Rows for every two readers; empty without reviews.
        regions_reviewed: As ``regions``, after review; empty without reviews.
        performance: Sentences on what the detectors found and missed.
        pairs: Rows for every two consecutive visits of a participant.
    """

    rows: list[dict]
    regions: list[dict] = field(default_factory=list)
    diameters: list[float] = field(default_factory=list)
    groups: dict[str, dict[str, str]] = field(default_factory=dict)
    agreement: list[dict] = field(default_factory=list)
    regions_reviewed: list[dict] = field(default_factory=list)
    performance: list[str] = field(default_factory=list)
    pairs: list[dict] = field(default_factory=list)


def _make_histogram_points(percents: list[float]) -> dict[str, str]:
    """Make SVG polygons of a scan's histogram and the band of the training scans."""
    band = load_training_reference()["histogram"]
    top = max(*percents, *band["95"])
    n_bins = len(percents)

    def points(values: list[float]) -> list[str]:
        return [
            f"{300 * (index + side) / n_bins:.1f},{100 - 100 * value / top:.1f}"
            for index, value in enumerate(values)
            for side in (0, 1)
        ]

    return {
        "scan": " ".join(["0,100", *points(percents), "300,100"]),
        "band": " ".join([*points(band["95"]), *points(band["5"])[::-1]]),
    }


def write_group_page(folder: Path, cohort: Cohort, picture: str, picture_after: str = "") -> None:
    """Write the cohort's page.

    Args:
        folder: The derivative dataset.
        cohort: Results to show.
        picture: File name of the map's picture; it is shown if it exists.
        picture_after: File name of the picture after review, likewise.
    """
    processed = [row for row in cohort.rows if row.get("n_cmb") is not None]
    counts = [int(row["n_cmb"]) for row in processed]
    reviewed = [row for row in processed if row.get("n_cmb_reviewed") is not None]
    addresses = embed_pictures(folder, [picture, *([picture_after] if reviewed else [])])
    page = _load_templates().get_template("group.html").render(
        rows=cohort.rows,
        regions=_select_overall(cohort.regions),
        picture=addresses.get(picture),
        picture_after=addresses.get(picture_after),
        regions_after={row["region"]: row for row in _select_overall(cohort.regions_reviewed)},
        changes=compare_reviewed(processed) if reviewed else [],
        read=len(counts),
        lesions=sum(counts),
        with_any=sum(count > 0 for count in counts),
        bins={name: sum(row.get("burden") == name for row in cohort.rows)
              for name in read_columns("scan")["burden"]["Levels"]},
        counts=bin_counts(processed),
        sizes=bin_diameters(cohort.diameters) if cohort.diameters else [],
        strata=summarize_strata(processed, cohort.groups),
        outliers=find_outliers(processed),
        failures=[row for row in cohort.rows if row.get("status") not in ("ok", None)],
        agreement=cohort.agreement,
        performance=cohort.performance,
        pairs=cohort.pairs,
        deep_white_matter=DEEP_WHITE_MATTER,
        reviewed=len(reviewed),
        before=sum(int(row["n_cmb"]) for row in reviewed),
        after=sum(int(row["n_cmb_reviewed"]) for row in reviewed),
    )  # fmt: skip
    write_text(folder / "group_microbleeds.html", page)


def _select_overall(rows: Sequence[Mapping]) -> list[Mapping]:
    return [row for row in rows if row["stratum_variable"] == "all"]
