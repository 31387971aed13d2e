"""The app from end to end: what a user types, and every file that it leaves."""

import gzip
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from running import no_other_process
from scipy import ndimage

from bids_cmb.bids.tables import read_table
from bids_cmb.cli import run as cli
from bids_cmb.cli.main import main as one_command
from bids_cmb.files import write_json
from bids_cmb.networks.backend import choose_engine
from bids_cmb.networks.model_cards import DETECTION, list_cards, load_card, locate_weights
from bids_cmb.networks.weights import read_weights, write_weights
from bids_cmb.workflow import result
from bids_cmb.workflow import run as app

ROOT = Path(__file__).parents[2]
QUICK = ["--detector", "radial", "--anatomy", "none", "--report", "none"]  # seconds saved
BALLS = ["--skip-brain-extraction"]  # for scans that are stripped balls: the slowest step saved


def main(words):
    """The app without networks, unless the words ask for some."""
    return cli.main([*words, *(QUICK if "--detector" not in words else [])])


VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")


def files(folder):
    """Every file but the logs, by its path from the folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(found)
        if "logs" not in path.relative_to(folder).parts
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory, heads):
    """A dataset of two participants, and what the app made of it on both levels."""
    with no_other_process():
        return read(tmp_path_factory.mktemp("two"), heads, ("six", "ball"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory, heads):
    """The same of two balls, where it does not matter what a head looks like."""
    return read(tmp_path_factory.mktemp("pair"), heads, ("ball", "ball"), *BALLS)


def read(root, heads, names, *words):
    """Make a dataset of two participants and run the app on it."""
    raw = root / "raw"
    for subject, head in zip(("01", "02"), names, strict=True):
        path = raw / f"sub-{subject}/anat/sub-{subject}_T2starw.nii.gz"
        path.parent.mkdir(parents=True)
        shutil.copyfile(heads[0] / f"{head}.nii.gz", path)
    (raw / "T2starw.json").write_text('{"EchoTime": 0.02, "MagneticFieldStrength": 3}')
    (raw / "dataset_description.json").write_text('{"Name": "Two", "BIDSVersion": "1.11.1"}')
    levels = ["participant", "group", "--output-level", "full"]
    assert main([str(raw), str(root / "out"), *levels, *words]) == 0
    return raw, root / "out"


def test_the_files_are_those_of_the_layout(two):
    anat = "sub-01/anat/sub-01_space-orig"
    assert [name for name in files(two[1]) if not name.startswith("sub-02")] == [
        ".bidsignore",
        "README.md",
        "dataset_description.json",
        "descriptions.json",
        "descriptions.tsv",
        "group_lesions.json",
        "group_lesions.tsv",
        "group_microbleeds.html",
        "group_microbleeds.json",
        "group_microbleeds.tsv",
        "group_regions.json",
        "group_regions.tsv",
        "scans.json",
        f"{anat}_desc-preproc_T2starw.json",
        f"{anat}_desc-preproc_T2starw.nii.gz",
        f"{anat}_label-CMB_desc-T2starw_mask.json",
        f"{anat}_label-CMB_desc-T2starw_mask.nii.gz",
        f"{anat}_label-CMB_desc-T2starw_probseg.json",
        f"{anat}_label-CMB_desc-T2starw_probseg.nii.gz",
        f"{anat}_label-brain_desc-T2starw_mask.json",
        f"{anat}_label-brain_desc-T2starw_mask.nii.gz",
        f"{anat}_seg-CMB_desc-T2starw_dseg.json",
        f"{anat}_seg-CMB_desc-T2starw_dseg.nii.gz",
        f"{anat}_seg-CMB_desc-T2starw_dseg.tsv",
        "sub-01/sub-01_scans.tsv",
    ]


def test_most_microbleeds_of_a_phantom_are_found_where_they_are(two, heads):
    rows = read_table(next(two[1].glob("sub-01/anat/*_dseg.tsv")))
    found = np.array([[float(row[key]) for key in ("x_mm", "y_mm", "z_mm")] for row in rows])
    hits = [np.linalg.norm(found - bleed.centre, axis=1).min() < 3 for bleed in heads[1]["six"]]
    assert sum(hits) >= 4  # of 6
    assert len(rows) <= 10


def test_map_mask_table_and_counts_tell_the_same(two):
    anat = two[1] / "sub-01/anat/sub-01_space-orig"
    labels = nib.load(f"{anat}_seg-CMB_desc-T2starw_dseg.nii.gz")
    mask = nib.load(f"{anat}_label-CMB_desc-T2starw_mask.nii.gz")
    rows = read_table(Path(f"{anat}_seg-CMB_desc-T2starw_dseg.tsv"))
    [scan] = read_table(two[1] / "sub-01/sub-01_scans.tsv")

    values = np.asarray(labels.dataobj)
    assert [int(row["index"]) for row in rows] == list(range(1, values.max() + 1))
    counted = [int(row["index"]) for row in rows if row["included"] == "yes"]
    np.testing.assert_array_equal(np.asarray(mask.dataobj) == 1, np.isin(values, counted))
    assert int(scan["n_cmb"]) == len(counted)
    assert ndimage.label(np.asarray(mask.dataobj), np.ones((3, 3, 3)))[1] == len(counted)
    voxel = abs(np.linalg.det(labels.affine[:3, :3]))
    for row in rows:
        inside = values == int(row["index"])
        assert float(row["volume_mm3"]) == pytest.approx(inside.sum() * voxel, rel=1e-3)
        centre = nib.affines.apply_affine(labels.affine, [float(row[axis]) for axis in "ijk"])
        said = [float(row[key]) for key in ("x_mm", "y_mm", "z_mm")]
        assert said == pytest.approx(centre, abs=0.05)


def test_results_lie_on_the_grid_of_the_scan(two):
    scan = nib.load(two[0] / "sub-01/anat/sub-01_T2starw.nii.gz")
    for path in two[1].glob("sub-01/anat/*.nii.gz"):
        image = nib.load(path)
        assert image.shape == scan.shape
        np.testing.assert_array_equal(image.affine, scan.affine)
        assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)


def test_the_protocol_stands_beside_the_counts(two):
    [row] = read_table(two[1] / "sub-01/sub-01_scans.tsv")
    assert (row["field_strength_t"], row["echo_time_ms"]) == ("3.0", "20.0")
    assert (row["voxel_size_1_mm"], row["slice_spacing_mm"]) == ("1.4", "4.0")
    assert 900 < float(row["brain_ml"]) < 1900


def test_the_group_table_has_a_row_for_each_scan(two):
    rows = read_table(two[1] / "group_microbleeds.tsv")
    assert [(row["participant_id"], row["session_id"], row["status"]) for row in rows] == [
        ("sub-01", None, "ok"),
        ("sub-02", None, "ok"),
    ]
    [alone] = read_table(two[1] / "sub-01/sub-01_scans.tsv")
    assert rows[0]["n_cmb"] == alone["n_cmb"]
    assert (two[1] / rows[0]["filename"]).is_file()


def test_a_second_call_does_nothing_and_says_so(two, capsys):
    before = {name: path.stat().st_mtime_ns for name, path in files(two[1] / "sub-01").items()}
    assert main([*map(str, two), "participant", "--output-level", "full"]) == 0
    said = capsys.readouterr().err
    assert "2 of 2 scans already complete." in said
    assert "0 scans processed, 2 already complete, 0 failed, 0 not processed." in said
    assert before == {
        name: path.stat().st_mtime_ns for name, path in files(two[1] / "sub-01").items()
    }


@pytest.mark.usefixtures("one_process")
def test_overwriting_gives_the_same_bytes(pair, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(pair[1], again)
    words = [str(pair[0]), str(again), "participant", "group", "--output-level", "full", *BALLS]
    assert main([*words, "--overwrite", "--n-cpus", "1"]) == 0
    one, other = files(pair[1]), files(again)
    assert read_table(next(again.glob("sub-01/anat/*_dseg.tsv")))  # there are lesions
    assert list(one) == list(other)
    for name, path in one.items():
        if name == "dataset_description.json":  # the way to the scans is another one
            continue
        if not name.endswith("_label-CMB_desc-T2starw_mask.json"):  # it says when and how long
            assert path.read_bytes() == other[name].read_bytes(), name


@pytest.mark.usefixtures("one_process")
def test_other_settings_or_another_input_are_done_anew(pair, tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(pair[0], raw)
    shutil.copytree(pair[1], out)
    words = [str(raw), str(out), "participant", "--participant-label", "02", *BALLS]
    assert main([*words, "--output-level", "full"]) == 0  # copied: new times, same content
    assert "0 scans processed, 1 already complete" in capsys.readouterr().err
    assert main(words) == 0
    assert "1 scan processed" in capsys.readouterr().err
    assert not list(out.glob("sub-02/anat/*preproc*"))  # what the level no longer asks for is gone
    (raw / "T2starw.json").write_text('{"EchoTime": 0.03, "MagneticFieldStrength": 3}')
    assert main(words) == 0
    assert "1 scan processed" in capsys.readouterr().err


@pytest.mark.usefixtures("one_process")
def test_what_is_missing_of_a_result_is_made_again(pair, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(pair[1], out)
    next(out.glob("sub-02/anat/*_dseg.tsv")).unlink()
    (out / "sub-01/sub-01_scans.tsv").unlink()
    words = [str(pair[0]), str(out), "participant", "--output-level", "full", *BALLS]
    assert main(words) == 0
    assert "1 scan processed, 1 already complete" in capsys.readouterr().err
    assert next(out.glob("sub-02/anat/*_dseg.tsv")).is_file()
    assert len(read_table(out / "sub-01/sub-01_scans.tsv")) == 1


@pytest.mark.usefixtures("one_process")
def test_a_saved_config_repeats_the_run(pair, tmp_path):
    settings = next(pair[1].glob("logs/*/config.toml"))
    words = ["--config-file", str(settings), str(pair[0]), str(tmp_path / "out"), "participant"]
    assert main(words) == 0
    names = {name for name in files(pair[1]) if not name.startswith("group")}
    assert set(files(tmp_path / "out")) == names


def test_sidecars_say_what_made_the_result(two):
    sidecar = json.loads(next(two[1].glob("sub-01/anat/*_label-CMB_*_mask.json")).read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-01/anat/sub-01_T2starw.nii.gz"]
    assert (sidecar["EchoTime"], sidecar["MagneticFieldStrength"]) == (0.02, 3)
    made = sidecar["Provenance"]
    assert made["Settings"]["detector"] == ["radial"]
    assert len(made["Input"][0]["SHA256"]) == 64
    assert made["Software"]["numpy"] == np.__version__
    assert made["Seconds"] > 0
    description = json.loads((two[1] / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    link = description["DatasetLinks"]["raw"]
    assert description["SourceDatasets"] == [{"URL": link}]
    assert (two[1] / link).resolve() == two[0].resolve()
    assert not link.startswith(("/", "file:"))


def test_the_methods_say_what_was_done(two, capsys):
    text = next(two[1].glob("logs/*/CITATION.md")).read_text()
    assert "radial symmetry" in text
    assert f"at least {load_card('radial')['threshold']:g}" in text
    assert main([*map(str, two), "participant", "--boilerplate-only", "--threshold", "0.3"]) == 0
    assert "at least 0.3" in capsys.readouterr().out


@pytest.mark.usefixtures("one_process")
def test_one_truncated_scan_is_one_failure(dataset, tmp_path, capsys):
    raw = dataset({f"sub-0{n}/anat/sub-0{n}_T2starw": "ball" for n in (1, 2, 3)})
    broken = raw / "sub-02/anat/sub-02_T2starw.nii.gz"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    out = tmp_path / "out"
    assert main([str(raw), str(out), "participant", "group", *BALLS]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "sub-02" in line]
    assert "Started sub-02_T2starw (2 of 3)" in lines[0]
    [failure] = lines[1:]
    assert failure.count("sub-02_T2starw.nii.gz") == 1
    assert "sub-02/anat/sub-02_T2starw.nii.gz failed: the file must hold" in failure
    assert "truncated or damaged" in failure
    assert len(list(out.glob("sub-*/anat/*_dseg.tsv"))) == 2
    assert not list(out.glob("logs/*/crash-*"))  # the file is broken, not the app
    rows = read_table(out / "group_microbleeds.tsv")
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert rows[1]["reason"].startswith("the file must hold all voxels")
    assert rows[1]["n_cmb"] is None


@pytest.mark.usefixtures("one_process")
def test_a_failure_that_was_mended_is_no_failure_any_more(dataset, tmp_path, heads):
    raw = dataset({"sub-01/anat/sub-01_T2starw": "ball", "sub-02/anat/sub-02_T2starw": "ball"})
    path, out = raw / "sub-01/anat/sub-01_T2starw.nii.gz", tmp_path / "out"
    path.write_bytes(b"no image")
    assert main([str(raw), str(out), "participant", "group", *BALLS]) == 1
    shutil.copyfile(heads[0] / "ball.nii.gz", path)
    assert main([str(raw), str(out), "participant", "group", *BALLS]) == 0
    assert {row["status"] for row in read_table(out / "group_microbleeds.tsv")} == {"ok"}


@pytest.mark.usefixtures("one_process")
def test_what_cannot_be_read_is_listed_and_the_others_are_done(dataset, tmp_path, capsys):
    raw = dataset({"sub-01/anat/sub-01_T2starw": "ball"})
    for subject in ("02", "03"):
        (raw / f"sub-{subject}/anat").mkdir(parents=True)
    (raw / "sub-02/anat/sub-02_T2starw.nii.gz").symlink_to("../../.git/annex/objects/none")
    (raw / "sub-03/anat/sub-03_T2starw.nii.gz").touch()
    out = tmp_path / "out"
    assert main([str(raw), str(out), "participant", "group", *BALLS]) == 1
    said = capsys.readouterr().err
    assert "sub-02/anat/sub-02_T2starw.nii.gz is not fetched" in said
    assert "sub-03/anat/sub-03_T2starw.nii.gz is empty (0 bytes)" in said
    rows = read_table(out / "group_microbleeds.tsv")
    assert [row["status"] for row in rows] == ["ok", "failed", "failed"]


def test_where_nothing_can_be_read_the_code_says_so(tmp_path, capsys):
    raw = tmp_path / "raw"
    (raw / "sub-01/anat").mkdir(parents=True)
    words = [str(raw), str(tmp_path / "out"), "participant"]
    assert main(words) == 18
    assert "no scan fits the selection.\n" in capsys.readouterr().err
    (raw / "sub-01/anat/sub-01_T2starw.nii.gz").touch()
    assert main(words) == 66
    assert "no scan can be processed; unusable: 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_labels_stop_before_any_work_and_list_what_exists(two, tmp_path, capsys):
    out = tmp_path / "out"
    words = [str(two[0]), str(out), "participant"]
    assert main([*words, "--participant-label", "01", "99"]) == 18
    said = capsys.readouterr().err
    assert "99" in said
    assert "02" in said
    assert main([*words, "--session-label", "x"]) == 18
    assert not out.exists()


def test_a_malformed_filter_file_is_bad_data(two, tmp_path, capsys):
    path = tmp_path / "filter.json"
    path.write_text("{")
    words = [*map(str, two), "participant", "--bids-filter-file"]
    assert main([*words, str(path)]) == 65
    assert "filter.json" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "none.json")]) == 66
    assert "filter file cannot be read" in capsys.readouterr().err


def test_unknown_detectors_and_flags_are_refused(two, capsys):
    words = [*map(str, two), "participant"]
    assert main([*words, "--detector", "magic"]) == 64
    names = ", ".join(list_cards(DETECTION))
    assert f"must be one of {names}; found 'magic'" in capsys.readouterr().err
    assert main([*words, "--exclude-flags", "ugly"]) == 64
    assert "flags of large small edge vessel csf; found ugly" in capsys.readouterr().err


def test_a_dry_run_prints_the_selection_and_writes_nothing(two, tmp_path, capsys):
    assert main([str(two[0]), str(tmp_path / "out"), "participant", "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("process\tsub-01/anat/sub-01_T2starw.nii.gz\t")
    assert said[-1] == "Scans to process: 2"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_every_image_and_how_a_susceptibility_image_is_named(
    tmp_path, heads, capsys
):
    raw = tmp_path / "raw"
    for name in ("sub-01/anat/sub-01_T1w", "sub-01/swi/sub-01_swi", "sub-02/ses-1/anat/sub-02_T2w"):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(heads[0] / "none.nii.gz", raw / f"{name}.nii.gz")
    (raw / "dataset_description.json").write_text('{"Name": "Two", "BIDSVersion": "1.11.1"}')
    assert main([str(raw), str(tmp_path / "out"), "participant", "--dry-run", "-q"]) == 0
    *listed, last = capsys.readouterr().out.splitlines()
    verbs = {path: (verb, reason) for verb, path, reason in (line.split("\t") for line in listed)}
    images = sorted(path.relative_to(raw).as_posix() for path in raw.rglob("*.nii.gz"))
    assert sorted(verbs) == [line.split("\t")[1] for line in listed] == images
    assert [verb for verb, _ in verbs.values()].count("process") == 1
    verb, reason = verbs["sub-02/ses-1/anat/sub-02_T2w.nii.gz"]
    assert verb == "skip"
    assert "name it sub-02_T2starw.nii.gz or sub-02_swi.nii.gz" in reason
    assert last == "Scans to process: 1"
    label = ["--participant-label", "01"]
    assert main([str(raw), str(tmp_path / "out"), "participant", "--dry-run", "-q", *label]) == 0
    assert "sub-02" not in capsys.readouterr().out


def test_the_log_says_what_began_what_is_left_and_which_page_to_open(tmp_path, heads, capsys):
    """Two scans, one after the other, each in the stages of its process."""
    raw = tmp_path / "raw"
    for subject in ("01", "02"):
        path = raw / f"sub-{subject}/anat/sub-{subject}_T2starw.nii.gz"
        path.parent.mkdir(parents=True)
        shutil.copyfile(heads[0] / "ball.nii.gz", path)
    (raw / "dataset_description.json").write_text('{"Name": "Two", "BIDSVersion": "1.11.1"}')
    flags = ["--detector", "radial", "--anatomy", "none", "--validate", "off", "-v", "--n-cpus"]
    words = [str(raw), str(tmp_path / "out"), "participant", "group", *BALLS]
    assert main([*words, *flags, "1"]) == 0
    lines = [line[9:] for line in capsys.readouterr().err.splitlines()]
    begun = [at for at, line in enumerate(lines) if line.startswith("Started ")]
    ended = [at for at, line in enumerate(lines) if " scans done" in line]
    assert [lines[at] for at in begun] == [
        "Started sub-01_T2starw (1 of 2).",
        "Started sub-02_T2starw (2 of 2).",
    ]
    assert begun[0] < lines.index("sub-01_T2starw: detecting") < ended[0] < begun[1] < ended[1]
    assert " left." in lines[ended[0]]
    assert lines[ended[1]] == "2 of 2 scans done."
    opened = [line for line in lines if line.startswith("Open in a browser: ")]
    assert opened[0] == f"Open in a browser: {tmp_path / 'out/sub-01.html'}, and 1 more"
    assert opened[1] == f"Open in a browser: {tmp_path / 'out/group_microbleeds.html'}"


def test_the_group_level_alone_needs_results_and_no_raw_data(two, tmp_path, capsys):
    assert main([str(tmp_path / "gone"), str(tmp_path / "empty"), "group"]) == 66
    assert "found no result of any scan" in capsys.readouterr().err
    out = tmp_path / "out"
    shutil.copytree(two[1], out)
    (out / "group_microbleeds.tsv").unlink()
    assert main([str(tmp_path / "gone"), str(out), "group"]) == 0
    assert len(read_table(out / "group_microbleeds.tsv")) == 2


@pytest.mark.usefixtures("one_process")
def test_scans_that_no_run_came_to_are_missing_in_the_group_table(dataset, tmp_path):
    raw = dataset({f"sub-0{n}/anat/sub-0{n}_T2starw": "none" for n in (1, 2)})
    (raw / "sub-01/anat/sub-01_T2starw.nii.gz").write_bytes(b"no image")
    out = tmp_path / "out"
    words = [str(raw), str(out), "participant", "group", "--n-cpus", "1"]
    assert main([*words, "--stop-on-first-crash"]) == 1
    rows = read_table(out / "group_microbleeds.tsv")
    assert [row["status"] for row in rows] == ["failed", "missing"]


def test_an_output_that_cannot_be_written_is_refused(two, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(two[0]), str(tmp_path / "file/out"), "participant"]) == 73
    assert "output_dir must be writable" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("description", "found"),
    [
        ({"Name": "Their study", "BIDSVersion": "1.9.0"}, "found the dataset 'Their study'"),
        ({"Name": "x", "GeneratedBy": [{"Name": "fMRIPrep"}]}, "found derivatives of fMRIPrep"),
        ([1], "found the dataset None"),
    ],
)
@pytest.mark.parametrize("level", ["participant", "group"])
def test_an_output_folder_of_another_dataset_is_refused_and_left_as_it_is(
    two, tmp_path, capsys, description, found, level
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset_description.json").write_text(json.dumps(description))
    (out / "README.md").write_text("Theirs.")
    assert main([str(two[0]), str(out), level, *QUICK]) == 73
    said = capsys.readouterr().err
    assert "output_dir must be a new folder or hold results of bids_cmb" in said
    assert found in said
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "dataset_description.json"]
    assert (out / "README.md").read_text() == "Theirs."


@pytest.mark.parametrize("what", ["file", "link"])
def test_what_is_in_the_way_of_an_output_is_named(two, tmp_path, capsys, what):
    place = tmp_path / what
    place.touch() if what == "file" else place.symlink_to(tmp_path / "gone")
    assert main([str(two[0]), str(place / "out"), "participant", *QUICK]) == 73
    is_a = "is a file, no folder" if what == "file" else "is a broken link"
    assert f"output_dir must be writable; {place} {is_a}." in capsys.readouterr().err


def test_a_network_that_is_no_detector_is_refused_in_a_sentence(two, tmp_path, capsys):
    words = [str(two[0]), str(tmp_path / "out"), "participant", "--detector", "anatomy"]
    assert cli.main([*words, "--anatomy", "none"]) == 64
    assert "bids_cmb: A detector must be one of" in capsys.readouterr().err


@pytest.mark.usefixtures("one_process")
def test_weights_that_do_not_fit_their_network_are_refused_before_any_scan_is_read(
    two, tmp_path, capsys
):
    """The checksum is that of the card, and all are numbers; the last layer lacks a channel."""
    models, out = tmp_path / "models", tmp_path / "out"
    models.mkdir()
    said = json.loads(json.dumps(load_card("ensemble")))
    member = said["members"][0]
    arrays = read_weights(locate_weights("ensemble", member))
    name = max(key for key in arrays if key.endswith("/kernel"))
    arrays[name] = arrays[name][..., :-1, :]
    member["sha256"] = write_weights(models / member["weights"], arrays)
    write_json(models / "mine.json", {**said, "name": "mine", "members": [member]})
    words = [str(two[0]), str(out), "participant", "--anatomy", "none", "--model-dir", str(models)]
    assert main([*words, "--detector", "mine"]) == 64
    said = capsys.readouterr().err
    assert f"{models / member['weights']}: {name} must have shape" in said
    assert "Traceback" not in said
    assert not out.exists()


def test_a_pipe_as_description_is_not_waited_for(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    os.mkfifo(raw / "dataset_description.json")
    assert main([str(raw), str(tmp_path / "out"), "participant"]) == 16
    assert "found a folder, a pipe or a device" in capsys.readouterr().err


def test_a_log_that_the_disk_does_not_take_stops_nobody():
    """Closing it writes what is left of it."""
    handler = logging.FileHandler("/dev/full")
    logging.getLogger("bids_cmb").addHandler(handler)
    handler.stream.write("left over")
    app._close_logging()
    assert handler not in logging.getLogger("bids_cmb").handlers


def run_in_cell(*words):
    if not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    ran = subprocess.run(["bwrap", *map(str, words)], capture_output=True, text=True, check=False)
    if ran.stderr.startswith("bwrap:"):
        pytest.skip(f"bubblewrap may not make its cell here ({ran.stderr.strip()})")
    return ran


def test_a_read_only_output_is_refused(two, tmp_path):
    cell = ["--ro-bind", "/", "/", "--dev", "/dev", "--bind", tmp_path, tmp_path]
    words = [sys.executable, ROOT / "run.py", two[0], two[1].parent / "new", "participant", *QUICK]
    ran = run_in_cell(*cell, "--setenv", "TMPDIR", tmp_path, *words)
    assert ran.returncode == 73
    assert "output_dir must be writable; nothing may be written into" in ran.stderr


def test_strict_validation_stops_at_errors(two, tmp_path, capsys):
    raw = tmp_path / "raw"
    shutil.copytree(two[0], raw)
    (raw / "sub-01/anat/sub-01_acq-x_swi.nii.gz").write_bytes(gzip.compress(b"no"))
    words = [str(raw), str(tmp_path / "out"), "participant", "--dry-run"]
    assert main([*words, "--validate", "strict"]) == 16
    assert "must be valid BIDS for --validate strict" in capsys.readouterr().err
    assert main([*words]) == 0


def test_a_glance_at_the_dataset_warns_and_goes_on(two, tmp_path, capsys):
    raw = tmp_path / "raw"
    shutil.copytree(two[0], raw)
    (raw / "dataset_description.json").unlink()
    assert main([str(raw), str(tmp_path / "out"), "participant", "--dry-run"]) == 0
    assert "dataset_description.json: BIDS asks for this file" in capsys.readouterr().err


def give_mask(root, scan, box):
    """Write a user's brain mask of the first participant, brain in that box, into a folder."""
    mask = np.zeros(scan.shape, np.uint8)
    mask[box] = 1
    path = root / "sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    path.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(mask, scan.affine), path)
    return root


@pytest.mark.usefixtures("one_process")
def test_your_own_brain_mask_goes_first(pair, tmp_path):
    masks, out = tmp_path / "masks", tmp_path / "out"
    scan = nib.load(pair[0] / "sub-01/anat/sub-01_T2starw.nii.gz")
    box = np.s_[15:35, 15:40, 6:20]
    words = [str(pair[0]), str(out), "participant", "--derivatives"]
    assert main([*words, str(give_mask(masks, scan, box))]) == 0
    used = np.asarray(nib.load(next(out.glob("sub-01/anat/*_label-brain_*.nii.gz"))).dataobj)
    assert used[box].all()
    assert used.sum() == used[box].size
    notes = json.loads(next(out.glob("sub-02/anat/*_label-CMB_*_mask.json")).read_text())["Notes"]
    assert any("--derivatives holds no brain mask for it" in note for note in notes)


def test_asked_to_end_the_app_ends_at_once_and_keeps_what_is_done(dataset, tmp_path):
    raw = dataset({f"sub-{n:02d}/anat/sub-{n:02d}_T2starw": "ball" for n in range(1, 5)})
    out, more = tmp_path / "out", ["--n-cpus", "1", *QUICK, *BALLS]
    words = [sys.executable, ROOT / "run.py", raw, out, "participant", *more]
    ran = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("sub-*/*_scans.tsv")):
        assert ran.poll() is None
        time.sleep(0.05)
    ran.send_signal(signal.SIGTERM)
    said = ran.communicate(timeout=20)[1]
    assert ran.returncode == 128 + signal.SIGTERM
    assert "run the same command again to resume" in said
    assert not list(out.rglob("*.part"))
    done = len(list(out.glob("sub-*/anat/*_label-CMB_*_mask.json")))
    assert 1 <= done < 4
    with no_other_process():
        assert main([str(raw), str(out), "participant", "group", *BALLS]) == 0
    assert len(read_table(out / "group_microbleeds.tsv")) == 4


def test_two_processes_may_share_an_output_folder(dataset, tmp_path):
    scans = {f"sub-01/ses-{n}/anat/sub-01_ses-{n}_T2starw": "ball" for n in (1, 2)}
    scans["sub-01/ses-1/anat/sub-01_ses-1_acq-a_T2starw"] = "ball"
    raw, out = dataset(scans), tmp_path / "out"
    flags = ["--n-cpus", "1", "-q", "--longitudinal", "off", *QUICK, *BALLS]
    words = [sys.executable, ROOT / "run.py", raw, out, "participant", *flags]
    both = [subprocess.Popen([*words, *more]) for more in ([], ["--overwrite"])]
    assert [ran.wait(timeout=120) for ran in both] == [0, 0]
    assert len(read_table(out / "sub-01/ses-1/sub-01_ses-1_scans.tsv")) == 2
    assert not list(out.rglob("*.part"))
    assert main([str(raw), str(out), "group"]) == 0
    assert len(read_table(out / "group_microbleeds.tsv")) == 3


@pytest.mark.skipif(not VALIDATOR.exists(), reason="bids-validator-deno is not installed")
@pytest.mark.usefixtures("one_process")
def test_the_output_of_a_varied_dataset_is_valid_bids(dataset, tmp_path):
    raw = dataset(
        {
            "sub-01/ses-1/anat/sub-01_ses-1_T2starw": "ball",
            "sub-01/ses-1/anat/sub-01_ses-1_swi": "ball",
            "sub-01/ses-2/anat/sub-01_ses-2_acq-hires_rec-norm_run-01_part-mag_T2starw": "ball",
            "sub-01/ses-2/anat/sub-01_ses-2_acq-hires_rec-norm_run-02_part-mag_T2starw": "ball",
            "sub-02/swi/sub-02_swi": "ball",
            "sub-02/anat/sub-02_echo-1_MEGRE": "ball",
            "sub-02/anat/sub-02_echo-2_MEGRE": "ball",
        },
        {"EchoTime": 0.02, "MagneticFieldStrength": 3},
    )
    words = [str(raw), "participant", "group", "--suffix", "T2starw", "swi", "MEGRE", *BALLS]
    runs = (("2", "full", ("01", "02"), 6), ("combined", "minimal", ("02",), 2))
    for echo, level, participants, scans in runs:
        out = tmp_path / "derivatives" / f"bids_cmb-{echo}"
        extra = ["--echo", echo, "--output-level", level, "--participant-label", *participants]
        assert main([words[0], str(out), *words[1:], *extra]) == 0
        rows = read_table(out / "group_microbleeds.tsv")
        assert len(rows) == scans
        assert all(int(row["n_cmb"]) for row in rows)  # lesions to describe
        answer = subprocess.run(
            [VALIDATOR, "--format", "json", out], capture_output=True, text=True, check=False
        )
        assert json.loads(answer.stdout)["issues"]["issues"] == []
        assert answer.returncode == 0


def test_it_runs_as_anyone_on_a_read_only_system_without_home_or_network(pair, tmp_path):
    out, temp = tmp_path / "out", tmp_path / "temp"
    out.mkdir(), temp.mkdir()
    cell = [
        *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
        *("--bind", out, out, "--bind", temp, temp, "--unshare-all"),
        *("--uid", "23456", "--gid", "23456", "--clearenv", "--setenv", "TMPDIR", temp),
    ]
    flags = ["--n-cpus", "1", *QUICK, *BALLS]
    app = [sys.executable, ROOT / "run.py", pair[0], out, "participant", "group", *flags]
    ran = run_in_cell(*cell, *app)
    assert ran.returncode == 0, ran.stderr
    assert len(read_table(out / "group_microbleeds.tsv")) == 2
    assert not list(temp.iterdir())


def test_a_full_disc_stops_the_run_and_nothing_is_half_written(pair, tmp_path):
    out, keep = tmp_path / "out", tmp_path / "keep"
    out.mkdir(), keep.mkdir()
    flags = " ".join(["--n-cpus", "1", *QUICK, *BALLS])
    app = f"{sys.executable} {ROOT / 'run.py'} {pair[0]} {out} participant {flags}"
    after = f"code=$?; cp -r {out}/. {keep}/; exit $code"
    cell = [
        *("--dev-bind", "/", "/", "--size", "150000", "--tmpfs", out),
        *("sh", "-c", f"{app}; {after}"),
    ]
    ran = run_in_cell(*cell)
    assert ran.returncode in {73, 74}, ran.stderr
    assert "no space left" in ran.stderr.lower()
    assert "Traceback" not in ran.stderr
    assert not list(keep.rglob("*.part"))


def _spoilt(path, how):
    """Spoil the image at ``path``."""
    image = nib.load(path)
    data, affine = np.asarray(image.dataobj), image.affine
    path.unlink()
    header = nib.Nifti1Header()
    new = {
        "four": lambda: nib.Nifti1Image(np.stack([data, data], -1), affine),
        "two": lambda: nib.Nifti1Image(data[:, :, :1], affine),
        "zero": lambda: nib.Nifti1Image(0 * data, affine),
        "constant": lambda: nib.Nifti1Image(0 * data + 7, affine),
        "noise": lambda: nib.Nifti1Image(np.random.default_rng(1).normal(size=data.shape), affine),
        "sheared": lambda: nib.Nifti1Image(data, affine @ (np.eye(4) + np.eye(4, k=1) * 0.5)),
        "singular": lambda: nib.Nifti1Image(data, affine),
        "voxelless": lambda: nib.Nifti1Image(data, affine),
        "formless": lambda: nib.Nifti1Image(data, None, header),
        "nan": lambda: nib.Nifti1Image(np.where(data > 330, np.nan, data), affine),
    }[how]()
    if how == "sheared":
        new.header["qform_code"] = 0
    if how == "singular":
        new.header["srow_x"], new.header["qform_code"] = 0, 0
    if how == "voxelless":
        new.header["pixdim"][1] = 0
    if how == "formless":
        new.header["sform_code"] = new.header["qform_code"] = 0
    if how in ("singular", "voxelless", "formless"):  # nibabel would mend what it writes
        new.header.set_data_dtype(np.float32)
        new.header["vox_offset"], new.header["magic"] = 352, b"n+1"
        raw = new.header.binaryblock + b"\0\0\0\0" + new.get_fdata().astype("<f4").tobytes("F")
        path.write_bytes(gzip.compress(raw, 1))
    else:
        nib.save(new, path)


SPOILT = {
    "four": "one volume per file is expected; found 2",
    "two": "at least 3 slices is expected; found",
    "zero": "needs voxels that differ; found 0 in every one",
    "constant": "needs voxels that differ; found 7 in every one",
    "noise": "brain",
    "sheared": "is sheared",
    "singular": "is singular",
    "voxelless": "voxel sizes must be above 0 mm; the header says 0",
    "formless": "sform or qform must be coded",
}


@pytest.mark.usefixtures("one_process")
def test_every_spoilt_scan_gets_one_sentence_and_the_others_are_read(dataset, tmp_path, capsys):
    raw = dataset({f"sub-{how}/anat/sub-{how}_T2starw": "ball" for how in (*SPOILT, "nan", "good")})
    for how in (*SPOILT, "nan"):
        _spoilt(raw / f"sub-{how}/anat/sub-{how}_T2starw.nii.gz", how)
    out = tmp_path / "out"
    assert main([str(raw), str(out), "participant", "group"]) == 1
    lines = capsys.readouterr().err.splitlines()
    for how, sentence in SPOILT.items():
        [said] = [line for line in lines if f"sub-{how}_T2starw.nii.gz failed: " in line]
        assert sentence in said
        assert "unexpected" not in said
    rows = {row["participant_id"]: row for row in read_table(out / "group_microbleeds.tsv")}
    assert {subject for subject, row in rows.items() if row["status"] == "ok"} == {
        "sub-nan",
        "sub-good",
    }
    assert int(rows["sub-nan"]["nonfinite_voxels"]) > 0
    assert "nonfinite" in rows["sub-nan"]["quality_flags"]


@pytest.mark.usefixtures("one_process")
def test_the_ensemble_runs_from_file_to_tables_and_says_what_it_was(dataset, tmp_path):
    """Within a brain mask of the user's that is a third of the brain, to be done sooner."""
    raw, out = dataset({"sub-01/anat/sub-01_T2starw": "six"}), tmp_path / "out"
    scan = nib.load(raw / "sub-01/anat/sub-01_T2starw.nii.gz")
    box = np.s_[30:100, 40:120, 20:30]
    masks = ["--derivatives", str(give_mask(tmp_path / "masks", scan, box))]
    words = [str(raw), str(out), "participant", *masks, "--n-cpus", "1", "--output-level", "full"]
    assert main([*words, "--detector", "ensemble", "--members", "a", "c"]) == 0
    assert (out / "sub-01.html").is_file()
    home = out / "sub-01" / "anat"
    made = json.loads(next(home.glob("*label-CMB*_mask.json")).read_text())
    said = made["Provenance"]["Detectors"][0]
    members = load_card("ensemble")["members"]
    wanted = {one["name"]: one["sha256"] for one in members if one["name"] in "ac"}
    assert said["WeightsSHA256"] == wanted
    assert made["Provenance"]["Anatomy"]["Name"] == "anatomy"
    assert made["Provenance"]["Machine"]["Device"] == "CPU"
    probability = nib.load(next(home.glob("*probseg.nii.gz"))).get_fdata()
    assert 0 <= probability.min() <= probability.max() <= 1
    assert next(home.glob("*seg-structures*dseg.nii.gz")).is_file()
    for row in read_table(next(home.glob("*seg-CMB*dseg.tsv"))):
        assert row["probability_sd"] is not None
        assert row["territory"] in {"lobar", "deep", "infratentorial", None}
        assert (
            (row["mars_region"] is None)
            or row["nearest_other_region_mm"]
            or not row["nearest_other_region"]
        )


def test_a_detector_is_named_with_the_weights_of_its_second_opinion_too():
    card = load_card("two-stage")
    ours, others = (
        {one["name"] for one in load_card(name)["members"]} for name in (card["name"], "ensemble")
    )
    for members, wanted in (([], others), (["a", "c"], {"a", "c"})):
        named = result._describe_model("two-stage", {**card, "second_opinion_members": members})
        assert set(named["WeightsSHA256"]) == ours | wanted


@pytest.mark.slow
def test_the_default_detector_runs_from_file_to_tables(dataset, tmp_path):
    raw, out = dataset({"sub-01/anat/sub-01_T2starw": "six"}), tmp_path / "out"
    assert cli.main([str(raw), str(out), "participant", "group", "--n-cpus", "1"]) == 0
    made = json.loads(next(out.glob("sub-01/anat/*label-CMB*_mask.json")).read_text())
    [detector] = made["Provenance"]["Detectors"]
    assert detector["Name"] == "two-stage"
    [row] = read_table(out / "group_microbleeds.tsv")
    assert 1 <= int(row["n_cmb"]) <= 6  # of six


def test_one_member_of_an_ensemble_can_be_asked_and_another_name_is_refused(two, capfd):
    words = [*map(str, two), "participant", "--detector", "ensemble", "--dry-run", "--members"]
    assert main([*words, "a"]) == 0
    assert main([*words, "z"]) == 64
    assert "--members must name members of ensemble, a b c d; found z" in capfd.readouterr().err


def test_an_altered_weight_stops_the_app_before_it_starts(two, tmp_path, capfd):
    models = tmp_path / "models"
    models.mkdir()
    (models / "ensemble.json").write_text(json.dumps(load_card("ensemble")))
    for member in load_card("ensemble")["members"]:
        (models / member["weights"]).write_bytes(b"other numbers")
    words = [*map(str, two), "participant", "--detector", "ensemble", "--model-dir", str(models)]
    assert main(words) == 64
    assert "weights must have the checksum of their model card" in capfd.readouterr().err


def test_a_gpu_that_is_asked_for_and_is_not_there_stops_the_run(two, capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    words = [*map(str, two), "participant", "--device", "gpu"]
    assert main([*words, "--gpu-id", "-1"]) == 69
    assert "--device gpu needs a GPU that can be used" in capfd.readouterr().err


def test_an_engine_without_a_gpu_and_one_that_nobody_knows_stop_the_run(two, capfd, monkeypatch):
    words = [*map(str, two), "participant"]
    assert main([*words, "--device", "gpu", "--engine", "openvino"]) == 64
    assert "--engine openvino computes on the CPU; found --device gpu" in capfd.readouterr().err
    monkeypatch.setenv("BIDS_CMB_ENGINE", "onnx")
    assert main(words) == 69
    assert "BIDS_CMB_ENGINE must be openvino or tensorflow" in capfd.readouterr().err


def test_models_are_listed_without_a_dataset(capfd):
    assert one_command(["models", "list"]) == 0
    said = capfd.readouterr().out
    assert "ensemble (cerebral microbleeds)" in said
    assert "checksum as on the card" in said
    assert "radial (cerebral microbleeds)" in said


@pytest.mark.slow
def test_a_process_that_computes_for_all_finds_the_same_and_says_how_busy_it_was(
    dataset, tmp_path, capsys
):
    raw = dataset({"sub-01/anat/sub-01_T2starw": "ball"})
    tables = []
    for wish in ("on", "off"):
        out = tmp_path / wish
        words = ["--detector", "ensemble", "--members", "d", "--anatomy", "none", *BALLS]
        more = ["--threshold", "0.2", "--report", "none", "--share-networks", wish]
        assert cli.main([str(raw), str(out), "participant", *words, *more]) == 0
        assert ("process computed" in capsys.readouterr().err) == (wish == "on")
        tables.append(
            {
                p.name: p.read_bytes()
                for p in sorted(out.rglob("*_dseg.*")) + [*out.rglob("*_probseg.nii.gz")]
            }
        )
        sidecar = json.loads(next(out.rglob("*_label-CMB_*_mask.json")).read_text("utf-8"))
        assert sidecar["Provenance"]["Machine"]["Engine"] == choose_engine()
    assert len(tables[0]) >= 3
    assert tables[0] == tables[1]
