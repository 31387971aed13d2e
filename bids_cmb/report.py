"""What a reader looks at: a scan's pictures, a participant's page, and the cohort's.

Pictures are plain PNG files in ``figures``; what is written over them is SVG and text of the page,
so that it stays sharp, can be read aloud and follows light and dark. Pages need no network and no
server. Slices are shown as radiologists do: the participant's right is on the left.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
from PIL import Image

from bids_cmb import __version__
from bids_cmb.derivatives import (
    Output,
    columns,
    figures_of,
    finished,
    homes,
    lesion_table_of,
    read_json,
    read_table,
    stem_of,
    write_json,
)
from bids_cmb.familiarity import compared, histogram, measures, trained_on
from bids_cmb.files import replacing, write_text
from bids_cmb.preprocessing import Grid, preprocess
from bids_cmb.provenance import software
from bids_cmb.reviews import place_of
from bids_cmb.tabulation import count_bars, odd_ones, size_bars, strata
from bids_cmb.view import VIEWER, write_view, write_viewer
from bids_cmb.volume import Volume, resample_like

SLAB_MM = 10.0  # of the overview's minimum-intensity pictures
MARGIN_MM = 6.0  # that is kept around the brain
OVERVIEW_PX, PX_PER_MM = 300, 7
REACH_MM = 13.0  # to either side of a lesion in its pictures
BRIGHT = 99.5  # percentile of the brain that is white
RING_MM = 7.0  # about a lesion in its slab
WHITE, INK = 254, 255  # values of a picture; INK is drawn in a colour
COLOUR = (230, 159, 0)  # orange of a palette that the colour-blind tell apart
PALETTE = [value for grey in range(INK) for value in (grey, grey, grey)] + [*COLOUR]
MOST_SESSIONS = 3  # on one page
MOST_PICTURED = 100  # lesions; the table has all
CLOSE_PX = round(2 * REACH_MM * PX_PER_MM)  # of each picture of a lesion


def draw(
    output: Output,
    image: Volume,
    brain: Volume,
    labels: Volume,
    lesions: list[dict],
    *,
    interactive: bool = False,
) -> None:
    """Draw a scan's pictures into the ``figures`` of its participant, and what lies where in them.

    Args:
        output: Of the scan.
        image: The scan.
        brain: Its brain mask, on the scan's grid.
        labels: Each lesion's index in its voxels, on the scan's grid.
        lesions: Rows of the lesion table.
        interactive: Whether the page shall carry the scan, and the dataset the viewer.
    """
    seen = preprocess(image, brain, Grid(axes="slices", margin=REACH_MM + MARGIN_MM))
    marks = resample_like(labels, seen.image, order=0).data
    top = float(np.percentile(seen.image.data[seen.brain.data], BRIGHT)) or 1.0
    grey = np.clip(seen.image.data / top * WHITE, 0, WHITE).astype(np.uint8)
    grey, marks, inside = (part[::-1] for part in (grey, marks, seen.brain.data))  # right is left
    places = {}
    for row in lesions:
        at = seen.image.index(np.array([float(row[axis]) for axis in ("x_mm", "y_mm", "z_mm")]))
        places[int(row["index"])] = np.array([grey.shape[0] - 1 - at[0], at[1], at[2]])
    folder, stem = figures_of(output.folder, output.scan.subject), stem_of(output.mask())
    for old in folder.glob(f"{stem}_*"):
        old.unlink()
    slabs = _overview(folder, stem, grey, inside, seen.image.spacing, places)
    for index in list(places)[:MOST_PICTURED]:
        picture = _close(grey, marks, index, seen.image.spacing, places[index])
        _save(folder / f"{stem}_lesion-{index:03d}.png", picture)
    _quality(folder / f"{stem}_quality.png", grey, inside, seen.image.spacing)
    about = {
        "slabs": slabs,
        "measures": measures(image, brain),
        "histogram": histogram(image, brain),
    }
    write_json(folder / f"{stem}_overview.json", about)
    if interactive:
        write_viewer(output.folder)
        write_view(folder / f"{stem}_view.js", image, brain, labels, lesions)


def _overview(
    folder: Path, stem: str, grey: np.ndarray, inside: np.ndarray, spacing: np.ndarray, places: dict
) -> list[dict]:
    """Minimum-intensity slabs from top to bottom, and where the lesions lie in them, in percent."""
    spots = np.argwhere(inside)
    margin = np.ceil(MARGIN_MM / spacing[:2]).astype(int)
    low = np.maximum(spots.min(axis=0)[:2] - margin, 0)
    high = np.minimum(spots.max(axis=0)[:2] + 1 + margin, grey.shape[:2])
    thick = max(1, round(SLAB_MM / spacing[2]))
    found = []
    for start in range(int(spots[:, 2].min()), int(spots[:, 2].max()) + 1, thick):
        end = min(start + thick, grey.shape[2])
        part = grey[low[0] : high[0], low[1] : high[1], start:end].min(axis=2)
        name = f"{stem}_slab-{len(found) + 1:02d}.png"
        size = part.shape * spacing[:2]
        _save(folder / name, _sized(part, size * OVERVIEW_PX / size.max()))
        here = {
            index: [round(float(x), 1) for x in (at[:2] - low + 0.5) / part.shape * 100]
            for index, at in places.items()
            if start <= round(float(at[2])) < end
        }
        marks = [{"index": i, "x": x, "y": round(100 - y, 1)} for i, (x, y) in here.items()]
        found.append({"file": name, "marks": marks})
    return found[::-1]


def _close(
    grey: np.ndarray, marks: np.ndarray, index: int, spacing: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """A lesion from near, in one picture.

    Above: its slice, both planes across the slices, and the minimum over ``SLAB_MM``. Below: the
    three planes with its contour, and the slab once more with a ring.
    """
    centre = np.clip(np.rint(at).astype(int), 0, np.array(grey.shape) - 1)
    reach = np.ceil(REACH_MM / spacing).astype(int)
    box = tuple(
        np.clip(np.arange(c - r, c + r + 1), 0, n - 1)
        for c, r, n in zip(centre, reach, grey.shape, strict=True)
    )
    near, own = grey[np.ix_(*box)], marks[np.ix_(*box)] == index
    size = (2 * reach + 1) * spacing * PX_PER_MM
    i, j, k = reach
    half = round(SLAB_MM / 2 / spacing[2])
    planes = [
        (near[:, :, k], own[:, :, k], size[:2]),
        (near[:, j, :], own[:, j, :], size[[0, 2]]),
        (near[i, :, :], own[i, :, :], size[1:]),
        (near[:, :, max(0, k - half) : k + half + 1].min(axis=2), None, size[:2]),
    ]
    above, below = [], []
    for plane, mask, across in planes:
        picture = _sized(plane, across)
        above.append(_middle(picture))
        outlined = _ringed(picture) if mask is None else _contoured(picture, mask, across)
        below.append(_middle(outlined))
    return np.concatenate([np.concatenate(row, axis=1) for row in (above, below)])


def _middle(picture: np.ndarray) -> np.ndarray:
    """The middle ``CLOSE_PX`` of a picture, which is at least as large."""
    y, x = ((side - CLOSE_PX) // 2 for side in picture.shape[:2])
    return picture[y : y + CLOSE_PX, x : x + CLOSE_PX]


def _ringed(picture: np.ndarray) -> np.ndarray:
    """A picture with a ring about its middle."""
    made = picture.copy()
    y, x = np.indices(picture.shape)
    away = np.hypot(y - picture.shape[0] / 2, x - picture.shape[1] / 2) / PX_PER_MM
    made[abs(away - RING_MM) < 1 / PX_PER_MM] = INK
    return made


def _quality(path: Path, grey: np.ndarray, inside: np.ndarray, spacing: np.ndarray) -> None:
    """Six slices with the outline of the brain mask."""
    heights = np.flatnonzero(inside.any(axis=(0, 1)))
    tiles = []
    for share in (0.1, 0.27, 0.44, 0.6, 0.77, 0.92):
        k = int(heights[int(share * (len(heights) - 1))])
        size = np.array(grey.shape[:2]) * spacing[:2]
        size = size * 220 / size.max()
        tiles.append(_contoured(_sized(grey[:, :, k], size), inside[:, :, k], size))
    _save(path, np.concatenate(tiles, axis=1))


def _sized(plane: np.ndarray, size: Iterable[float], *, smooth: bool = True) -> np.ndarray:
    """A plane (across, up) as a picture of so many pixels (across, up), its top row first."""
    across, up = (max(1, round(float(side))) for side in size)
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    flat = Image.fromarray(np.ascontiguousarray(plane.T[::-1]))
    return np.minimum(np.asarray(flat.resize((across, up), how)), WHITE)


def _contoured(picture: np.ndarray, mask: np.ndarray, size: Iterable[float]) -> np.ndarray:
    """A picture with the outline of a plane of a mask that is made as large."""
    made = picture.copy()
    made[_edge(_sized(mask.astype(np.uint8), size, smooth=False))] = INK
    return made


def _edge(mask: np.ndarray) -> np.ndarray:
    """The outermost pixels of a mask."""
    own = np.pad(mask > 0, 1)
    inner = own[1:-1, 1:-1] & own[:-2, 1:-1] & own[2:, 1:-1] & own[1:-1, :-2] & own[1:-1, 2:]
    return own[1:-1, 1:-1] & ~inner


def _save(path: Path, picture: np.ndarray) -> None:
    """Write a picture of greys and `INK`."""
    made = Image.fromarray(picture).convert("L")
    made.putpalette(PALETTE)
    with replacing(path) as beside:
        made.save(beside, format="PNG")


# Pages


@lru_cache(maxsize=1)
def _pages() -> jinja2.Environment:
    """Templates; whatever comes from data is escaped."""
    folder = resources.files("bids_cmb").joinpath("data/pages")
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
    path = folder / f"sub-{subject}.html"
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
        write_text(path, _page(folder, f"sub-{subject}", scans if not links else [], links))
        written = scans
    return path


def _scans(folder: Path, subject: str) -> list[dict]:
    return [
        _scan(folder, subject, home / str(row["filename"]), sidecar, row)
        for home in homes(folder)
        if f"sub-{subject}" in home.parts
        for sidecar, row in finished(home)
    ]


def _page(folder: Path, title: str, scans: list[dict], links: Sequence[dict] = ()) -> str:
    methods = folder / "logs" / "CITATION.md"
    return (
        _pages()
        .get_template("participant.html")
        .render(
            subject=title,
            scans=scans,
            links=links,
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
        "columns": list(columns("review")),
        "viewer": f"{VIEWER}/niivue.umd.js",
        "scans": [
            {
                "filename": scan["filename"],
                "participant_id": scan["participant"],
                "session_id": scan["session"],
                "lesions": [
                    {"index": int(one["index"]), "at": [float(x) for x in place_of(one)]}
                    for one in (*scan["counted"], *scan["uncounted"])
                ],
                "view": scan["view"],
            }
            for scan in scans
        ],
    }


def _scan(folder: Path, subject: str, mask: Path, sidecar: Mapping, row: Mapping) -> dict:
    stem, figures, table = stem_of(mask), figures_of(folder, subject), lesion_table_of(mask)
    lesions = read_table(table) if table.is_file() else []
    for lesion in lesions:
        picture = figures / f"{stem}_lesion-{int(lesion['index']):03d}.png"
        there = picture.is_file()
        lesion["picture"] = picture.relative_to(folder).as_posix() if there else None
    drawn = read_json(figures / f"{stem}_overview.json") or {}
    slabs = drawn.get("slabs", [])
    for slab in slabs:
        slab["path"] = (figures / slab["file"]).relative_to(folder).as_posix()
    quality, view = figures / f"{stem}_quality.png", figures / f"{stem}_view.js"
    session = next((part for part in mask.name.split("_") if part.startswith("ses-")), None)
    return {
        "name": mask.name.partition("_space-")[0],
        "filename": mask.relative_to(folder).as_posix(),
        "participant": f"sub-{subject}",
        "session": session,
        "view": quote(view.relative_to(folder).as_posix()) if view.is_file() else None,
        "row": row,
        "counted": [one for one in lesions if one["counted"] == "yes"],
        "uncounted": [one for one in lesions if one["counted"] != "yes"],
        "slabs": slabs,
        "quality": quality.relative_to(folder).as_posix() if quality.is_file() else None,
        "unlike": compared(drawn["measures"]) if "measures" in drawn else [],
        "histogram": _histogram(drawn["histogram"]) if "histogram" in drawn else None,
        "notes": sidecar.get("Notes", []),
        "provenance": sidecar.get("Provenance", {}),
    }


@dataclass(frozen=True)
class Cohort:
    """What the cohort's page tells.

    Attributes:
        rows: Of the group table.
        regions: Of the table of prevalence.
        diameters: Of the counted lesions, mm.
        groups: Site and scanner of each participant: column → participant → value.
        agreement: Of the readers, two by two; empty without reviews.
    """

    rows: list[dict]
    regions: list[dict] = field(default_factory=list)
    diameters: list[float] = field(default_factory=list)
    groups: dict[str, dict[str, str]] = field(default_factory=dict)
    agreement: list[dict] = field(default_factory=list)


def _histogram(shares: list[float]) -> dict[str, str]:
    """A scan's histogram and the band of the training scans, as points of SVG polygons."""
    band = trained_on()["histogram"]
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


def write_group_page(folder: Path, cohort: Cohort, picture: str) -> None:
    """Write the cohort's page.

    Args:
        folder: The derivative dataset.
        cohort: What it tells.
        picture: File name of the map's picture; it is shown if it is there.
    """
    read = [row for row in cohort.rows if row.get("n_cmb") is not None]
    counts = [int(row["n_cmb"]) for row in read]
    reviewed = [row for row in read if row.get("n_cmb_reviewed") is not None]
    page = _pages().get_template("group.html").render(
        rows=cohort.rows,
        regions=[one for one in cohort.regions if one["group"] == "all"],
        picture=picture if (folder / picture).is_file() else None,
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


def write_status(path: Path, **facts: object) -> None:
    """Write the page of a run under way.

    Args:
        path: Of the page.
        **facts: ``scans`` to read, of which ``ended``, of which ``done`` were read; ``skipped``
            before; ``failed``: (scan, sentence); ``last``: sentences; ``left``: how long it will
            take, empty if nobody knows yet, None if the run has ended; ``began`` and ``time``.
    """
    write_text(path, _pages().get_template("status.html").render(**facts))
