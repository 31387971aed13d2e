"""Pages that a reader can trust: every lesion once, where it lies, and nothing that runs."""

import base64
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from running import QUICK
from scipy import ndimage

from bids_cmb.bids.tables import read_table, write_table
from bids_cmb.cli.run import main
from bids_cmb.report.html import Cohort, write_group_page, write_page


def lesions(out, subject="01"):
    return read_table(next((out / f"sub-{subject}/anat").glob("*seg-CMB*dseg.tsv")))


def test_every_lesion_has_a_row_and_a_picture(reported):
    _, out = reported
    page = (out / "sub-01.html").read_text()
    rows = lesions(out)
    assert rows
    for row in rows:
        assert page.count(f'id="sub-01_T2starw-{row["index"]}"') == 1
    pictures = sorted((out / "sub-01/figures").glob("*_lesion-*.webp"))
    assert len(pictures) == len(rows)
    for path in pictures:
        assert page.count(base64.b64encode(path.read_bytes()).decode()) == 1


def test_a_page_has_its_own_scans_alone_wherever_the_output_lies(reported, tmp_path):
    """Also below a folder that is called like a participant, as scratch space may be."""
    copy = tmp_path / "sub-01" / "out"
    shutil.copytree(reported[1], copy)
    page = write_page(copy, "01").read_text()
    assert "sub-01_space-orig_label-CMB" in page
    assert "sub-02_space-orig_label-CMB" not in page


def test_a_scan_without_lesions_says_so(reported):
    _, out = reported
    if not lesions(out, "02"):
        assert "No lesion was counted." in (out / "sub-02.html").read_text()
    assert "<strong>" in (out / "sub-02.html").read_text()


def test_marks_lie_on_dark_spots_of_the_overview(reported):
    """The picture itself is the outside truth: at a mark it is darker than around."""
    _, out = reported
    figures = out / "sub-01/figures"
    told = json.loads(next(figures.glob("*_overview.json")).read_text())["slabs"]
    darker = []
    for slab in told:
        picture = np.asarray(Image.open(figures / slab["file"]).convert("L"), float)
        for mark in slab["marks"]:
            y, x = mark["y"] / 100 * picture.shape[0], mark["x"] / 100 * picture.shape[1]
            away = np.hypot(*(np.indices(picture.shape) - np.array([y, x])[:, None, None]))
            darker.append(
                picture[away < 3].min() < 0.8 * np.median(picture[(away > 8) & (away < 14)])
            )
    assert len(darker) == len(lesions(out))
    assert np.mean(darker) > 0.8


def test_contours_are_drawn_about_the_lesion_in_the_last_tile_and_nowhere_else(reported):
    """The other tiles have no colour but the frame in the whole slice."""
    _, out = reported
    tiles = json.loads(next((out / "sub-01/figures").glob("*_overview.json")).read_text())
    for path in (out / "sub-01/figures").glob("*_lesion-*.webp"):
        names = tiles["closeups"][str(int(path.stem[-3:]))]
        drawn = np.asarray(Image.open(path).convert("RGB"))
        orange = drawn[..., 0].astype(int) - drawn[..., 2] > 60
        side = drawn.shape[0]
        assert drawn.shape[1] == side * len(names)
        for at, name in enumerate(names):
            tile = orange[:, at * side : (at + 1) * side]
            assert tile.any() == (name.startswith("whole") or name.endswith("outlined"))
        centre = ndimage.center_of_mass(tile)
        assert np.linalg.norm(np.subtract(centre, side / 2)) < 0.2 * side


def test_every_tile_is_on_the_page_with_words_for_those_who_do_not_see_it(reported):
    _, out = reported
    page = (out / "sub-01.html").read_text()
    rows = lesions(out)
    cards = page[page.index("<h3>Lesions</h3>") :]
    assert cards.count('<svg class="tile"') == 8 * len(rows)
    assert len(re.findall(r"<title>Lesion 1: axial [0-9]+</title>", cards)) == 5
    assert re.search(r"<title>Lesion 1: minIP [0-9]+-[0-9]+, 12 mm</title>", cards)
    assert "First five slices: that of the lesion in the middle" in page
    assert "right is on the left of every picture" in page


def test_the_middle_slice_is_shown_as_it_lies_in_the_file_and_beside_it_as_it_was_seen(reported):
    """Left: the file's own voxels, lowest to highest. Right: brighter, by the brain alone."""
    words, out = reported
    path = next((out / "sub-01/figures").glob("*_look.webp"))
    told = json.loads(next((out / "sub-01/figures").glob("*_overview.json")).read_text())["look"]
    assert told["file"] == path.name
    assert told["by"] == "radial"
    assert base64.b64encode(path.read_bytes()).decode() in (out / "sub-01.html").read_text()
    scan = nib.load(next(Path(words[0]).glob("sub-01/anat/*.nii.gz")))
    assert sorted(told["voxel_mm"]) == pytest.approx(sorted(scan.header.get_zooms()), abs=0.01)
    data, axis = scan.get_fdata(), int(np.argmax(scan.header.get_zooms()))
    drawn = np.asarray(Image.open(path).convert("L"), float)
    assert drawn.shape[0] == 300
    slices = np.moveaxis((data - data.min()) / (data.max() - data.min()) * 254, axis, 0)
    height, width = drawn.shape[0], round(300 * slices.shape[1] / slices.shape[2])
    alike = []
    for one in slices:
        whole = Image.fromarray(one.T[::-1].astype(np.uint8)).resize((width, height), 0)
        alike.append(abs(np.asarray(whole, float) - drawn[:, :width]).max())
    assert min(alike) == 0
    assert 0.2 < np.argmin(alike) / len(slices) < 0.8
    left, right = drawn[:, :width], drawn[:, width:]
    assert np.median(right[right > 20]) > np.median(left[left > 20])


def test_pages_ask_for_nothing_but_their_pictures(reported):
    _, out = reported
    for page in out.glob("*.html"):
        text = page.read_text()
        assert "http" not in text.replace("http://www.w3.org", "")
        assert page.stat().st_size < 1.5e6
        links = re.findall(r'(?:src|<image[^>]* href)="([^"]*)"', text)
        assert all(link.startswith("data:image/") for link in links)


def test_a_page_with_more_pictures_than_a_mail_takes_links_those_of_less_weight(
    reported, tmp_path, monkeypatch
):
    copy = tmp_path / "out"
    shutil.copytree(reported[1], copy)
    weights = [path.stat().st_size for path in (copy / "sub-01/figures").glob("*_lesion-*")]
    monkeypatch.setattr("bids_cmb.report.html.MAX_EMBEDDED_BYTES", 1.4 * sum(weights))
    page = write_page(copy, "01").read_text()
    within, beside = page.count("data:image/webp"), re.findall(r'="(sub-01/figures/[^"]*)"', page)
    assert within >= len(weights)
    assert beside
    assert all((copy / name).is_file() for name in beside)
    assert f"{len(beside)} pictures are files beside this page" in page


def test_the_summary_comes_before_the_lesions_and_counts_them(reported):
    """Its table has every counted lesion once, and a key image leads to each card."""
    page = (reported[1] / "sub-01.html").read_text()
    summary = page[page.index('<section class="summary"') : page.index("<h3>Lesions</h3>")]
    counted = [row for row in lesions(reported[1]) if row["included"] == "yes"]
    total = re.search(r'<tr class="all">.*?<td class="number">(\d+)</td></tr>', summary, re.DOTALL)
    assert int(total[1]) == len(counted)
    linked = re.findall(r'<a href="#sub-01_T2starw-(\d+)">', summary)
    assert linked == [row["index"] for row in counted][:6]
    assert "Field strength and echo time are not known" in summary
    assert "<title>Lesion 1: axial" in summary
    assert page.index("Technical adequacy") < page.index("<h3>Lesions</h3>")
    assert page.index("<h3>Lesions</h3>") < page.index("<h3>Overview</h3>")


def test_pages_can_be_made_anew_from_the_derivatives(reported, tmp_path):
    words, out = reported
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    before = (copy / "sub-01.html").read_bytes()
    for page in copy.glob("*.html"):
        page.unlink()
    shutil.rmtree(copy / "sub-01/figures")
    assert main([words[0], str(copy), "participant", "group", *QUICK, "--reports-only"]) == 0
    assert (copy / "sub-01.html").read_bytes() == before
    assert (copy / "group_microbleeds.html").is_file()


def test_a_scan_without_a_result_cannot_be_drawn_and_the_others_are(reported, tmp_path, capfd):
    words, out = reported
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    next((copy / "sub-02/anat").glob("*label-CMB*mask.json")).unlink()
    (copy / "sub-01.html").unlink()
    assert main([words[0], str(copy), "participant", *QUICK, "--reports-only"]) == 1
    assert "--reports-only needs its result" in capfd.readouterr().err
    assert (copy / "sub-01.html").is_file()


def test_a_result_is_not_drawn_on_another_image_of_that_name(reported, tmp_path, capfd):
    """The scan was replaced: its old lesions would lie anywhere in the new one."""
    words, out = reported
    raw, copy = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(words[0], raw)
    shutil.copytree(out, copy)
    [first, second] = sorted(raw.glob("sub-*/anat/*.nii.gz"))
    shutil.copyfile(second, first)
    page = copy / f"{first.name.partition('_')[0]}.html"
    before = page.read_bytes()
    assert main([str(raw), str(copy), "participant", *QUICK, "--reports-only"]) == 1
    said = capfd.readouterr().err
    assert f"{first.name} failed: a result can only be shown on the image that it was made" in said
    assert page.read_bytes() == before


def test_many_sessions_have_a_page_each_and_the_participants_links_to_them(reported, tmp_path):
    _, out = reported
    home = out / "sub-01/anat"
    for name in "abcd":
        folder = tmp_path / f"sub-01/ses-{name}/anat"
        folder.mkdir(parents=True)
        for path in home.iterdir():
            shutil.copy(path, folder / path.name.replace("sub-01_", f"sub-01_ses-{name}_"))
    page = write_page(tmp_path, "01").read_text()
    for name in "abcd":
        assert f'href="sub-01_ses-{name}.html"' in page
        own = (tmp_path / f"sub-01_ses-{name}.html").read_text()
        assert f"sub-01/ses-{name}/anat/" in own
        assert own.count('<section class="lesion"') == len(lesions(out))
    assert '<section class="lesion"' not in page
    shutil.rmtree(tmp_path / "sub-01/ses-d")  # three fit on one page: the others would be stale
    write_page(tmp_path, "01")
    assert [each.name for each in tmp_path.glob("*.html")] == ["sub-01.html"]


def test_two_scans_of_one_participant_share_no_name_on_their_page(reported, tmp_path):
    _, out = reported
    folder = tmp_path / "sub-01/anat"
    folder.mkdir(parents=True)
    for path in (out / "sub-01/anat").iterdir():
        shutil.copy(path, folder)
        shutil.copy(path, folder / path.name.replace("desc-T2starw", "desc-swi"))
    page = write_page(tmp_path, "01").read_text()
    names = re.findall(r' id="([^"]*)"', page)
    assert len(names) == len(set(names)) > 2 * len(lesions(out))
    groups = set(re.findall(r'type="radio" name="([^"]*)"', page))
    assert len(groups) == 2 * len(lesions(out))


def test_what_comes_from_data_is_never_code(reported, tmp_path):
    """A flag, a reason and a participant that would be scripts."""
    _, out = reported
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    table = next((copy / "sub-01/anat").glob("*seg-CMB*dseg.tsv"))
    rows = read_table(table)
    rows[0]["flags"] = "<script>alert(1)</script>"
    write_table(table, list(rows[0]), rows)
    page = write_page(copy, "01").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    group = read_table(copy / "group_microbleeds.tsv")
    group[0] |= {"status": "failed", "reason": "<img src=x onerror=alert(1)>", "source": "<b>x</b>"}
    write_group_page(copy, Cohort(group), "none.png")
    text = (copy / "group_microbleeds.html").read_text()
    assert "<img src=x" not in text
    assert "<b>x</b>" not in text


def test_a_lesion_has_the_next_territory_on_its_card(reported, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(reported[1], copy)
    table = next((copy / "sub-01/anat").glob("*seg-CMB*dseg.tsv"))
    rows = read_table(table)
    rows[0] |= {"nearest_other_territory": "deep", "nearest_other_territory_mm": "3.4"}
    rows[1] |= {"nearest_other_territory": None, "nearest_other_territory_mm": None}
    write_table(table, list(rows[0]), rows)
    cards = write_page(copy, "01").read_text().split('<section class="lesion"')
    assert "<dt>next territory</dt><dd>deep, 3.4 mm off</dd>" in cards[1]
    assert "next territory" not in cards[2]


def test_counts_by_territory_say_what_deep_white_matter_is(reported, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(reported[1], copy)
    sidecar = next((copy / "sub-01" / "anat").glob("*_label-CMB_*_mask.json"))
    content = json.loads(sidecar.read_text())
    counts = {"n_lobar": 4, "n_deep": 2, "n_infratentorial": 0, "pattern": "mixed"}
    sidecar.write_text(json.dumps(content | {"Microbleeds": content["Microbleeds"] | counts}))
    page = write_page(copy, "01").read_text()
    definition = "White matter counts as deep within 10 mm of a lateral ventricle"
    assert "Lobar 4, deep 2, infratentorial 0; pattern: mixed." in page
    assert definition in page
    write_group_page(copy, Cohort(read_table(copy / "group_microbleeds.tsv")), "none.png")
    assert definition in (copy / "group_microbleeds.html").read_text()


def test_eighty_lesions_and_five_thousand_scans_are_fine(reported, tmp_path):
    _, out = reported
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    table = next((copy / "sub-01/anat").glob("*seg-CMB*dseg.tsv"))
    row = read_table(table)[0]
    write_table(table, list(row), [{**row, "index": str(at)} for at in range(1, 81)])
    page = write_page(copy, "01").read_text()
    assert page.count('<section class="lesion"') == 80
    group = read_table(copy / "group_microbleeds.tsv")
    write_group_page(copy, Cohort(group[:1] * 5000), "none.png")
    assert (copy / "group_microbleeds.html").stat().st_size < 5e6
