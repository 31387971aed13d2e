"""Simulated scans are valid BIDS, the same for the same seed, and true to their truth."""

import json
import shutil
from collections import namedtuple
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from validating import find_errors, needs_validator

from bids_cmb.bids.filters import Query
from bids_cmb.bids.selection import find_scans
from bids_cmb.bids.tables import read_columns, read_table
from bids_cmb.cli.commands import main
from bids_cmb.files import read_json
from bids_cmb.imaging.nifti import load
from bids_cmb.imaging.phase import filter_phase, infer_phase_sign, infer_turn
from bids_cmb.imaging.phase_files import find_phase_image, read_units
from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation import dataset as dataset_module
from bids_cmb.simulation.lesion_priors import load_priors
from bids_cmb.simulation.protocols import Protocol, load_presets, resolve_protocols, sample_protocol
from bids_cmb.simulation.simulate import sample_person, scan_person, simulate_scan

WINDOW = (90.0, 100.0, 48.0)  # mm; a whole head takes ten times as long
SEED = 4


@pytest.fixture(scope="module")
def many():
    """A law with microbleeds in every scan, of all strengths."""
    given = load_priors()
    lesions = {**given["microbleed"], "scans_without": 0, "count_quantiles": [[0, 25], [1, 30]]}
    return {**given, "microbleed": lesions}


@pytest.fixture(scope="module")
def person(made_up, many):
    """A person, and the chance that is left for the scans."""
    rng = np.random.default_rng(SEED)
    return sample_person(rng, made_up, many, "whole"), rng


@pytest.fixture(scope="module")
def scanned(person, many):
    """A maker of scans of one person, each by the same chance."""

    def make(name="alfa-t2star", masking="whole", **known):
        who, rng = replace(person[0], masking=masking), deepcopy(person[1])
        return scan_person(rng, who, load_presets()[name], many, window_mm=WINDOW, **known)

    return make


@pytest.fixture(scope="module")
def scan(scanned):
    return scanned()


@pytest.fixture(scope="module")
def weighted(scanned):
    return scanned("ukb-swi", with_phase=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, person):
    """Two scans of the largest voxels, by the command: a few slices of one whole head."""
    folder = tmp_path_factory.mktemp("simulated")
    coarse = {
        name: {
            "contrast": name, "field_t": 3, "echo_time_s": 0.02, "repetition_time_s": 0.6,
            "flip_deg": 20, "spacing": [1.8, 1.8, 6], "kind": "2D",
        }
        for name in ("T2starw", "swi")
    }  # fmt: skip
    (folder / "coarse.json").write_text(json.dumps(coarse))
    said = ["--n-scans", "2", "--seed", "8", "--protocol", str(folder / "coarse.json"), "--phase"]

    def few(rng, _, *how, **known):
        return scan_person(rng, person[0], *how, window_mm=(200, 236, 24), **known)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dataset_module, "make_procedural_head", lambda _: None)
        patched.setattr(dataset_module, "simulate_scan", few)
        assert main(["simulate", str(folder / "bids"), *said]) == 0
    return folder / "bids"


@needs_validator
def test_the_dataset_is_valid_bids(dataset):
    assert find_errors(dataset) == []


def test_the_app_finds_each_scan_once_and_passes_its_phase_by(dataset):
    assert [Path(scan.relative_path).name for scan in find_scans(dataset, Query()).scans] == [
        "sub-01_T2starw.nii.gz",
        "sub-02_swi.nii.gz",
    ]
    phase = nib.load(dataset / "sub-02/anat/sub-02_part-phase_T2starw.nii.gz").get_fdata()
    assert np.abs(phase).max() == pytest.approx(4096, abs=1)


def test_each_scan_has_its_phase_beside_it_in_a_unit_that_is_understood(dataset):
    for scan in find_scans(dataset, Query()).scans:
        found = find_phase_image(scan.path)
        assert found.path.name == f"sub-{scan.subject}_part-phase_T2starw.nii.gz"
        assert read_units(found.path) == "arbitrary"
        stored, everywhere = load(found.path)[0].data, np.ones(load(found.path)[0].shape, bool)
        assert infer_turn(stored, "arbitrary", everywhere) == 2 * dataset_module.PHASE_LEVELS


@pytest.mark.parametrize("flip", [1, -1])
def test_which_way_simulated_phase_turns_is_found_out(weighted, flip):
    phase = Volume(flip * weighted.phase.data, weighted.phase.affine)
    fast, steady = filter_phase(phase.data, weighted.scan)
    found = infer_phase_sign(fast * steady, weighted.scan, weighted.brain)
    assert found == flip * weighted.facts["handed"]


def test_sidecars_say_what_a_scanner_says(dataset):
    said = read_json(dataset / "sub-01/anat/sub-01_T2starw.json")
    known = {"MagneticFieldStrength": 3, "EchoTime": 0.02, "SliceThickness": 6, "FlipAngle": 20}
    assert said.items() >= known.items()


def test_the_truth_has_the_columns_of_the_app(dataset):
    stem = dataset / "derivatives/truth/sub-01/anat/sub-01_space-orig_seg-CMB_desc-truth_dseg"
    header = Path(f"{stem}.tsv").read_text().split("\n")[0].split("\t")
    assert header[: len(read_columns("lesion"))] == list(read_columns("lesion"))
    mimics = Path(f"{stem}.tsv".replace("seg-CMB", "seg-mimics"))
    assert {row["kind"] for row in read_table(mimics)} >= {"cortical vein", "pial vessel"}


def test_every_label_is_a_row_and_every_unseen_microbleed_too(scan):
    seen = [row["index"] for row in scan.lesion_table if row["certainty"] != "unseen"]
    assert seen == list(range(1, scan.lesions.data.max() + 1))
    indices = [row["index"] for row in scan.lesion_table]
    assert indices == list(range(1, len(indices) + 1))
    assert {row["certainty"] for row in scan.lesion_table} == {"definite", "possible", "unseen"}
    assert all(row["loss"] < 0.18 for row in scan.lesion_table if row["certainty"] == "unseen")


@pytest.mark.parametrize("made", ["scan", "weighted"])
def test_microbleeds_are_dark_where_their_labels_say(made, request):
    made = request.getfixturevalue(made)
    data = made.scan.data
    rows = [row for row in made.lesion_table if row["certainty"] == "definite"]
    assert len(rows) >= 4
    darker = []
    for row in rows:
        inside = made.lesions.data == row["index"]
        near = np.zeros_like(inside)
        middle = np.round([row["i"], row["j"], row["k"]]).astype(int)
        near[tuple(slice(max(at - 6, 0), at + 7) for at in middle[:2])] = True
        around = near & made.brain.data & (made.lesions.data == 0) & (made.mimics.data == 0)
        around &= np.isin(made.structures.data, made.structures.data[inside])
        darker.append(1 - data[inside].mean() / np.median(data[around]))
    assert np.median(darker) > 0.2
    assert np.mean(np.array(darker) > 0) > 0.9


def test_mimics_are_labelled_as_what_they_are_and_apart_from_microbleeds(scan):
    kinds = {row["kind"] for row in scan.mimic_table}
    assert "microbleed" not in kinds
    assert set(np.unique(scan.mimics.data)) <= set(range(len(scan.mimic_table) + 1))


def test_every_volume_lies_on_the_grid_of_the_scan(weighted):
    volumes = ("image", "swi", "phase", "lesions", "mimics", "structures", "brain")
    for name in volumes:
        volume = getattr(weighted, name)
        assert volume.shape == weighted.scan.shape
        np.testing.assert_array_equal(volume.affine, weighted.scan.affine)
    np.testing.assert_allclose(weighted.scan.spacing, weighted.protocol.spacing)


def test_swi_darkens_and_never_brightens(weighted):
    assert (weighted.swi.data <= weighted.image.data + 1e-3).all()
    assert weighted.swi.data.mean() < 0.99 * weighted.image.data.mean()


def test_noise_is_as_strong_as_the_participants_table_says(dataset):
    row = read_table(dataset / "participants.tsv")[0]
    assert row["dress"] != "stripped"  # else nothing is left of the air
    data = nib.load(dataset / "sub-01/anat/sub-01_T2starw.nii.gz").get_fdata()
    behind = data[:12, :12]  # voxels of air, where magnitude is Rayleigh-distributed
    assert behind.mean() == pytest.approx(300 / float(row["snr"]) * np.sqrt(np.pi / 2), rel=0.1)


def test_the_same_seed_gives_the_same_scan(made_up, scan, many):
    again = simulate_scan(
        np.random.default_rng(SEED), made_up, scan.protocol, many, masking="whole", window_mm=WINDOW
    )
    np.testing.assert_array_equal(scan.image.data, again.image.data)
    np.testing.assert_array_equal(scan.lesions.data, again.lesions.data)
    assert scan.lesion_table == again.lesion_table


def test_what_is_cut_away_does_not_change_what_is_left(scanned, scan):
    stripped = scanned(masking="stripped")
    inside = stripped.image.data > 0
    np.testing.assert_array_equal(stripped.image.data[inside], scan.image.data[inside])
    assert inside.mean() < 1


def test_white_grey_and_fluid_stand_in_the_order_of_a_long_repetition_time(scan):
    levels = [
        np.median(scan.image.data[np.isin(scan.structures.data, codes)])
        for codes in ((13, 52), (2, 41), (3, 42), (4, 43))  # pallidum, white, grey, fluid
    ]
    assert levels == sorted(levels)


def test_presets_are_those_of_known_studies_and_random_ones_lie_between(rng):
    known = load_presets()
    assert {"adni-t2star", "ukb-swi", "rotterdam-t2star", "7t-t2star"} <= set(known)
    for _ in range(50):
        drawn = sample_protocol(rng)  # refuses itself if it is impossible
        alike = [one.spacing[2] for one in known.values() if one.contrast == drawn.contrast]
        assert min(alike) - 0.01 <= drawn.spacing[2] <= max(alike) + 0.01


GOOD = {
    "name": "mine", "contrast": "T2starw", "field_t": 3, "echo_time_s": 0.02,
    "repetition_time_s": 0.6, "flip_deg": 20, "spacing": (1, 1, 3), "kind": "2D",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"echo_time_s": -0.02}, "echo time must be above 0 s; found echo_time_s -0.02"),
        ({"thickness": -1}, "slices must be thicker than 0.2 mm; found thickness -1"),
        ({"spacing": (1, 1, 0)}, r"between 0.2 and 10 mm; found spacing \(1.0, 1.0, 0.0\)"),
        ({"spacing": (1, 1)}, "voxels must be three numbers"),
        ({"contrast": "T1w"}, "the contrast must be T2starw or swi; found contrast 'T1w'"),
        ({"kind": "4D"}, "slices must be 2D or 3D"),
        ({"field_t": 30}, "the field must lie between 0.2 and 12 T; found field_t 30"),
        ({"repetition_time_s": 0.001}, "repetition time must be no shorter"),
        ({"flip_deg": 0}, "flip angle must lie between 0 and 180 degrees; found flip_deg 0"),
        ({"interpolation": 3}, "once or twice as fine; found interpolation 3"),
        ({"snr": (0, 5)}, "the signal must be above the noise"),
    ],
)
def test_an_impossible_protocol_is_refused(change, said):
    with pytest.raises(ValueError, match=f"^Protocol mine: .*{said}"):
        Protocol(**{**GOOD, **change})


def test_protocols_come_from_files_and_in_the_order_asked_for(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"mine": {key: GOOD[key] for key in GOOD if key != "name"}}))
    found = resolve_protocols(["ukb-swi", "random", str(path)])
    assert [one and one.name for one in found] == ["ukb-swi", None, "mine"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "a file of protocols must be JSON; Expecting"),
        ("[1]", r"a file of protocols must be a JSON object; found \[1\]"),
        ('{"a": 3}', "protocol a must be a JSON object; found 3"),
        ("\ufeff[]", r"a file of protocols must be a JSON object; found \[\]"),
        ("[" * 100_000, "a file of protocols must be JSON; found more than"),
        ('{"a": {"te": 1}}', "protocol a may only have .*; found te"),
        ('{"a": {"contrast": "swi"}}', "protocol a is not complete or not of numbers"),
    ],
)
def test_a_file_without_protocols_is_refused(tmp_path, content, said):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"mine\.json: {said}"):
        resolve_protocols([str(path)])


def refused(capsys, *said):
    assert main(["simulate", *map(str, said)]) == 1
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    return sentence


def test_a_folder_that_holds_something_is_refused(dataset, capsys):
    assert "needs an empty folder; found files in it" in refused(capsys, dataset)


def test_what_cannot_be_simulated_is_refused_before_anything_is_written(tmp_path, capsys):
    out = tmp_path / "out"
    assert "`scans` must be at least 1; found 0" in refused(capsys, out, "--n-scans", 0)
    assert "random, or one of ukb-swi" in refused(capsys, out, "--protocol", "siemens")
    assert "Lesion priors must be one of default" in refused(capsys, out, "--lesion-priors", "mine")
    assert "found none" in refused(capsys, out, "--anatomy", tmp_path)
    image = nib.Nifti1Image(np.random.default_rng(1).random((9, 9, 9), np.float32), np.eye(4))
    nib.save(image, tmp_path / "head.nii.gz")
    assert "a label map holds whole numbers" in refused(capsys, out, "--anatomy", tmp_path)
    odd = np.zeros((9, 9, 9), np.int16)
    odd[4:] = [[[9999] * 9] * 9] * 5
    nib.save(nib.Nifti1Image(odd, np.eye(4)), tmp_path / "head.nii.gz")
    assert "found 9999" in refused(capsys, out, "--anatomy", tmp_path)
    assert not out.exists()


@pytest.mark.parametrize(
    ("flag", "number", "sentence"),
    [
        ("--sessions", 0, "`sessions` must be at least 1; found 0."),
        ("--workers", 0, "`workers` must be at least 1; found 0."),
        ("--workers", -1, "`workers` must be at least 1; found -1."),
        ("--seed", -1, "`seed` must be at least 0; found -1."),
    ],
)
def test_a_number_that_cannot_be_leaves_no_folder(tmp_path, capsys, flag, number, sentence):
    out = tmp_path / "out"
    assert refused(capsys, out, "--n-scans", 1, flag, number) == f"bids_cmb: {sentence}\n"
    assert not out.exists()


def test_a_full_disk_is_foreseen(tmp_path, capsys, monkeypatch):
    free = namedtuple("free", "total used free")(10**9, 10**9, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    said = refused(capsys, tmp_path / "out", "--n-scans", 5, "--protocol", "ukb-swi")
    assert "5 scans need about" in said
    assert "MB of disk; found 1 MB free" in said


def test_half_a_dataset_never_looks_like_a_whole_one(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "out/sub-01/x.nii.gz"))

    monkeypatch.setattr(dataset_module, "make_procedural_head", lambda _: None)
    monkeypatch.setattr(dataset_module, "simulate_scan", lambda *_, **__: None)
    monkeypatch.setattr(dataset_module, "_write_scan", full)
    said = refused(capsys, tmp_path / "out", "--n-scans", 2)
    assert "scan 1" in said
    assert "no space left on device" in said
    assert not (tmp_path / "out" / "dataset_description.json").exists()
