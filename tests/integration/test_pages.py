"""Pages in a browser: what a reader clicks, types and saves, and what the cohort makes of it.

Every page is opened from its file, must say nothing in the console, and may ask for nothing that
does not lie beside it.
"""

import base64
import io
import re
import shutil
import time
import urllib.request
import zlib

import numpy as np
import pytest
from browser import CHROMIUM, WHY_NOT
from cohorts import draw_cohort
from PIL import Image
from running import QUICK, no_other_process, run_on_two_scans

from bids_cmb.bids.paths import locate_candidate_table
from bids_cmb.bids.tables import read_columns, read_table, write_table
from bids_cmb.cli.run import main
from bids_cmb.files import write_json
from bids_cmb.imaging import nifti
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.model_cards import load_card
from bids_cmb.report.html import Cohort, write_group_page, write_page

ODD = "<script>document.title = 1</script> & \"Grüße\" 'ø'"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)


@pytest.fixture(scope="module")
def made(tmp_path_factory, reported):
    """Derivatives with interactive pages: six microbleeds in one scan and none in the other."""
    words, out = reported
    copy = tmp_path_factory.mktemp("pages") / "out"
    shutil.copytree(out, copy)
    words = [words[0], str(copy), *words[2:]]
    with no_other_process():
        assert main([*words, *QUICK, "--report", "interactive", "--reports-only"]) == 0
    return words, copy


@pytest.fixture(scope="module")
def with_candidates(tmp_path_factory, heads, reported):
    """Derivatives of the same scans, where all but the two surest lesions are candidates."""
    root = tmp_path_factory.mktemp("candidates")
    threshold = sorted(lesions(reported[1]), key=lambda row: float(row["probability_max"]))[-2]
    points = [{"name": "sensitive", "threshold": 0.3}]
    write_json(root / "models/radial.json", {**load_card("radial"), "operating_points": points})
    return run_on_two_scans(
        root,
        heads[0],
        *("--model-dir", str(root / "models"), "--threshold", threshold["probability_max"]),
        *("--report", "interactive"),
    )


@pytest.fixture
def page(page):
    """A tab in which no page may complain, or request anything from elsewhere."""
    yield page
    assert not page.complaints
    assert all(address.startswith(("file:", "data:", "blob:")) for address in page.requests)


def lesions(out, subject="01"):
    return read_table(next((out / f"sub-{subject}/anat").glob("*seg-CMB*dseg.tsv")))


def place(row):
    return [float(row[axis]) for axis in ("x_mm", "y_mm", "z_mm")]


def focus(page, index):
    page.run(f"document.querySelector('[data-index=\"{index}\"]').focus()")


def test_a_review_goes_from_keys_to_the_cohorts_table(made, page, tmp_path):
    """Keys judge, the table is saved, and group counts what the reader left."""
    words, out = made
    rows = lesions(out)
    assert len(rows) >= 3
    page.go((out / "sub-01.html").as_uri())
    page.click("#save")
    assert "name" in page.run("document.querySelector('#said').textContent")
    page.run("document.querySelector('#reader').value = 'Ann Ähre';"
             "document.querySelector('#reader').dispatchEvent(new Event('change'))")  # fmt: skip
    focus(page, 1)
    page.press("a")
    page.press("j")
    page.press("r")
    page.press("c")
    page.write('not one, "really"')
    page.press("Enter")
    page.press("j")
    page.press("u")
    assert f"3 of {len(rows)}" in page.run("document.querySelector('#progress').textContent")
    page.run("miss(about.scans[0], [1.5, -2.25, 3])")
    page.click("#save")
    page.wait("document.querySelector('#said').textContent.startsWith('Saved')")
    saved = wait_for(tmp_path, "sub-01_reader-AnnAhre_review.tsv")
    table = read_table(saved)
    assert list(table[0]) == list(read_columns("review"))
    assert [row["verdict"] for row in table[:3]] == ["accept", "reject", "unsure"]
    assert table[1]["comment"] == 'not one, "really"'
    assert table[-1]["verdict"] == "missed"
    assert place(table[-1]) == [1.5, -2.25, 3]
    folder = tmp_path / "reviews"
    folder.mkdir()
    shutil.copy(saved, folder)
    assert main([words[0], str(out), "group", *QUICK, "--reviews", str(folder)]) == 0
    row = read_table(out / "group_microbleeds.tsv")[0]
    counted = [one["included"] == "yes" for one in rows]
    assert row["reviewed_by"] == "Ann Ähre"
    assert int(row["n_cmb"]) == sum(counted)
    assert int(row["n_cmb_reviewed"]) == 1 + sum(counted[3:]) + 1
    page.go((out / "group_microbleeds.html").as_uri())
    shown = page.run("document.querySelector('#scans tbody tr').textContent")
    assert f"{row['n_cmb']} → {row['n_cmb_reviewed']}" in shown


def test_a_candidate_that_is_accepted_is_counted_from_the_page_to_the_cohorts_table(
    with_candidates, page, tmp_path
):
    """It is folded away and in no count; j goes to it, and a makes a lesion of it."""
    words, out = with_candidates
    rows, mask = lesions(out), next((out / "sub-01/anat").glob("*label-CMB*mask.nii.gz"))
    candidates = read_table(locate_candidate_table(mask))
    counted = sum(row["included"] == "yes" for row in rows)
    assert len(candidates) >= 2
    page.go((out / "sub-01.html").as_uri())
    assert not page.run("document.querySelector('.look-too').open")
    shown = page.run("document.querySelector('.verdict').textContent")
    assert shown.strip().startswith(f"{counted} microbleed")
    assert "After your review" not in shown
    assert page.run("countAfter(about.scans[0])") == counted
    page.run("document.querySelector('#reader').value = 'A';"
             "document.querySelector('#reader').dispatchEvent(new Event('change'))")  # fmt: skip
    focus(page, counted)
    for _ in range(1 + len(rows) - counted):
        page.press("j")
    assert page.run("document.activeElement.dataset.index") == candidates[0]["index"]
    page.press("a")
    page.press("j")
    page.press("r")
    after = "document.querySelector('.after').textContent"
    assert page.run(after) == f"After your review: {counted + 1}."
    progress = f"0 of {len(rows)} lesions, 2 of {len(candidates)} candidates reviewed"
    assert page.run("document.querySelector('#progress').textContent") == progress
    page.click("#save")
    page.wait("document.querySelector('#said').textContent.startsWith('Saved')")
    saved = wait_for(tmp_path, "sub-01_reader-A_review.tsv")
    verdicts = {row["index"]: row["verdict"] for row in read_table(saved)}
    assert verdicts[candidates[0]["index"]] == "accept"
    assert verdicts[candidates[1]["index"]] == "reject"
    assert set(verdicts) == {row["index"] for row in (*rows, *candidates)}
    page.go((out / "sub-01.html").as_uri())
    assert page.run("document.querySelector('.look-too').open")
    assert page.run(after) == f"After your review: {counted + 1}."
    page.run("review = {reader: 'A', lesions: {}, missed: {}, complete: {}}; keep()")
    assert page.run(after) == ""
    page.run(f"load('a.tsv', {saved.read_text()!r})")
    assert page.run(after) == f"After your review: {counted + 1}."
    folder = tmp_path / "reviews"
    folder.mkdir()
    shutil.copy(saved, folder)
    assert main([words[0], str(out), "group", *QUICK, "--reviews", str(folder)]) == 0
    row = read_table(out / "group_microbleeds.tsv")[0]
    assert (int(row["n_cmb"]), int(row["n_cmb_reviewed"])) == (counted, counted + 1)
    assert row["n_candidates_accepted"] == "1"


def test_what_the_page_counts_is_what_the_group_counts(with_candidates, page):
    """An unsure lesion does not count, one without a verdict does, and so does a missed one."""
    _, out = with_candidates
    page.go((out / "sub-01.html").as_uri())
    kinds = page.run("about.scans[0].lesions.map(lesion => lesion.kind)")
    counted = kinds.count("included")
    for key, change in (("u", -1), ("r", -1), ("x", 0), ("a", 0)):
        focus(page, 1)
        page.press(key)
        assert page.run("countAfter(about.scans[0])") == counted + change
    page.run("document.querySelector('.look-too').open = true")
    focus(page, len(kinds))  # the last candidate
    for key, change in (("u", 0), ("r", 0), ("a", 1), ("x", 0)):
        page.press(key)
        assert page.run("countAfter(about.scans[0])") == counted + change
    page.run("miss(about.scans[0], [1, 2, 3])")
    assert page.run("countAfter(about.scans[0])") == counted + 1


@pytest.fixture(scope="module")
def both_sides(tmp_path_factory, heads):
    """Pages of a head whose microbleeds are on its left, and of its mirror image."""
    root = tmp_path_factory.mktemp("sides")
    image = nifti.load(heads[0] / "six.nii.gz")[0]
    mirrored = Volume(image.data, np.diag([-1.0, 1, 1, 1]) @ image.affine)
    (root / "heads").mkdir()
    nifti.save(image, root / "heads/six.nii.gz")
    nifti.save(mirrored, root / "heads/none.nii.gz")
    return run_on_two_scans(root, root / "heads", "--report", "interactive")[1]


@pytest.mark.parametrize(("subject", "right"), [("01", False), ("02", True)])
def test_the_right_hemisphere_is_on_the_left_of_every_picture(both_sides, page, subject, right):
    """In the overview, the whole slice of a card and the viewer; the phantom is the truth."""
    out = both_sides
    rows = [row for row in lesions(out, subject) if abs(place(row)[0]) > 10]
    assert sum((place(row)[0] > 0) == right for row in rows) >= 3
    page.go((out / f"sub-{subject}.html").as_uri())
    marks = dict(page.run(
        "[...document.querySelectorAll('.slab a')].map(a => [a.textContent,"
        "(a.getBoundingClientRect().x - a.parentElement.getBoundingClientRect().x)"
        " / a.parentElement.getBoundingClientRect().width])"
    ))  # fmt: skip
    for row in rows:
        assert (marks[row["index"]] < 0.5) == (place(row)[0] > 0)
        assert (find_frame(page, row["index"]) < 0.5) == (place(row)[0] > 0)
    page.run("visit(about.scans[0], about.scans[0].lesions[0]).then(() => 1)")
    at_left, at_right = page.run(
        "(() => { const [x, y, w, h] = current.viewer.screenSlices[0].leftTopWidthHeight;"
        "return [x + w / 4, x + 3 * w / 4].map(across => current.viewer.frac2mm("
        "current.viewer.canvasPos2frac([across, y + h / 2]), 0, true)[0]); })()"
    )
    assert at_left > 0 > at_right


def find_frame(page, index):
    """Find how far across the whole slice of a card its orange frame lies, 0 to 1."""
    source, number = page.run(
        f"(() => {{ const tiles = [...document.querySelectorAll('[data-index=\"{index}\"] .tile')];"
        "const of = tile => tile.querySelector('title').textContent;"
        "const at = tiles.findIndex(tile => of(tile).includes(': whole'));"
        "const use = tiles[at].querySelector('use').getAttribute('href');"
        "const picture = document.querySelector(use);"
        "return [new URL(picture.getAttribute('href'), location.href).href, at]; })()"
    )
    with urllib.request.urlopen(source) as opened:  # a file, or within the page
        pixels = np.asarray(Image.open(opened).convert("RGB"), int)
    side = pixels.shape[0]
    tile = pixels[:, number * side : (number + 1) * side]
    return np.nonzero(tile[..., 0] - tile[..., 2] > 120)[1].mean() / side


def test_tiles_fit_their_page_on_a_desk_and_on_a_phone(made, page):
    """Letters are 13 of a tile's 176 pixels high; on a phone they must not be shrunk by much."""
    _, out = made
    for width, columns in ((1400, 5), (390, 2)):
        page.tell("Emulation.setDeviceMetricsOverride", width=width, height=844,
                  deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
        page.go((out / "sub-01.html").as_uri())
        boxes = page.run(
            "[...document.querySelectorAll('[data-index=\"1\"] .tile')]"
            ".map(t => t.getBoundingClientRect()).map(b => [b.y, b.width, b.height])"
        )
        tops = [round(top) for top, _, _ in boxes]
        assert len(boxes) == 8
        assert tops.count(tops[0]) == columns
        assert all(side == pytest.approx(up, abs=1) for _, side, up in boxes)
        assert min(side for _, side, _ in boxes) > 0.8 * 176
        assert page.run("document.documentElement.scrollWidth") <= width


def test_a_page_that_is_sent_alone_is_whole_and_printed_it_says_who_reviewed_it(
    made, page, tmp_path
):  # fmt: skip
    """Each picture is decoded; folds are open while it is printed, and closed again after."""
    alone = tmp_path / "alone.html"
    shutil.copy(made[1] / "sub-01.html", alone)
    page.go(alone.as_uri())
    pictures = "all('img, .store image').map(p => p.src || p.getAttribute('href'))"
    assert page.run(f"{pictures}.length") > 10
    page.run(
        f"{pictures}.forEach(address => {{ const p = new Image(); p.src = address;"
        "window.seen = window.seen || [];"
        "p.decode().then(() => seen.push(p.naturalWidth), () => seen.push(0)); })"
    )
    page.wait(f"window.seen && seen.length == {pictures}.length")
    assert page.run("Math.min(...seen)") > 50
    page.run("find('#reader').value = 'Ann'; find('#reader').dispatchEvent(new Event('change'))")
    focus(page, 1)
    page.press("a")
    page.run("window.dispatchEvent(new Event('beforeprint'))")
    signed = page.run("document.querySelector('.signed').textContent")
    assert "Reader: Ann" in signed
    assert time.strftime("%Y-%m-%d", time.gmtime()) in signed
    assert page.run("all('.excluded, .look-too').every(fold => fold.open)")
    page.run("window.dispatchEvent(new Event('afterprint'))")


def wait_for(folder, name):
    until = time.monotonic() + 20
    while not (folder / name).is_file():
        assert time.monotonic() < until, f"{name} was not saved"
        time.sleep(0.05)
    return folder / name


def test_verdicts_stay_when_the_page_is_opened_again_and_can_be_read_back(made, page):
    _, out = made
    page.go((out / "sub-01.html").as_uri())
    focus(page, 2)
    page.press("r")
    page.go((out / "sub-02.html").as_uri())
    assert "0 of" in page.run("document.querySelector('#progress').textContent")
    page.go((out / "sub-01.html").as_uri())
    assert page.run("document.querySelector('[data-index=\"2\"]').dataset.verdict") == "reject"
    text = page.run("review.reader = 'B'; miss(about.scans[0], [1, 2, 3]); table()")
    page.run("review = {reader: '', lesions: {}, missed: {}, complete: {}}; keep()")
    assert "0 of" in page.run("document.querySelector('#progress').textContent")
    page.run(f"load('b.tsv', {text!r})")
    assert page.run("table()").split("\t") == text.split("\t")
    page.run("load('c.tsv', 'a\\tb\\n1\\t2\\n')")
    assert "is no review" in page.run("document.querySelector('#said').textContent")


def test_a_row_leads_to_its_place_in_the_scan_and_a_click_there_notes_a_missed_one(made, page):
    """The dark spot itself is the outside truth: the crosshair stands on it."""
    _, out = made
    page.go((out / "sub-01.html").as_uri())
    row = lesions(out)[0]
    page.click('[data-index="1"] .views .tile')
    page.wait("current && current.at.some(x => x) && current.viewer.volumes.length == 2")
    page.wait(f"current.at.every((x, i) => Math.abs(x - {place(row)}[i]) < 0.05)")
    grey = page.run(
        "(() => { const v = current.viewer, [scan, marks] = v.volumes;"
        "const at = scan.mm2vox(current.at);"
        "return [scan.getValue(...at), marks.getValue(...at)]; })()"
    )
    assert grey[0] < 100  # of 255; the tissue around has some 150
    assert grey[1] == 0  # its outline leaves it free
    page.click(".viewer canvas", across=0.34)  # the axial view
    page.click(".here")
    noted = page.run("review.missed[about.scans[0].filename][0].at")
    assert noted == pytest.approx(page.run("current.at"), abs=0.01)
    assert noted != pytest.approx(place(row), abs=0.5)


def test_with_the_shift_key_a_verdict_goes_on_to_the_next(made, page):
    _, out = made
    page.go((out / "sub-01.html").as_uri())
    focus(page, 1)
    for key in "ARU":
        page.press(key)
    assert page.run("document.activeElement.dataset.index") == "4"
    verdicts = "[...document.querySelectorAll('.lesion')].slice(0, 4).map(e => e.dataset.verdict)"
    assert page.run(verdicts) == ["accept", "reject", "unsure", ""]


HEADING = "document.querySelector('.viewer .heading').textContent"


def test_keys_open_the_scan_at_the_first_lesion_judge_there_and_lead_back(made, page):
    """Nothing but keys; the slice is that of the table, and the pixels those of the phantom."""
    _, out = made
    rows = lesions(out)
    page.go((out / "sub-01.html").as_uri())
    page.run("document.querySelector('.open').focus()")
    page.press("Enter")
    page.wait("document.activeElement.tagName === 'CANVAS'")
    assert page.run("current.at") == pytest.approx(place(rows[0]), abs=0.05)
    heading = page.run(HEADING)
    assert f"Lesion 1 (1 of {len(rows)})" in heading
    assert f"slice {round(float(rows[0]['k'])) + 1} of 52" in heading
    assert "verdict: none" in heading
    page.press("a")
    assert "verdict: accept" in page.run(HEADING)
    assert page.run("document.querySelector('[data-index=\"1\"]').dataset.verdict") == "accept"
    page.press("j")
    page.wait(f"Math.abs(current.at[0] - {place(rows[1])[0]}) < 0.05")
    assert page.run("document.activeElement.tagName") == "CANVAS"
    assert page.run("document.querySelector('[data-index=\"2\"]').contains(current.box)")
    page.press("-")
    assert "window 0 to 118 %" in page.run(HEADING)
    page.press("0")
    assert "window 0 to 100 %" in page.run(HEADING)
    page.press("PageUp")
    assert f"slice {round(float(rows[1]['k'])) + 2} of 52" in page.run(HEADING)
    page.press("v")
    page.wait(f"Math.abs(current.at[2] - {place(rows[1])[2]}) < 0.05")
    page.press("Escape")
    assert page.run("document.activeElement.dataset.index") == "2"
    assert page.run("document.querySelector('.viewer').hidden")


def test_the_viewer_draws_candidates_as_lesions_in_another_ring_and_takes_the_same_keys(
    with_candidates, page
):  # fmt: skip
    """The pixels are the truth: yellow around a lesion, pink around a candidate."""
    _, out = with_candidates
    page.go((out / "sub-01.html").as_uri())
    page.run("visit(about.scans[0], about.scans[0].lesions[0]).then(() => 1)")
    assert 0.0001 < find_ring_share(page)["yellow"] < 0.01
    lesions = page.run("about.scans[0].lesions.filter(each => each.kind != 'candidates').length")
    for _ in range(lesions):
        page.press("j")
    page.wait("current.lesion.kind == 'candidates'")
    at = "current.lesion.at.every((x, i) => Math.abs(x - current.at[i]) < 0.05)"
    page.wait(at)
    assert 0.00003 < find_ring_share(page)["pink"] < 0.01
    page.press("o")
    assert find_ring_share(page) == {"yellow": 0, "pink": 0}
    page.press("a")
    assert page.run(HEADING).startswith("Candidate")
    assert "verdict: accept" in page.run(HEADING)


def find_ring_share(page):
    """Find the share of the viewer's stage, within its frame, that has the colours of rings."""
    page.run(FRAMES)
    x, y, width, height = page.run(
        "(() => { const b = document.querySelector('.stage').getBoundingClientRect();"
        "return [b.x + scrollX + 4, b.y + scrollY + 4, b.width - 8, b.height - 8]; })()"
    )
    clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
    shot = page.tell("Page.captureScreenshot", format="png", clip=clip)["data"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB"), int)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    pink = (red - green > 50) & (blue - green > 30)
    yellow = (red - blue > 100) & (green - blue > 80)
    return {"yellow": float(yellow.mean()), "pink": float(pink.mean())}


SPOTS = """(() => {
  const box = e => { const b = (e.tagName ? e : document.querySelector(e)).getBoundingClientRect();
    return [b.left, b.top, b.right, b.bottom]; };
  const parts = [...current.box.parentElement.querySelectorAll('dl, .judge, .views')].map(box);
  return {viewer: box(current.box), stage: box('.stage'), bar: box('.bar'), parts,
    height: innerHeight, wide: document.documentElement.scrollWidth,
    planes: current.viewer.screenSlices.map(({axCorSag, leftTopWidthHeight: [, , width, height]}) =>
      [axCorSag, width * height])};
})()"""


@pytest.mark.parametrize(("width", "height"), [(1400, 1000), (390, 844)])
def test_the_view_is_one_large_axial_slice_that_never_covers_its_card(made, page, width, height):
    _, out = made
    page.tell("Emulation.setDeviceMetricsOverride", width=width, height=height,
              deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
    page.go((out / "sub-01.html").as_uri())
    for index in (1, 3):
        page.run(f"visit(about.scans[0], about.scans[0].lesions[{index - 1}]).then(() => 1)")
        page.wait("current.viewer.screenSlices.length === 3")
        seen = page.run(SPOTS)
        left, top, right, bottom = seen["viewer"]
        assert left >= 0
        assert right <= seen["wide"] <= width
        assert seen["bar"][3] <= top + 1  # below the bar that stays
        assert seen["stage"][3] <= seen["height"]
        for part in seen["parts"]:
            assert part[2] <= left or part[0] >= right or part[3] <= top or part[1] >= bottom
        if width > 500:
            assert min(part[1] for part in seen["parts"]) >= seen["bar"][3]  # all of the card
        areas = dict(seen["planes"])
        assert areas[0] > 2 * max(areas[1], areas[2])


def test_a_hasty_reader_and_a_view_that_is_not_there_break_nothing(made, page, tmp_path):
    _, out = made
    page.go((out / "sub-01.html").as_uri())
    first, second = (place(row) for row in lesions(out)[:2])
    both = f"go(about.scans[0], {first}), go(about.scans[0], {second})"
    page.run(f"Promise.all([{both}]).then(() => 1)")
    assert page.run("current.at") == pytest.approx(second, abs=0.05)
    assert page.run("current.viewer.volumes.length") == 2
    page.run("document.querySelector('.viewer canvas').focus()")
    for key in ("PageUp", "m"):
        page.press(key)
    moved = page.run("review.missed[about.scans[0].filename].at(-1).at")
    assert 2 < np.linalg.norm(np.subtract(moved, second)) < 6  # one slice of 4 mm
    assert moved[2] > second[2]
    page.click(".viewer .close")
    assert page.run("document.querySelector('.viewer').hidden")
    page.run(f"go(about.scans[0], {first}).then(() => 1)")
    assert page.run("current.at") == pytest.approx(first, abs=0.05)
    copy = tmp_path / "out"
    shutil.copytree(out, copy, ignore=shutil.ignore_patterns("code"))
    page.go((copy / "sub-01.html").as_uri())
    page.run(f"go(about.scans[0], {first}).then(() => 1)")
    assert "cannot be shown" in page.run("document.querySelector('#said').textContent")
    page.complaints.clear()  # that the file is not there


def test_the_view_is_small_and_its_viewer_lies_once_beside_its_licence(made):
    _, out = made
    assert (out / "code/niivue/niivue.umd.js").is_file()
    assert "BSD 2-Clause" in (out / "code/niivue/LICENSE").read_text()
    assert all(path.stat().st_size < 8e6 for path in out.glob("sub-*/figures/*_view.js"))
    assert all(path.stat().st_size < 1.5e6 for path in out.glob("*.html"))


def open_cohort(page, folder, scans):
    """Open the page of a drawn cohort."""
    folder.mkdir()
    cohort, _ = draw_cohort(scans)
    write_group_page(folder, cohort, "none.png")
    page.go((folder / "group_microbleeds.html").as_uri())
    page.run(FRAMES)


FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"


def test_of_4000_scans_hardly_more_is_built_than_of_1000_also_when_they_are_sorted(page, tmp_path):
    """Elements of the document; the charts have more dots. ``benchmarks.speed`` has the seconds."""
    built = []
    for scans in (1000, 4000):
        open_cohort(page, tmp_path / str(scans), scans)
        opened = page.run("document.querySelectorAll('*').length")
        page.run("document.querySelectorAll('#scans th button')[2].click()")
        page.run(FRAMES)
        built.append([opened, page.run("document.querySelectorAll('*').length")])
    small, large = np.array(built)
    assert small[0] > 300  # a row at least for each scan that is shown
    assert (large < 1.3 * small).all()


COLUMN = "[...document.querySelectorAll('#scans tbody tr')].map(row => row.cells[{}].textContent)"


def test_the_cohorts_page_sorts_and_searches_all_scans_though_it_shows_a_part(page, tmp_path):
    """What is not known comes last both ways; numpy sorts the same table."""
    cohort, _ = draw_cohort(2000)
    numbers = np.sort([row["n_cmb"] for row in cohort.rows if row["n_cmb"] is not None])
    open_cohort(page, tmp_path / "cohort", 2000)
    for expected in (numbers, numbers[::-1]):
        page.run("document.querySelectorAll('#scans th button')[2].click()")
        assert list(map(int, page.run(COLUMN.format(2)))) == expected[:300].tolist()
    for left in (1700, 700):
        shown = page.run("document.querySelector('.more').textContent")
        assert shown == f"Show {min(left, 1000)} more of {left}"
        page.click(".more")
    assert page.run(COLUMN.format(2))[-1] == "–"
    assert page.run(COLUMN.format(2) + ".length") == 2000
    page.run("document.querySelector('#search').value = 'sub-00013';"
             "document.querySelector('#search').dispatchEvent(new Event('input'))")  # fmt: skip
    sources = [row["source"] for row in cohort.rows if row["participant_id"] == "sub-00013"]
    scans = [source.rpartition("/")[2].removesuffix(".nii.gz") for source in sources]
    assert sorted(page.run(COLUMN.format(0))) == sorted(scans)
    assert page.run("document.querySelector('#shown').textContent") == f"{len(scans)} of 2000"


def test_all_scans_of_a_cohort_are_on_paper(page, tmp_path):
    open_cohort(page, tmp_path / "cohort", 700)
    page.run("window.dispatchEvent(new Event('beforeprint'))")
    assert page.run(COLUMN.format(0) + ".length") == 700


def test_every_printed_sheet_of_a_long_table_begins_with_its_heads(page, tmp_path):
    """The name of a column is set in magenta, which nothing else on the page is."""
    open_cohort(page, tmp_path / "cohort", 300)
    page.run("document.querySelector('#scans th button').style.color = 'rgb(255, 0, 255)'")
    printed = base64.b64decode(page.tell("Page.printToPDF", printBackground=True)["data"])
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", printed, re.DOTALL)
    drawn = [zlib.decompress(stream) for stream in streams if stream[:1] == b"\x78"]
    assert sum(b"1 0 1 rg" in commands for commands in drawn) > 4


def test_a_page_of_eighty_lesions_is_whole_and_quick_and_no_book_on_paper(made, page, tmp_path):
    _, out = made
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    table = next((copy / "sub-01/anat").glob("*seg-CMB*dseg.tsv"))
    row = read_table(table)[0]
    write_table(table, list(row), [{**row, "index": str(at)} for at in range(1, 81)])
    page.go(write_page(copy, "01").as_uri())
    focus(page, 79)
    for key in "ajrk":
        page.press(key)
    assert page.run("document.querySelector('#progress').textContent").startswith("2 of 80")
    assert page.run("document.activeElement.dataset.index") == "79"
    took = page.run(
        "(() => { const began = performance.now();"
        "for (const one of about.scans[0].lesions) judge(about.scans[0], one, {verdict: 'unsure'});"
        "return performance.now() - began; })()"
    )
    assert took < 5000
    assert page.run("table()").count("unsure") == 80
    printed = base64.b64decode(page.tell("Page.printToPDF", printBackground=True)["data"])
    assert 20 < len(re.findall(rb"/Type\s*/Page\b", printed)) < 40


def test_nothing_that_comes_from_data_runs(made, page, tmp_path):
    """Comments, names, flags and table cells that would be scripts stay words."""
    _, out = made
    copy = tmp_path / "a <b> & ü"
    shutil.copytree(out, copy)
    table = next((copy / "sub-01/anat").glob("*seg-CMB*dseg.tsv"))
    rows = read_table(table)
    rows[0]["flags"] = ODD
    write_table(table, list(rows[0]), rows)
    page.go(write_page(copy, "01").as_uri())
    assert ODD in page.run("document.querySelector('[data-index=\"1\"]').textContent")
    page.run(f"judge(about.scans[0], about.scans[0].lesions[0], {{comment: {ODD!r}}})")
    page.run(f"load({ODD!r}, 'x')")
    page.go((copy / "sub-01.html").as_uri())
    assert page.run("document.querySelector('.comment').value") == ODD
    assert page.run("document.title") == "sub-01: cerebral microbleeds"
    group = read_table(copy / "group_microbleeds.tsv")
    group[0] |= {"source": ODD, "reason": ODD, "quality_flags": ODD, "status": "failed"}
    site = {"site": {str(row["participant_id"]): ODD for row in group}}
    agreement = [dict.fromkeys(read_columns("agreement")) | {"reader_1": ODD, "reader_2": ODD}]
    write_group_page(copy, Cohort(group, groups=site, agreement=agreement), "none.png")
    page.go((copy / "group_microbleeds.html").as_uri())
    assert page.run("document.title") == "Cerebral microbleeds of the cohort"
    for part in ("#scans", "#readers + div", "#protocol + div", "#failed + ul"):
        assert ODD in page.run(f"document.querySelector({part!r}).textContent")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_told_from_their_ground(made, page, scheme):
    """WCAG 2's contrast of text, in both schemes: at least 4.5."""
    _, out = made
    page.emulate(prefers_color_scheme=scheme)
    for name in ("sub-01.html", "group_microbleeds.html"):
        page.go((out / name).as_uri())
        assert page.run(CONTRAST) >= 4.5


CONTRAST = """(() => {
  const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number)
    .map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { while (e) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c)) return c; e = e.parentElement; } return "rgb(255, 255, 255)"; };
  const words = "h1, h2, h3, p, td, th, dt, dd, figcaption, label, summary, button";
  return Math.min(...[...document.querySelectorAll(words)]
    .filter(e => e.offsetParent && e.textContent.trim()).map(e => {
      const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05); }));
})()"""


def test_paper_has_no_buttons(made, page):
    _, out = made
    page.go((out / "sub-01.html").as_uri())
    page.emulate(media="print")
    assert not page.run("document.querySelector('#save').offsetParent")
    assert page.run("Boolean(document.querySelector('.verdict').offsetParent)")
