"""An image is taken if it was asked for, and never for what its name only resembles."""

import json
import shutil
import subprocess
from itertools import chain
from pathlib import Path

import pytest

from bids_cmb.bids.filters import (
    KNOWN_SUFFIXES,
    Query,
    find_rejection_reason,
    find_unmatched,
    join_labels,
    match_labels,
    parse_image_path,
    read_filter_file,
    read_labels,
    select_shard,
)


def image(name, extension=".nii.gz"):
    return parse_image_path(Path(f"data/sub-01/anat/sub-01_{name}{extension}"), Path("data"))


# Names


@pytest.mark.parametrize(
    ("written", "suffix"),
    [("T2starw", "T2starw"), ("t2STARW", "T2starw"), ("T2star", "T2star"), ("SWI", "swi")],
)
def test_a_suffix_is_known_in_any_letter_case(written, suffix):
    assert image(written).canonical_suffix == suffix
    assert find_rejection_reason(image(written), Query()) == ""


@pytest.mark.parametrize("suffix", ["MEGRE", "GRE", "veno", "SWImag", "FLASH"])
def test_other_suffixes_are_taken_only_when_asked_for(suffix):
    assert find_rejection_reason(image(suffix), Query()) == f"is used only with --suffix {suffix}"
    assert find_rejection_reason(image(suffix), Query(suffixes=(suffix.swapcase(),))) == ""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("part-phase_T2starw", "is not the magnitude (part-phase)"),
        ("part-real_swi", "is not the magnitude (part-real)"),
        ("part-imag_swi", "is not the magnitude (part-imag)"),
        ("rec-minip_T2starw", "is an intensity projection (rec-minip)"),
        ("acq-MIP_swi", "is an intensity projection (acq-MIP)"),
        ("acq-swimIP_swi", "is an intensity projection (acq-swimIP)"),
        ("mIP", "is an intensity projection (mIP)"),
        ("acq-phase_swi", "is a phase image (acq-phase)"),
        ("SWIphase", "is a phase image (SWIphase)"),
        ("acq-unwrappedPhase_swi", "is a phase image (acq-unwrappedPhase)"),
        ("acq-swiPh_swi", "is a phase image (acq-swiPh)"),
        ("rec-phaseMask_T2starw", "is a phase mask (rec-phaseMask)"),
        ("acq-imag_T2starw", "is a real or imaginary part (acq-imag)"),
        ("phase", "is a phase image (phase)"),
        ("bp-leg_swi", "shows another part of the body than the brain (bp-leg)"),
        ("coil-1_swi", "is the image of one coil element (coil-1)"),
        ("mag_T2starw", "has a name that is not made of key-value pairs and a suffix (mag)"),
        ("acq-a_acq-b_swi", "has an entity twice in its name"),
        ("ses-1_swi", "lies in sub-01, though its name says sub-01_ses-1"),
    ],
)
def test_what_is_no_magnitude_image_of_the_head_is_left_whatever_was_asked(name, why):
    assert (
        find_rejection_reason(image(name), Query(suffixes=(*KNOWN_SUFFIXES, "mIP", "SWIphase")))
        == why
    )


@pytest.mark.parametrize(
    "name",
    [
        "acq-qsm_T2starw",
        "acq-semiparallel_swi",  # "mip" is in it
        "bp-HEAD_swi",
        "bp-brain_acq-b_swi",
        "part-mag_T2starw",
    ],
)
def test_a_magnitude_image_of_the_head_is_taken(name):
    assert find_rejection_reason(image(name), Query()) == ""


# Labels


def test_labels_are_matched_whole_or_as_globs():
    assert match_labels(["01", "1*"], ["01", "011", "10", "1a"]) == {"01", "10", "1a"}
    assert match_labels(["[1]", "?"], ["[1]", "1"]) == {"[1]", "1"}
    assert match_labels(["[1]"], ["[1]", "1"]) == {"[1]"}  # a glob that is a label is that label
    assert find_unmatched(["01", "1", "x*", "0*"], ["01", "011"]) == ["1", "x*"]


@pytest.mark.parametrize(
    "text",
    ["03\nsub-04\n", "03 04", "\ufeffparticipant_id\tage\nsub-03\t71\nsub-04\tn/a\n\n"],
)
def test_labels_are_read_from_a_file(tmp_path, text):
    path = tmp_path / "some labels.txt"
    path.write_text(text, encoding="utf-8")
    assert read_labels(["sub-01", f"@{path}", "02"], "sub-") == ("01", "03", "04", "02")


def test_a_file_without_labels_does_not_stand_for_everybody(tmp_path):
    path = tmp_path / "labels.tsv"
    path.write_text("participant_id\n")
    with pytest.raises(ValueError, match=r"labels\.tsv: a file of labels must name at least one"):
        read_labels([f"@{path}"], "sub-")


def test_no_more_than_twenty_labels_are_listed():
    assert join_labels([f"{n:03d}" for n in range(30)]).endswith("018, 019 and 10 more")
    assert join_labels(["a", "b"]) == "a, b"


COHORT = [f"{number:04d}" for number in range(1, 1001)]


def split(labels, parts):
    """The shards of some subjects."""
    return [select_shard(labels, (part, parts)) for part in range(1, parts + 1)]


@pytest.mark.parametrize("parts", [1, 3, 8, 50])
def test_every_subject_is_in_one_shard(parts):
    labels = [*COHORT, "A1", "a1", "Zürich", "10\udce4"]  # the last is no UTF-8 on the disk
    assert sorted(chain(*split(labels, parts))) == sorted(labels)
    assert select_shard(labels, None) == labels


def test_subjects_who_join_or_leave_move_nobody_to_another_shard():
    early = [label for label in COHORT if int(label) % 3]
    for before, after in zip(split(early, 7), split(COHORT, 7), strict=True):
        assert before == [label for label in after if label in early]


def test_the_shards_of_a_thousand_subjects_are_nearly_even():
    """Within four standard deviations of what drawing by lot would give."""
    for parts in (4, 10, 16):
        mean = len(COHORT) / parts
        margin = 4 * (mean * (1 - 1 / parts)) ** 0.5
        assert all(abs(len(shard) - mean) < margin for shard in split(COHORT, parts)), parts


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="sha256sum is not on this machine")
@pytest.mark.parametrize("label", ["01", "0042", "NDARINV7"])
def test_the_shard_of_a_subject_can_be_told_by_sha256sum(label):
    """So it is the same on every machine, in every run and with every version."""
    said = subprocess.run(["sha256sum"], input=label.encode(), capture_output=True, check=True)
    part = int(said.stdout.split()[0], 16) % 12 + 1
    assert select_shard([label], (part, 12)) == [label]


@pytest.mark.parametrize("shard", [(0, 3), (4, 3)])
def test_a_shard_outside_its_number_is_refused(shard):
    with pytest.raises(ValueError, match=f"I from 1 to N; found {shard[0]}/3"):
        select_shard(["01"], shard)


# Flags and filter files


X, Y = "acq-x_run-01_T2starw", "acq-y_run-2_T2starw"
S, M = "rec-n_swi", "run-3_MEGRE"


def taken(**query):
    return [name for name in (X, Y, S, M) if not find_rejection_reason(image(name), Query(**query))]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [X, Y, S]),
        ({"acq": ("x",)}, [X]),
        ({"acq": ("acq-x", "y")}, [X, Y]),
        ({"rec": ("n",)}, [S]),
        ({"run": ("1",)}, [X]),
        ({"run": ("02",), "acq": ("x",)}, []),
    ],
)
def test_flags_choose_by_entity(query, expected):
    assert taken(**query) == expected


@pytest.mark.parametrize(
    ("content", "query", "expected"),
    [
        ({"swi": {}}, {}, [S]),
        ({"SWI": {}, "t2starw": {"acquisition": "x"}}, {}, [X, S]),
        ({"T2starw": {"acq": ["x", "z"]}}, {}, [X]),
        ({"t2starw": {"run": 1}}, {}, [X]),
        ({"t2starw": {"run": [2, None]}}, {}, [Y]),
        ({"t2starw": {"reconstruction": None}, "swi": {"acquisition": "*"}}, {}, [X, Y]),
        ({"swi": {"suffix": ["swi", "MEGRE"]}}, {}, [S, M]),
        ({"swi": {"suffix": "*"}}, {}, [X, Y, S, M]),
        ({"megre": {"extension": "nii.gz", "datatype": "anat", "subject": "01"}}, {}, [M]),
        ({"swi": {"session": "*"}}, {}, []),
        ({"megre": {}, "t2starw": {}}, {"suffixes": ("MEGRE",)}, [M]),
        ({"t2starw": {}}, {"acq": ("y",)}, [Y]),
        ({"bold": {"task": "rest"}}, {}, [X, Y, S]),
    ],
)
def test_a_filter_file_takes_what_matches_any_query_and_the_flags(
    tmp_path, content, query, expected
):
    path = tmp_path / "filter.json"
    path.write_text(json.dumps(content))
    filters, _ = read_filter_file(path)
    assert taken(filters=filters, **query) == expected


def test_queries_for_other_images_are_ignored_aloud(tmp_path):
    path = tmp_path / "filter.json"
    path.write_text('{"bold": {"nonsense": 1}, "t1w": 3, "swi": {"session": "1"}}')
    filters, notes = read_filter_file(path)
    assert filters == {"swi": {"suffix": ("swi",), "ses": ("1",)}}
    assert notes == (f"{path}: queries for other images are ignored: bold, t1w.",)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", r"filter\.json: a filter file must be JSON; Expecting"),
        ("[" * 100_000, r"filter\.json: a filter file must be JSON; "),
        ("[1]", r"a filter file must be a JSON object; found \[1\]"),
        ("\ud800", r"a filter file must be JSON; found the byte 0xed, not UTF-8"),
        ('{"swi": 3}', r"query `swi` must be an object of entities; found 3"),
        (
            '{"swi": {"acquisitoin": "x"}}',
            r"query `swi` may name BIDS entities only.*\"acquisitoin\"",
        ),
        ('{"swi": {"run": {}}}', r"`swi\.run` must be a text, a whole number, null, or a list"),
        ('{"swi": {"run": true}}', r"`swi\.run` must be .*found true"),
        ('{"swi": {"run": [1.5]}}', r"`swi\.run` must be .*found \[1\.5\]"),
    ],
)
def test_a_filter_file_that_cannot_be_meant_is_refused(tmp_path, text, sentence):
    path = tmp_path / "filter.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=sentence):
        read_filter_file(path)


def test_a_filter_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match=r"nothing\.json"):
        read_filter_file(tmp_path / "nothing.json")
