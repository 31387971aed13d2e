"""What sidecars say is inherited as BIDS has it, and believed only if it can be."""

import json
import os

import pytest

from bids_cmb.bids.metadata import (
    compute_weighting,
    find_other_image_type,
    get_echo_time_s,
    get_field_strength_t,
    get_spinal_body_part,
    make_sidecar_reader,
    merge_echo_metadata,
)

SWI = "sub-01/anat/sub-01_swi"


@pytest.fixture
def told(tmp_path):
    """A function from JSON files, by their paths, to what they say about an image."""

    def write_and_read(files, image=f"{SWI}.nii.gz"):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return make_sidecar_reader(tmp_path)(tmp_path / image)

    return write_and_read


@pytest.mark.parametrize("extension", ["nii.gz", "nii"])
def test_the_deeper_sidecar_wins_and_others_do_not_apply(told, extension):
    image = "sub-01/ses-1/anat/sub-01_ses-1_acq-x_T2starw"
    files = {
        "T2starw.json": {"A": 0, "B": 0, "C": 0, "D": 0, "E": 0},
        "acq-x_T2starw.json": {"B": 1, "C": 1, "D": 1, "E": 1},
        "acq-y_T2starw.json": {"A": "other acquisition"},
        "swi.json": {"A": "other suffix"},
        "sub-01/sub-01_T2starw.json": {"C": 2, "D": 2, "E": 2},
        "sub-01/ses-1/sub-01_ses-1_T2starw.json": {"D": 3, "E": 3},
        f"{image}.json": {"E": 4},
        "sub-01/ses-1/anat/sub-01_ses-1_acq-x_run-1_T2starw.json": {"A": "more entities"},
    }
    found = told(files, f"{image}.{extension}")
    assert found.metadata == {"A": 0, "B": 1, "C": 2, "D": 3, "E": 4}
    assert found.notes == ()


def test_a_sidecar_above_the_dataset_has_no_say(tmp_path):
    (tmp_path / "swi.json").write_text('{"EchoTime": 0.02}')
    found = make_sidecar_reader(tmp_path / "data")(tmp_path / "data" / f"{SWI}.nii.gz")
    assert found.metadata == {}


def test_each_file_is_read_once(told, tmp_path):
    told({"swi.json": {"EchoTime": 0.02}})
    read = make_sidecar_reader(tmp_path)
    first = read(tmp_path / f"{SWI}.nii.gz")
    (tmp_path / "swi.json").unlink()
    assert read(tmp_path / "sub-02/anat/sub-02_swi.nii.gz") == first


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", "is not a JSON object"),
        ("null", "is not a JSON object"),
    ],
)
def test_a_malformed_sidecar_is_passed_over_aloud(told, text, complaint):
    found = told({"swi.json": {"EchoTime": 0.02}, f"{SWI}.json": text})
    assert found.metadata == {"EchoTime": 0.02}
    assert found.notes == (f"{SWI}.json {complaint} and is ignored.",)


def test_a_sidecar_that_is_not_fetched_is_passed_over_aloud(told, tmp_path):
    path = tmp_path / f"{SWI}.json"
    path.parent.mkdir(parents=True)
    path.symlink_to("../../.git/annex/objects/aa/bb/MD5E-s1--c.json/MD5E-s1--c.json")
    assert "is not fetched" in told({}).notes[0]
    path.unlink()
    path.mkdir()
    assert "cannot be read (is a directory)" in told({}).notes[0]


@pytest.mark.parametrize(
    ("value", "seconds", "note"),
    [
        (0.02, 0.02, None),
        (20, 0.02, "looks like ms"),
        (1, 1.0, None),
        ("0.02", None, "must be a number in s"),
        ([0.01, 0.02], None, "must be a number in s"),
        (True, None, "must be a number in s"),
        (-0.02, None, "must be a number in s"),
        (0, None, "must be a number in s"),
        (20000, None, "must be a number in s"),
        (float("nan"), None, "EchoTime holds a number that is not finite"),
        (10**400, None, "must be a number in s"),
    ],
)
def test_echo_times_are_seconds(told, value, seconds, note):
    found = told({f"{SWI}.json": {"EchoTime": value}})
    assert get_echo_time_s(found.metadata) == seconds
    if seconds is not None:
        assert found.metadata["EchoTime"] == seconds
    assert [note in said for said in found.notes] == ([True] if note else [])


@pytest.mark.parametrize(
    ("value", "tesla"), [(3, 3.0), (1.494, 1.494), ("3", None), (30000, None), (None, None)]
)
def test_field_strengths_are_tesla(told, value, tesla):
    found = told({f"{SWI}.json": {"MagneticFieldStrength": value}})
    assert get_field_strength_t(found.metadata) == tesla
    assert ["must be a number in T" in n for n in found.notes] == ([] if tesla else [True])


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ('"Sie\\ud800mens"', "holds half a character (a lone surrogate)"),
        ('["\\udc00"]', "holds half a character (a lone surrogate)"),
        ("NaN", "holds a number that is not finite"),
        ("1e400", "holds a number that is not finite"),
        ('{"a": [-Infinity]}', "holds a number that is not finite"),
        ("[" * 600 + "]" * 600, "is nested more than 20 levels deep"),
    ],
    ids=lambda text: text[:12],
)
def test_what_no_json_file_can_hold_is_ignored_aloud(told, value, fault):
    """It would be copied to the results, or not reach the process that makes them."""
    found = told({f"{SWI}.json": f'{{"Manufacturer": {value}, "EchoTime": 0.02}}'})
    assert found.metadata == {"EchoTime": 0.02}
    assert found.notes == (f"sub-01_swi.nii.gz: Manufacturer {fault} and was ignored.",)


def test_a_sidecar_that_is_a_pipe_is_not_waited_for(told, tmp_path):
    (tmp_path / "sub-01/anat").mkdir(parents=True)
    os.mkfifo(tmp_path / f"{SWI}.json")
    assert "is not a regular file" in told({"swi.json": {}}).notes[0]


@pytest.mark.parametrize(
    "part",
    ["CSPINE", "TSPINE", "SPINE", "NECK", "RUECKENMARK", "Rückenmark", "C_SPINE", "HWS",
     "Halswirbelsaeule", "SPINAL CORD", "CERVICAL"],
)  # fmt: skip
def test_the_spine_is_known_by_the_words_of_scanners(part):
    assert get_spinal_body_part({"BodyPartExamined": part}) == part


@pytest.mark.parametrize(
    "part",
    ["BRAIN", "HEAD", "HEADNECK", "Head & Neck", "SCHAEDEL", "", None, ["NECK"], "WHOLEBODY"],
)
def test_the_head_is_no_spine(part):
    assert get_spinal_body_part({"BodyPartExamined": part}) == ""


@pytest.mark.parametrize(
    ("words", "what"),
    [(["ORIGINAL", "PRIMARY", "P", "ND", "PHASE"], "a phase image (ImageType P, PHASE)"),
     (["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"], "a phase image (ImageType P, PHASE MAP)"),
     (["DERIVED", "PRIMARY", "M", "ND", "MNIP"], "an intensity projection (ImageType MNIP)"),
     (["DERIVED", "SECONDARY", "REAL"], "a real or imaginary part (ImageType REAL)"),
     (["ORIGINAL", "PRIMARY", "M", "ND", "NORM", "SWI"], ""),
     (["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"], ""),
     (["ORIGINAL", "PRIMARY", "M", "P"], ""),
     (["ORIGINAL", "PRIMARY", "SWAN", 3], ""),
     ("PHASE", "a phase image (ImageType PHASE)"),
     (None, "")],
)  # fmt: skip
def test_what_an_image_is_stands_in_its_image_type(words, what):
    assert find_other_image_type({"ImageType": words}) == what


def test_without_sidecars_nothing_is_known(told):
    found = told({})
    assert (found.metadata, found.notes) == ({}, ())
    assert (get_echo_time_s(found.metadata), get_field_strength_t(found.metadata)) == (None, None)


@pytest.mark.parametrize(
    ("metadata", "value", "words"),
    [
        ({"EchoTime": 0.04, "MagneticFieldStrength": 1.5}, 60, "60 T·ms"),
        ({"EchoTime": 0.02}, 60, "60 T·ms, field strength unknown, 3 T assumed"),
        ({"MagneticFieldStrength": 3}, None, "echo time unknown"),
    ],
)
def test_the_weighting_is_field_strength_times_echo_time(metadata, value, words):
    assert compute_weighting(metadata) == (value, words)


def test_echoes_have_in_common_what_they_agree_on_and_their_mean_echo_time():
    echoes = [{"EchoTime": t, "A": 1, "B": t} for t in (0.01, 0.02, 0.06)]
    assert merge_echo_metadata(echoes) == {"EchoTime": pytest.approx(0.03), "A": 1}
    assert merge_echo_metadata([*echoes, {"A": 1}]) == {"A": 1}
    assert merge_echo_metadata([{"EchoTime": "?", "A": 1}]) == {"EchoTime": "?", "A": 1}
