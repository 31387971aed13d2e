"""What a reader looks at: a participant's page, the cohort's, and that of a run under way.

Pages are made from the derivatives and the pictures that lie there. They need no network and no
server, and whatever comes from data is escaped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
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
    locate_figures,
    locate_lesion_table,
)
from bids_cmb.bids.tables import get_source, read_columns, read_results, read_table
from bids_cmb.files import read_json, write_text
from bids_cmb.provenance import fingerprint, software
from bids_cmb.quality.familiarity import percentiles_in_training_set, training_reference
from bids_cmb.report.cohort import count_bars, odd_ones, shifts, size_bars, strata
from bids_cmb.report.viewer import VIEWER
from bids_cmb.review.reviews import place_of

MOST_SESSIONS = 3  # on one page
MOST_HEAD = 2**16  # characters of a page that its beginning may take


@lru_cache(maxsize=1)
def _pages() -> jinja2.Environment:
    """Templates; whatever comes from data is escaped."""
    folder = resources.files("bids_cmb").joinpath("resources/templates")
    texts = {one.name: one.read_text("utf-8") for one in folder.iterdir()}
    made = jinja2.Environment(
        loader=jinja2.DictLoader(texts), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["known"] = lambda value: "–" if value is None else value
    return made


def write_page(folder: Path, subject: str) -> Path:
    """Write a participant's page from the derivatives and the pictures that lie there.

    Where there are more than ``MOST_SESSIONS``, each has a page of its own, and that of the
    participant links to them.

    Args:
        folder: The derivative dataset.
        subject: Label, without ``sub-``.
    """
    path = page_of(folder, subject)
    written = None
    # Several processes may finish scans of one participant at the same time: see the scan tables.
    while written != (scans := _scans(folder, subject)):
        by_session: dict[str, list[dict]] = {}
        for scan in scans:
            by_session.setdefault(scan["session"] or "", []).append(scan)
        links = []
        if len(by_session) > MOST_SESSIONS:
            for session, own in sorted(by_session.items()):
                name = f"sub-{subject}_{session}" if session else f"sub-{subject}_other"
                write_text(folder / f"{name}.html", _page(folder, name, own))
                links.append({"name": name, "scans": own})
        states = [scan["state"] for scan in scans]
        text = _page(folder, f"sub-{subject}", scans if not links else [], links, states)
        write_text(path, text)
        written = scans
    return path


def page_of(folder: Path, subject: str) -> Path:
    """The page of a participant in a derivative dataset."""
    return folder / f"sub-{subject}.html"


def refresh_page(folder: Path, subject: str) -> None:
    """Write a participant's page anew, or remove it where no scan has pictures any more."""
    if any(locate_figures(folder, subject).glob("*_overview.json")):
        write_page(folder, subject)
        return
    page_of(folder, subject).unlink(missing_ok=True)
    names = [home.name for home in list_dirs_of_participant(folder / f"sub-{subject}")]
    for part in ("other", *(name for name in names if name.startswith("ses-"))):
        (folder / f"sub-{subject}_{part}.html").unlink(missing_ok=True)


def shows_result(output: Output) -> bool:
    """Whether the participant's page shows the result of a scan, with the pictures that lie there.

    A page names at its beginning the states of what it shows.
    """
    folder, subject, mask = output.folder, output.scan.subject, output.mask()
    state = _state(folder, subject, mask, read_marker(output.mask(".json")) or {})
    if state not in _states(page_of(folder, subject)):
        return False
    own = folder / f"sub-{subject}_{_session(mask) or 'other'}.html"
    sessions = {_session(path) for path in _masks(folder, subject)}
    return len(sessions) <= MOST_SESSIONS or state in _states(own)


def _masks(folder: Path, subject: str) -> list[Path]:
    return [
        home / str(row["filename"])
        for home in list_dirs_of_participant(folder / f"sub-{subject}")
        for _, row in read_results(home)
    ]


def _states(page: Path) -> set[str]:
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            start = file.read(MOST_HEAD)
    except OSError:
        return set()
    found = re.search(r'<meta name="results" content="([^"]*)">', start)
    return set(found[1].split()) if found else set()


def _state(folder: Path, subject: str, mask: Path, sidecar: Mapping) -> str:
    """A digest of what a page shows of a scan: its result, its pictures, and whether it counts."""
    figures, stem = locate_figures(folder, subject), get_figure_stem(mask)
    made = sidecar.get("Provenance", {})
    return fingerprint(
        result=[made.get("Fingerprint"), made.get("Finished")],
        pictures=read_json(figures / f"{stem}_overview.json"),
        outdated=describe_open_attempt(folder, get_source(sidecar)),
    )[:16]


def _session(mask: Path) -> str | None:
    return next((part for part in mask.name.split("_") if part.startswith("ses-")), None)


def _scans(folder: Path, subject: str) -> list[dict]:
    return [
        _scan(folder, subject, home / str(row["filename"]), sidecar, row)
        for home in list_dirs_of_participant(folder / f"sub-{subject}")
        for sidecar, row in read_results(home)
    ]


def _page(
    folder: Path,
    title: str,
    scans: list[dict],
    links: Sequence[dict] = (),
    states: Sequence[str] | None = None,
) -> str:
    methods = folder / "logs" / "CITATION.md"
    return (
        _pages()
        .get_template("participant.html")
        .render(
            subject=title,
            scans=scans,
            links=links,
            states=[scan["state"] for scan in scans] if states is None else states,
            about=_about(title, scans),
            viewer=any(scan["view"] for scan in scans),
            methods=methods.read_text("utf-8") if methods.is_file() else "",
            software=software(),
        )
    )


def _about(title: str, scans: list[dict]) -> dict:
    """What the review on the page must know."""
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
                    {"index": int(one["index"]), "at": [float(x) for x in place_of(one)]}
                    for one in (*scan["included"], *scan["excluded"])
                ],
                "view": scan["view"],
            }
            for scan in scans
        ],
    }


def _scan(folder: Path, subject: str, mask: Path, sidecar: Mapping, row: Mapping) -> dict:
    state = _state(folder, subject, mask, sidecar)
    stem, figures, table = (
        get_figure_stem(mask),
        locate_figures(folder, subject),
        locate_lesion_table(mask),
    )
    lesions = _lesions(table)
    for lesion in lesions:
        picture = figures / f"{stem}_lesion-{int(lesion['index']):03d}.png"
        there = picture.is_file()
        lesion["picture"] = picture.relative_to(folder).as_posix() if there else None
    drawn = read_json(figures / f"{stem}_overview.json") or {}
    for lesion in lesions:
        lesion["box"] = drawn.get("boxes", {}).get(lesion["index"])
    slabs = drawn.get("slabs", [])
    for slab in slabs:
        slab["path"] = (figures / slab["file"]).relative_to(folder).as_posix()
    quality, view = figures / f"{stem}_quality.png", figures / f"{stem}_view.js"
    look = drawn.get("look")
    if look:
        look["path"] = (figures / look["file"]).relative_to(folder).as_posix()
    return {
        "name": stem.replace("_space-orig", "").replace("_desc-", "_"),
        "filename": mask.relative_to(folder).as_posix(),
        "participant": f"sub-{subject}",
        "session": _session(mask),
        "state": state,
        "outdated": describe_open_attempt(folder, get_source(sidecar)),
        "view": quote(view.relative_to(folder).as_posix()) if view.is_file() else None,
        "row": row,
        "included": [one for one in lesions if one["included"] == "yes"],
        "excluded": [one for one in lesions if one["included"] != "yes"],
        "slabs": slabs,
        "quality": quality.relative_to(folder).as_posix() if quality.is_file() else None,
        "look": look,
        "unlike": percentiles_in_training_set(drawn["measures"]) if "measures" in drawn else [],
        "histogram": _histogram(drawn["histogram"]) if "histogram" in drawn else None,
        "boxed": "boxes" in drawn,
        "gates": [_gate(one) for one in drawn.get("gate", [])],
        "notes": sidecar.get("Notes", []),
        "provenance": sidecar.get("Provenance", {}),
    }


def _lesions(table: Path) -> list[dict]:
    try:
        return read_table(table)
    except FileNotFoundError:  # another process may be making the result anew
        return []


def _gate(strip: Mapping) -> dict:
    """A gate's strip as bars of SVG, 300 wide and 100 high: each slice's, and which lesions it has.

    A lesion stands at the slice that is nearest to it.
    """
    places = [at for at, _ in strip["slices"]]
    wide = (max(places) - min(places)) / max(1, len(places) - 1) or 1.0
    unit = 300 / (max(places) - min(places) + wide)
    bars = [
        {
            "x": round((at - min(places)) * unit, 2),
            "width": round(0.9 * wide * unit, 2),
            "height": round(100 * probability, 1),
            "probability": probability,
            "open": probability >= strip["threshold"],
            "lesions": [],
        }
        for at, probability in strip["slices"]
    ]
    for index, place in strip["lesions"]:
        nearest = min(range(len(places)), key=lambda at: abs(places[at] - place))
        bars[nearest]["lesions"].append(index)
    return {**strip, "bars": bars, "opened": sum(bar["open"] for bar in bars)}


@dataclass(frozen=True)
class Cohort:
    """What the cohort's page tells.

    Attributes:
        rows: Of the group table.
        regions: Of the table of prevalence.
        diameters: Of the counted lesions, mm.
        groups: Site and scanner of each participant: column → participant → value.
        agreement: Of the readers, two by two; empty without reviews.
        regions_reviewed: As ``regions``, after review; empty without.
    """

    rows: list[dict]
    regions: list[dict] = field(default_factory=list)
    diameters: list[float] = field(default_factory=list)
    groups: dict[str, dict[str, str]] = field(default_factory=dict)
    agreement: list[dict] = field(default_factory=list)
    regions_reviewed: list[dict] = field(default_factory=list)


def _histogram(shares: list[float]) -> dict[str, str]:
    """A scan's histogram and the band of the training scans, as points of SVG polygons."""
    band = training_reference()["histogram"]
    high = max(*shares, *band["95"])
    right = len(shares)

    def points(values: list[float]) -> list[str]:
        return [
            f"{300 * (at + half) / right:.1f},{100 - 100 * value / high:.1f}"
            for at, value in enumerate(values)
            for half in (0, 1)
        ]

    return {
        "own": " ".join(["0,100", *points(shares), "300,100"]),
        "band": " ".join([*points(band["95"]), *points(band["5"])[::-1]]),
    }


def write_group_page(folder: Path, cohort: Cohort, picture: str, after: str = "") -> None:
    """Write the cohort's page.

    Args:
        folder: The derivative dataset.
        cohort: What it tells.
        picture: File name of the map's picture; it is shown if it is there.
        after: File name of that after review.
    """
    read = [row for row in cohort.rows if row.get("n_cmb") is not None]
    counts = [int(row["n_cmb"]) for row in read]
    reviewed = [row for row in read if row.get("n_cmb_reviewed") is not None]
    page = _pages().get_template("group.html").render(
        rows=cohort.rows,
        regions=_of_everyone(cohort.regions),
        picture=picture if (folder / picture).is_file() else None,
        picture_after=after if reviewed and (folder / after).is_file() else None,
        regions_after={row["region"]: row for row in _of_everyone(cohort.regions_reviewed)},
        shifts=shifts(read) if reviewed else [],
        read=len(counts),
        lesions=sum(counts),
        with_any=sum(count > 0 for count in counts),
        bins={name: sum(row.get("burden") == name for row in cohort.rows)
              for name in ("0", "1", "2-4", "5-10", ">10")},
        counts=count_bars(read),
        sizes=size_bars(cohort.diameters) if cohort.diameters else [],
        strata=strata(read, cohort.groups),
        odd=odd_ones(read),
        failures=[row for row in cohort.rows if row.get("status") not in ("ok", None)],
        agreement=cohort.agreement,
        reviewed=len(reviewed),
        before=sum(int(row["n_cmb"]) for row in reviewed),
        after=sum(int(row["n_cmb_reviewed"]) for row in reviewed),
    )  # fmt: skip
    write_text(folder / "group_microbleeds.html", page)


def _of_everyone(rows: Sequence[Mapping]) -> list[Mapping]:
    return [row for row in rows if row["stratum_variable"] == "all"]


def write_status(path: Path, **facts: object) -> None:
    """Write the page of a run under way.

    Args:
        path: Of the page.
        **facts: ``scans`` to read, of which ``ended``, of which ``done`` were read; ``skipped``
            before; ``failed``: (scan, sentence); ``last``: sentences; ``left``: how long it will
            take, empty if nobody knows yet, None if the run has ended; ``began`` and ``time``.
    """
    write_text(path, _pages().get_template("status.html").render(**facts))
