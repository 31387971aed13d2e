"""The life of one scan in the output folder: done means done, and what is not is made."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from phantoms import stripped
from running import no_other_process

from bids_cmb import provenance
from bids_cmb.bids.companions import find_segmentation
from bids_cmb.bids.paths import Output
from bids_cmb.bids.scan import Scan
from bids_cmb.bids.tables import read_columns, read_table, write_table
from bids_cmb.cli import run as cli
from bids_cmb.config import Config
from bids_cmb.errors import IO_ERROR
from bids_cmb.files import write_json
from bids_cmb.imaging.nifti import save
from bids_cmb.report import figures as pictures
from bids_cmb.report.html import write_page
from bids_cmb.workflow import inputs, outputs, status
from bids_cmb.workflow import scan as participant
from bids_cmb.workflow.inputs import record_inputs, resolve_inputs
from bids_cmb.workflow.scan import is_complete

QUICK = [
    *("--detector", "radial", "--anatomy", "none", "--validate", "off"),
    *("--skip-brain-extraction", "--n-cpus", "1", "--longitudinal", "off"),
]
ONE, TWO = (f"sub-01/anat/sub-01_acq-{name}_T2starw.nii.gz" for name in "ab")


@pytest.fixture(autouse=True)
def _no_other_process(one_process):
    """Whatever the app does is done here."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of one participant with two scans, and what the app made of it, with pages."""
    root = tmp_path_factory.mktemp("life")
    for source, seed in ((ONE, 3), (TWO, 4)):
        save(stripped(seed), root / "raw" / source)
    about = '{"Name": "Two", "BIDSVersion": "1.11.1"}'
    (root / "raw/dataset_description.json").write_text(about)
    with no_other_process():
        assert run(root) == 0
    return root


def run(root, *words, levels=("participant", "group")):
    return cli.main([str(root / "raw"), str(root / "out"), *levels, *QUICK, *words])


@pytest.fixture
def here(made, tmp_path):
    """A copy of both that a test may spoil."""
    shutil.copytree(made, tmp_path / "life")
    return tmp_path / "life"


def anat(root, end, acq="a"):
    return root / f"out/sub-01/anat/sub-01_acq-{acq}_space-orig_{end}"


def mask(root, acq="a"):
    return anat(root, "label-CMB_desc-T2starw_mask.nii.gz", acq)


def table(root):
    rows = read_table(root / "out/sub-01/sub-01_scans.tsv")
    return [row["filename"].split("_")[1] for row in rows]


def statuses(root):
    return [row["status"] for row in read_table(root / "out/group_microbleeds.tsv")]


def unread(root):
    """When the results were written: the same if no scan was read anew."""
    return [mask(root, acq).stat().st_mtime_ns for acq in "ab"]


def test_a_scan_whose_pictures_could_not_be_drawn_is_not_done(here, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no picture today")

    with monkeypatch.context() as patched:
        patched.setattr(outputs, "draw_figures", fail)
        assert run(here, "--threshold", "0.3") == 1
    assert run(here, "--threshold", "0.3") == 0
    assert len(list((here / "out/sub-01/figures").glob("*_overview.json"))) == 2
    assert (here / "out/sub-01.html").is_file()
    assert statuses(here) == ["ok", "ok"]


def test_a_page_that_could_not_be_written_is_made_by_the_next_run(here, monkeypatch):
    (here / "out/sub-01.html").unlink()

    def fail(*_, **__):
        raise OSError(5, "Input/output error", "sub-01.html")

    with monkeypatch.context() as patched:
        patched.setattr(participant, "write_page", fail)
        assert run(here, "--overwrite") == 1
    before = unread(here)
    assert run(here) == 0
    assert (here / "out/sub-01.html").is_file()
    assert statuses(here) == ["ok", "ok"]
    assert unread(here) == before


def test_a_row_that_lacks_in_the_scans_table_is_written(here):
    """As after a kill between a scan's marker and the table of its session."""
    path, before = here / "out/sub-01/sub-01_scans.tsv", unread(here)
    write_table(path, read_columns("scan"), read_table(path)[:1])
    assert run(here) == 0
    assert table(here) == ["acq-a", "acq-b"]
    assert unread(here) == before


@pytest.mark.parametrize(
    "lost",
    [
        "sub-01.html",
        "sub-01/figures/sub-01_acq-a_space-orig_desc-T2starw_overview.json",
        "sub-01/figures/sub-01_acq-a_space-orig_desc-T2starw_slab-01.webp",
    ],
)
def test_a_page_or_a_picture_that_lacks_is_made_without_reading_the_scan_anew(here, lost):
    before = unread(here)
    (here / "out" / lost).unlink()
    assert run(here) == 0
    assert (here / "out" / lost).is_file()
    assert unread(here) == before


def test_a_page_that_was_made_before_its_pictures_is_made_anew(here):
    """As after a kill between a scan's pictures and its page."""
    page, figures = here / "out/sub-01.html", here / "out/sub-01/figures"
    whole = page.read_bytes()
    figures.rename(here / "aside")
    write_page(here / "out", "01")
    (here / "aside").rename(figures)
    assert page.read_bytes() != whole
    assert run(here) == 0
    assert page.read_bytes() == whole


def test_a_report_that_is_asked_for_later_is_made_without_reading_the_scan_anew(here):
    before = unread(here)
    assert run(here, "--report", "interactive") == 0
    assert len(list((here / "out/sub-01/figures").glob("*_view.js"))) == 2
    assert "_view.js" in (here / "out/sub-01.html").read_text()
    shutil.rmtree(here / "out/sub-01/figures")
    (here / "out/sub-01.html").unlink()
    assert run(here, "--report", "none") == 0
    assert not (here / "out/sub-01.html").exists()
    assert run(here, "--report", "static") == 0
    assert (here / "out/sub-01.html").is_file()
    assert unread(here) == before


def test_without_a_brain_mask_a_later_report_reads_the_scan_anew(here):
    minimal = ("--output-level", "minimal")
    assert run(here, *minimal, "--report", "none") == 0
    assert run(here, *minimal, "--report", "static") == 0
    assert (here / "out/sub-01.html").is_file()


def test_no_report_leaves_no_page_and_no_picture_of_what_was_found_before(here):
    assert run(here, "--threshold", "0.99", "--report", "none") == 0
    assert not list(here.glob("out/sub-01*.html"))
    assert not list(here.glob("out/sub-01/figures/*"))


def altered(path):
    whole = bytearray(path.read_bytes())
    whole[-9] ^= 1
    path.write_bytes(whole)


DAMAGE = {
    "emptied": (lambda path: path.write_bytes(b""), "label-CMB_desc-T2starw_mask.nii.gz"),
    "cut": (
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        "seg-CMB_desc-T2starw_dseg.tsv",
    ),
    "altered": (altered, "label-CMB_desc-T2starw_mask.nii.gz"),
    "deleted": (Path.unlink, "label-brain_desc-T2starw_mask.json"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_result_is_made_again_to_the_same_bytes(here, how):
    damage, end = DAMAGE[how]
    path = anat(here, end)
    whole = path.read_bytes()
    damage(path)
    assert run(here) == 0
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "marker", ['{"Provenance": [1]}', "[]", '{"Microbleeds": 3}', '{"Microbleeds": {"n_cmb": "x"}}']
)
def test_an_odd_marker_is_no_marker(here, marker):
    sign = mask(here).with_name(mask(here).name.replace(".nii.gz", ".json"))
    sign.write_text(marker)
    assert run(here) == 0
    assert json.loads(sign.read_text())["Microbleeds"]["n_cmb"] >= 0
    assert statuses(here) == ["ok", "ok"]


def test_a_scan_that_is_replaced_while_it_is_read_is_not_vouched_for(here, monkeypatch, capfd):
    detect = participant.detect

    def slowly(*words):
        path = here / "raw" / ONE
        shutil.copy2(here / "raw" / TWO, here / "new.nii.gz")
        (here / "new.nii.gz").replace(path)
        return detect(*words)

    with monkeypatch.context() as patched:
        patched.setattr(participant, "detect", slowly)
        assert run(here, "--overwrite") == 1
    assert "must not change while it is processed" in capfd.readouterr().err
    assert run(here) == 0
    assert mask(here, "a").read_bytes() == mask(here, "b").read_bytes()  # now the same scan
    assert statuses(here) == ["ok", "ok"]


def test_a_file_of_the_same_size_and_time_is_still_another_file(here):
    path = here / "raw" / ONE
    status, size = path.stat(), path.stat().st_size
    path.write_bytes((here / "raw" / TWO).read_bytes()[:size].ljust(size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(here) == 1  # it is read, and is no image


def test_an_output_folder_that_is_deleted_during_the_run_is_told(here, monkeypatch, capfd):
    summarised = participant.ScanSummary

    def then_gone(*words):
        shutil.rmtree(here / "out")
        return summarised(*words)

    monkeypatch.setattr(participant, "ScanSummary", then_gone)
    assert run(here, "--overwrite") == IO_ERROR
    said = capfd.readouterr().err
    assert "was removed during the run" in said
    assert "Traceback" not in said
    assert not list((here / "out").rglob("*")) if (here / "out").exists() else True


@pytest.mark.parametrize("year", ["1999", "2099"])
def test_a_failure_that_was_mended_is_none_whatever_the_clock_said(here, monkeypatch, year):
    path = here / "raw" / ONE
    kept = path.read_bytes()
    path.write_bytes(kept[:2000])
    with monkeypatch.context() as patched:
        patched.setattr(status, "_now", lambda: f"{year}-01-01T00:00:00+00:00")
        assert run(here) == 1
    assert statuses(here) == ["outdated", "ok"]
    assert table(here) == ["acq-b"]
    assert "Not current" in (here / "out/sub-01.html").read_text()
    path.write_bytes(kept)
    assert run(here) == 0
    assert statuses(here) == ["ok", "ok"]
    assert table(here) == ["acq-a", "acq-b"]
    assert "Not current" not in (here / "out/sub-01.html").read_text()


def test_a_scan_that_left_the_dataset_is_no_current_count(here):
    (here / "raw" / ONE).unlink()
    assert run(here) == 0
    assert statuses(here) == ["gone", "ok"]


def test_results_that_a_run_with_other_settings_did_not_come_to_are_not_current(here, monkeypatch):
    def fail(*_):
        raise ValueError("no detector today")

    monkeypatch.setattr(participant, "detect", fail)
    assert run(here, "--threshold", "0.2", "--stop-on-first-crash") == 1
    assert statuses(here) == ["outdated", "outdated"]
    assert run(here) == 0  # as at first: all of it stands
    assert statuses(here) == ["ok", "ok"]


def test_a_file_that_cannot_be_used_is_no_crash(here):
    (here / "raw" / ONE).write_bytes((here / "raw" / ONE).read_bytes()[:2000])
    assert run(here) == 1
    assert not list(here.glob("out/logs/*/crash-*"))


def test_a_defect_leaves_a_crash_file_with_its_traceback(here, monkeypatch):
    def fail(*_):
        raise ValueError("operands could not be broadcast")

    monkeypatch.setattr(participant, "detect", fail)
    assert run(here, "--overwrite", "--stop-on-first-crash") == 1
    [crash] = here.glob("out/logs/*/crash-*")
    assert "Traceback" in crash.read_text()


def test_a_picture_that_another_process_cleared_away_stops_nothing(here, monkeypatch):
    glob = Path.glob

    def with_a_ghost(self, pattern, **more):
        ghost = [self / "gone.png"] if pattern.endswith("T2starw_*") else []
        return [*ghost, *glob(self, pattern, **more)]

    with monkeypatch.context() as patched:
        patched.setattr(Path, "glob", with_a_ghost)
        assert run(here, "--overwrite") == 0
    assert pictures.draw_figures is outputs.draw_figures


# --- The fingerprint ------------------------------------------------------------------------------


@pytest.fixture
def one(here):
    """A scan and its settings, done."""
    config = Config(
        here / "raw",
        here / "out",
        ("participant",),
        detector=("radial",),
        anatomy="none",
        skip_brain_extraction=True,
    )
    path = here / "raw" / ONE
    scan = Scan(path, ONE, "anat", "T2starw", (("sub", "01"), ("acq", "a")))
    participant.process_scan(scan, config)
    assert is_complete(scan, config)
    return scan, config


@pytest.mark.parametrize("library", ["tensorflow", "keras", "simpleitk", "scipy"])
def test_another_engine_is_another_result(one, monkeypatch, library):
    version = provenance.metadata.version

    def other(name):
        return "0.0" if name.startswith(library) else version(name)

    monkeypatch.setattr(provenance.metadata, "version", other)
    provenance._version.cache_clear()
    try:
        assert not is_complete(*one)
    finally:
        monkeypatch.undo()
        provenance._version.cache_clear()


def test_other_code_is_another_result(one, monkeypatch):
    monkeypatch.setattr(inputs, "package_digest", lambda: "other")
    assert not is_complete(*one)


def test_the_code_is_told_by_names_and_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)

    def told():
        provenance.package_digest.cache_clear()
        return provenance.package_digest()

    (tmp_path / "a.py").write_text("1")
    first = told()
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    second = told()
    (tmp_path / "b.py").write_text("2")
    third = told()
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/b.pyc").write_text("3")
    assert len({first, second, third}) == 3
    assert told() == third
    monkeypatch.undo()
    provenance.package_digest.cache_clear()


def test_the_sidecar_names_tensorflow_and_the_code(one):
    scan, config = one
    made = json.loads(Output(config.output_dir, scan).mask(".json").read_text())["Provenance"]
    assert made["Software"]["tensorflow"][0].isdigit()
    assert len(made["CodeSHA256"]) == 64
    assert [item["Role"] for item in made["Input"]] == ["scan"]


def test_what_a_file_was_taken_for_is_part_of_the_result(one, tmp_path):
    """The same bytes in another space, by name alone."""
    scan, config = one
    home = tmp_path / "seg/sub-01/anat"
    home.mkdir(parents=True)
    (home / "sub-01_space-T1w_desc-aseg_dseg.nii.gz").write_bytes(b"codes")
    config = replace(config, derivatives=(tmp_path / "seg",))
    before = record_inputs(resolve_inputs(scan, config))
    (home / "sub-01_space-T1w_desc-aseg_dseg.nii.gz").rename(
        home / "sub-01_space-orig_desc-aseg_dseg.nii.gz"
    )
    after = record_inputs(resolve_inputs(scan, config))
    assert [item["SHA256"] for item in before.stamps] == [item["SHA256"] for item in after.stamps]
    assert before.fingerprint != after.fingerprint


# --- Cost -----------------------------------------------------------------------------------------

LISTED = []
sys.addaudithook(
    lambda event, words: LISTED.append(words[0]) if event in ("os.scandir", "os.listdir") else None
)


def listed_by(work):
    work()  # what is looked up once for all scans
    LISTED.clear()
    work()
    return len(LISTED)


def test_a_page_and_a_look_for_derivatives_cost_the_same_among_any_number_of_people(tmp_path):
    counts = []
    for people in (50, 500):
        root = tmp_path / str(people)
        for at in range(people):
            (root / f"out/sub-{at:04d}/ses-1/anat").mkdir(parents=True)
            (root / f"freesurfer/sub-{at:04d}_ses-1/mri").mkdir(parents=True)
        home = root / "out/sub-0007/ses-1/anat"
        write_json(
            home / "sub-0007_ses-1_space-orig_label-CMB_desc-T2starw_mask.json",
            {"Microbleeds": {"n_cmb": 0}},
        )
        path = root / "raw/sub-0007/ses-2/anat/sub-0007_ses-2_T2starw.nii.gz"
        entities = (("sub", "0007"), ("ses", "2"))
        scan = Scan(path, "sub-0007/ses-2/anat/x", "anat", "T2starw", entities)
        folders = [root / "freesurfer"]
        counts.append(
            (
                listed_by(lambda root=root: write_page(root / "out", "0007")),
                listed_by(
                    lambda folders=folders, scan=scan, root=root: find_segmentation(
                        folders, scan, root / "raw"
                    )
                ),
            )
        )
    assert counts[0] == counts[1]


def test_a_new_session_of_freesurfer_is_seen(tmp_path):
    scan = Scan(Path("x"), "x", "anat", "T2starw", (("sub", "01"), ("ses", "2")))
    assert find_segmentation([tmp_path], scan, tmp_path / "raw") is None
    (tmp_path / "sub-01_ses-1/mri").mkdir(parents=True)
    (tmp_path / "sub-01_ses-1/mri/aseg.mgz").touch()
    assert find_segmentation([tmp_path], scan, tmp_path / "raw").in_t1w_space


def test_a_scan_that_left_the_dataset_is_not_current_on_its_page_nor_in_its_table(
    dataset, tmp_path
):
    """The group table called it gone, and the page showed its count without a word."""
    out = tmp_path / "out"
    raw = dataset({f"sub-01/ses-{n}/anat/sub-01_ses-{n}_T2starw": "ball" for n in (1, 2)})
    words = [str(raw), str(out), "participant", *QUICK]
    assert cli.main(words) == 0
    scan = raw / "sub-01/ses-2/anat/sub-01_ses-2_T2starw.nii.gz"
    away = tmp_path / "away.nii.gz"
    scan.rename(away)
    assert cli.main(words) == 0
    assert list(out.glob("sub-01/ses-1/*_scans.tsv"))
    assert not list(out.glob("sub-01/ses-2/*_scans.tsv"))
    page = (out / "sub-01.html").read_text()
    assert page.count("Not current.") == page.count("The dataset no longer has the scan.") == 1
    away.rename(scan)
    assert cli.main(words) == 0
    assert list(out.glob("sub-01/ses-2/*_scans.tsv"))
    assert "Not current." not in (out / "sub-01.html").read_text()
