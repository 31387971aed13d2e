"""Every scan is found once, and what is left is left for a reason."""

import json
import os
import re
from itertools import chain
from pathlib import Path

import pytest
from bids.layout import BIDSLayout

from bids_cmb.bids import indexing
from bids_cmb.bids import selection as discovery
from bids_cmb.bids.filters import Query, read_filter_file
from bids_cmb.bids.selection import NAMING_HINT, find_scans, list_subjects


@pytest.fixture
def dataset(tmp_path):
    """A function that writes files of a few bytes, and JSON objects, into one dataset."""
    root = tmp_path / "data"
    root.mkdir()

    def write(*names, **sidecars):
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"voxels")
        for name, content in sidecars.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return root

    return write


def find(root, **query):
    return find_scans(root, Query(**query))


def names(selection):
    return [scan.name for scan in selection.scans]


def reason(selection, end):
    [considered] = [c for c in selection.considered if c.relative_path.endswith(end)]
    return considered.reason


def anat(name, subject="01"):
    return f"sub-{subject}/anat/sub-{subject}_{name}"


# Three public datasets, by their names (courtois-neuromod, ON-Harmony, bids-examples)


def test_in_a_neuromod_tree_swi_is_taken_and_spinal_cord_and_projections_are_left(dataset):
    root = dataset(
        "sub-01/ses-002/swi/sub-01_ses-002_swi.nii.gz",
        "sub-01/ses-002/swi/sub-01_ses-002_minIP.nii.gz",
        "sub-01/ses-002/anat/sub-01_ses-002_bp-cspine_T2starw.nii.gz",
        "sub-01/ses-002/anat/sub-01_ses-002_T2starw__dup-01.nii.gz",
        "sub-01/ses-002/anat/sub-01_ses-002_mod-T2starw_defacemask.nii.gz",
        "sub-01/ses-002/anat/sub-01_ses-002_T1w.nii.gz",
        "sub-01/ses-002/anat/sub-01_ses-002_acq-gre_localizer.nii.gz",
        "derivatives/x/sub-01/anat/sub-01_desc-preproc_T2starw.nii.gz",
    )
    found = find(root)
    [scan] = found.scans
    assert scan.path == root / "sub-01/ses-002/swi/sub-01_ses-002_swi.nii.gz"
    assert scan.relative_path == "sub-01/ses-002/swi/sub-01_ses-002_swi.nii.gz"
    assert (scan.name, scan.datatype, scan.suffix) == ("sub-01_ses-002_swi", "swi", "swi")
    assert (scan.subject, scan.session) == ("01", "002")
    assert reason(found, "002_swi.nii.gz") == "is swi in swi/"
    assert reason(found, "minIP.nii.gz") == "is an intensity projection (minIP)"
    assert "another part of the body" in reason(found, "bp-cspine_T2starw.nii.gz")
    assert "repeated conversion" in reason(found, "__dup-01.nii.gz")
    assert "defacing mask" in reason(found, "defacemask.nii.gz")
    assert len(found.considered) == 5  # T1w, the localizer and derivatives are not worth a line


def test_in_an_on_harmony_tree_gre_is_taken_only_when_asked_for_and_never_by_coil(dataset):
    base = "sub-03286/ses-OXF2PRI001/swi/sub-03286_ses-OXF2PRI001"
    root = dataset(
        *(f"{base}_echo-{n}_part-{part}_GRE.nii.gz" for n in (1, 2) for part in ("mag", "phase")),
        f"{base}_coil-32_echo-2_part-mag_GRE.nii.gz",
        f"{base}_rec-norm_echo-2_part-mag_GRE.nii.gz",
    )
    assert names(find(root)) == []
    assert "only with --suffix GRE" in reason(find(root), "OXF2PRI001_echo-2_part-mag_GRE.nii.gz")
    found = find(root, suffixes=("gre",))
    assert names(found) == [
        "sub-03286_ses-OXF2PRI001_echo-2_part-mag_GRE",
        "sub-03286_ses-OXF2PRI001_rec-norm_echo-2_part-mag_GRE",
    ]
    assert "coil" in reason(found, "coil-32_echo-2_part-mag_GRE.nii.gz")
    assert "not the magnitude" in reason(found, "OXF2PRI001_echo-2_part-phase_GRE.nii.gz")


def test_in_the_bids_examples_uncompressed_images_are_taken_and_maps_are_not(dataset):
    root = dataset(
        anat("task-still_acq-t2starPMCoff_rec-wore_T2starw.nii"),
        *(anat(f"echo-0{n}_MEGRE.nii.gz") for n in (1, 2)),
        anat("Chimap.nii.gz"),
        anat("T2starmap.nii.gz"),
        anat("R2starmap.nii.gz"),
        anat("run-1_echo-1_FLASH.nii.gz"),
    )
    found = find(root)
    [scan] = found.scans
    assert scan.entities == (
        ("sub", "01"), ("task", "still"), ("acq", "t2starPMCoff"), ("rec", "wore"),
    )  # fmt: skip
    for end in ("Chimap.nii.gz", "T2starmap.nii.gz", "R2starmap.nii.gz"):
        assert "is a map" in reason(find(root, suffixes=("Chimap", "T2starmap", "R2starmap")), end)
    assert "only with --suffix FLASH" in reason(found, "FLASH.nii.gz")
    assert names(find(root, suffixes=("flash",))) == ["sub-01_run-1_echo-1_FLASH"]
    [megre] = find(root, suffixes=("MEGRE",)).scans
    assert dict(megre.entities)["echo"] == "02"  # zeros are kept


def test_open_mpn_names_keep_their_desc_beside_the_entities(dataset):
    root = dataset(
        anat("rec-ASPIRE_desc-EchoCombined_T2starw.nii.gz"),
        anat("rec-ASPIRE_T2starw.nii.gz"),
        anat("desc-mIP_T2starw.nii.gz"),
        anat("space-T1w_T2starw.nii.gz"),
    )
    found = find(root)
    plain, combined = sorted(found.scans, key=lambda scan: scan.desc)
    assert (plain.desc, combined.desc) == ("", "EchoCombined")
    assert plain.entities == combined.entities == (("sub", "01"), ("rec", "ASPIRE"))
    assert combined.name == "sub-01_rec-ASPIRE_desc-EchoCombined_T2starw"
    assert "projection" in reason(found, "desc-mIP_T2starw.nii.gz")
    assert "derivative" in reason(found, "space-T1w_T2starw.nii.gz")


# Names


def test_entities_come_in_the_order_of_bids_however_the_file_has_them(dataset):
    root = dataset(anat("part-mag_run-01_rec-norm_acq-x_chunk-2_GRE.nii.gz"))
    [scan] = find(root, suffixes=("GRE",)).scans
    assert scan.name == "sub-01_acq-x_rec-norm_run-01_part-mag_chunk-2_GRE"


def test_an_entity_that_output_names_do_not_carry_is_said(dataset):
    [scan] = find(dataset(anat("flip-1_T2starw.nii.gz"))).scans
    assert scan.name == "sub-01_T2starw"
    assert any("do not carry flip-1" in note for note in scan.notes)


def test_t2star_is_an_image_unless_a_t2starw_is_beside_it(dataset):
    root = dataset(anat("T2star.nii.gz"), anat("T2star.nii.gz", "02"), anat("T2starw.nii.gz", "02"))
    found = find(root)
    assert names(found) == ["sub-01_T2star", "sub-02_T2starw"]
    assert "an image or a map" in found.scans[0].notes[0]
    assert "probably a map" in reason(found, "sub-02_T2star.nii.gz")


def test_names_with_unusual_characters_neither_crash_nor_vanish(dataset):
    odd = ["acq-é+.b_swi.nii.gz", "acq-[1] (#2)::x_swi.nii.gz", "acq-a\tb_swi.nii.gz"]
    root = dataset(*map(anat, odd), "sub-01/anat/swi.nii.gz", "sub-é(1)/anat/sub-é(1)_swi.nii.gz")
    raw = os.fsencode(root / "sub-01" / "anat") + b"/sub-01_acq-\xff_swi.nii.gz"
    Path(os.fsdecode(raw)).write_bytes(b"voxels")
    found = find(root)
    assert len(found.scans) == 3
    assert "no table can hold" in reason(found, r"acq-a\tb_swi.nii.gz")
    assert "no table can hold" in reason(found, r"acq-\udcff_swi.nii.gz")
    assert "its name says nothing" in reason(found, "anat/swi.nii.gz")
    assert all(c.relative_path.isprintable() for c in found.considered)


def test_a_dataset_in_a_folder_with_an_odd_name_is_read(tmp_path):
    root = tmp_path / "my data [1] #x::y"
    (root / "sub-01" / "anat").mkdir(parents=True)
    (root / "sub-01" / "anat" / "sub-01_swi.nii.gz").write_bytes(b"voxels")
    assert names(find(root)) == ["sub-01_swi"]


def test_everything_is_sorted_by_path_whatever_was_written_first(dataset):
    root = dataset(*(anat(f"run-{n}_{s}.nii.gz", who) for n in "21" for s in ("swi", "T2starw")
                     for who in ("02", "01")))  # fmt: skip
    found = find(root)
    assert [s.relative_path for s in found.scans] == sorted(s.relative_path for s in found.scans)
    assert [c.relative_path for c in found.considered] == [s.relative_path for s in found.scans]
    assert len(set(names(found))) == 8


# Doubles


def test_of_a_file_in_both_compressions_the_compressed_one_is_taken(dataset):
    found = find(dataset(anat("swi.nii"), anat("swi.nii.gz")))
    assert [scan.path.name for scan in found.scans] == ["sub-01_swi.nii.gz"]
    assert reason(found, "swi.nii") == (
        "gives the same output names as sub-01/anat/sub-01_swi.nii.gz, which goes first"
    )


def test_of_one_name_in_two_folders_that_in_anat_is_taken(dataset):
    found = find(dataset("sub-01/swi/sub-01_swi.nii.gz", anat("swi.nii.gz")))
    assert [scan.datatype for scan in found.scans] == ["anat"]


def test_of_names_equal_but_for_letter_case_one_is_taken(dataset):
    found = find(dataset(anat("acq-A_SWI.nii.gz"), anat("acq-a_swi.nii.gz")))
    assert names(found) == ["sub-01_acq-a_swi"]


def test_of_files_that_would_give_the_same_output_names_the_plainer_is_taken(dataset):
    found = find(dataset(anat("flip-1_swi.nii.gz"), anat("swi.nii.gz"), anat("flip-2_swi.nii.gz")))
    assert [scan.path.name for scan in found.scans] == ["sub-01_swi.nii.gz"]
    assert "same output names" in reason(found, "flip-1_swi.nii.gz")


def test_of_doubles_the_one_that_can_be_used_goes_first(dataset):
    root = dataset(anat("swi.nii"), anat("swi.nii.gz"))
    (root / anat("swi.nii.gz")).write_bytes(b"")
    found = find(root)
    assert [scan.path.name for scan in found.scans] == ["sub-01_swi.nii"]
    assert not any(c.unusable for c in found.considered)


def test_t2starw_and_swi_of_one_session_are_both_taken(dataset):
    assert names(find(dataset(anat("T2starw.nii.gz"), anat("swi.nii.gz")))) == [
        "sub-01_T2starw",
        "sub-01_swi",
    ]


# Echoes


@pytest.fixture
def echoes(dataset):
    """A function that writes a scan of echoes at the given times in s (None: not said)."""

    def write(*times, strength=None):
        base = {} if strength is None else {"MagneticFieldStrength": strength}
        sidecars = {
            anat(f"echo-{n}_T2starw.json"): base if time is None else {**base, "EchoTime": time}
            for n, time in enumerate(times, start=1)
        }
        return dataset(*(anat(f"echo-{n}_T2starw.nii.gz") for n in range(1, len(times) + 1)),
                       **sidecars)  # fmt: skip

    return write


@pytest.mark.parametrize(
    ("times", "strength", "echo"),
    [
        ((0.005, 0.018, 0.030), 3, "2"),  # 54 T·ms
        ((0.005, 0.018, 0.030), 1.5, "3"),  # 45 T·ms
        ((0.004, 0.009, 0.018), 7, "2"),  # 63 T·ms
        ((0.010, 0.015, 0.025), 3, "3"),  # 45 and 75 are as near: the longer
        ((10, 20, 30), 3, "2"),  # in ms
        ((0.005, None, 0.040), 3, "1"),  # 15 and 120
    ],
)
def test_the_echo_nearest_60_tesla_milliseconds_is_taken(echoes, times, strength, echo):
    found = find(echoes(*times, strength=strength))
    [scan] = found.scans
    assert dict(scan.entities)["echo"] == echo
    assert f"is echo {echo} of {len(times)}" in scan.notes[-1]
    left = [c for c in found.considered if not c.included]
    assert len(left) == len(times) - 1
    assert all(f"echo {echo} is nearest 60 T·ms" in c.reason for c in left)


def test_three_tesla_are_assumed_aloud(echoes):
    [scan] = find(echoes(0.010, 0.020, 0.030)).scans
    assert dict(scan.entities)["echo"] == "2"
    assert "3 T assumed" in scan.notes[-1]


def test_without_echo_times_the_last_echo_is_taken_aloud(echoes):
    [scan] = find(echoes(*[None] * 11)).scans
    assert dict(scan.entities)["echo"] == "11"  # by number, not by letter
    assert "echo time unknown) and is the last" in scan.notes[-1]


def test_an_echo_can_be_asked_for_by_number(echoes, dataset):
    dataset(anat("acq-one_swi.nii.gz"))
    root = echoes(0.01, 0.02, 0.03)
    found = find(root, echo=("03",))
    assert names(found) == ["sub-01_acq-one_swi", "sub-01_echo-3_T2starw"]
    assert "echo 03 was requested" in reason(found, "echo-1_T2starw.nii.gz")
    assert names(find(root, echo=("9",))) == ["sub-01_acq-one_swi"]


def test_echoes_can_be_combined(echoes):
    root = echoes(0.01, 0.02, 0.03, strength=3)
    found = find(root, echo=("combined",))
    [scan] = found.scans
    assert scan.name == "sub-01_T2starw"
    assert scan.path.name == "sub-01_echo-1_T2starw.nii.gz"
    assert [p.name[7:13] for p in scan.more_echoes] == ["echo-2", "echo-3"]
    assert scan.metadata == {"MagneticFieldStrength": 3, "EchoTime": pytest.approx(0.02)}
    assert all(c.included for c in found.considered)
    [two] = find(root, echo=("1", "3", "combined")).scans
    assert [p.name[7:13] for p in (two.path, *two.more_echoes)] == ["echo-1", "echo-3"]


def test_where_a_combined_image_is_there_echoes_are_not_combined_again(echoes, dataset):
    dataset(anat("T2starw.nii.gz"))
    found = find(echoes(0.01, 0.02), echo=("combined",))
    assert [scan.path.name for scan in found.scans] == ["sub-01_T2starw.nii.gz"]
    assert "sub-01_T2starw.nii.gz, which goes first" in reason(found, "echo-1_T2starw.nii.gz")


def test_only_the_echo_that_is_needed_must_be_there(echoes):
    root = echoes(0.01, 0.02, 0.03, strength=3)
    (root / anat("echo-1_T2starw.nii.gz")).write_bytes(b"")
    assert names(find(root)) == ["sub-01_echo-2_T2starw"]
    both = find(root, echo=("combined",))
    assert both.scans == ()
    assert [c.unusable for c in both.considered] == [True, False, False]
    assert "cannot be combined without" in reason(both, "echo-2_T2starw.nii.gz")
    (root / anat("echo-2_T2starw.nii.gz")).write_bytes(b"")
    assert find(root).scans == ()  # another echo would be another protocol


def test_one_magnitude_echo_needs_no_choice(dataset):
    root = dataset(anat("echo-1_part-mag_T2starw.nii.gz"), anat("echo-1_part-phase_T2starw.nii.gz"))
    assert "only magnitude echo" in reason(find(root), "mag_T2starw.nii.gz")


# Files that cannot be used


def make_empty(path):
    path.write_bytes(b"")


def make_broken(path):
    path.unlink()
    path.symlink_to("../../.git/annex/objects/aa/bb/MD5E-s1--c.nii.gz/MD5E-s1--c.nii.gz")


def make_unlocked_pointer(path):
    path.write_text("/annex/objects/MD5E-s123--abc.nii.gz\n")


def make_link_as_text(path):
    path.write_text("../../.git/annex/objects/aa/bb/MD5E-s1--c.nii.gz/MD5E-s1--c.nii.gz")


def make_loop(path):
    path.unlink()
    path.symlink_to(path.name)


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (make_empty, "is empty (0 bytes)"),
        (make_broken, "is not fetched (broken git-annex or DataLad link)"),
        (make_unlocked_pointer, "is not fetched (a git-annex or git-lfs pointer)"),
        (make_link_as_text, "is not fetched (a git-annex or git-lfs pointer)"),
        (make_loop, "cannot be read (too many levels of symbolic links)"),
        (make_pipe, "is not a regular file"),
    ],
)
def test_a_file_that_was_asked_for_and_cannot_be_used_is_said_to_be_wanted(dataset, spoil, why):
    root = dataset(anat("swi.nii.gz"), anat("T2starw.nii.gz"))
    spoil(root / anat("swi.nii.gz"))
    found = find(root)
    assert names(found) == ["sub-01_T2starw"]
    [wanted] = [c for c in found.considered if c.unusable]
    assert (wanted.relative_path, wanted.included) == (anat("swi.nii.gz"), False)
    assert wanted.reason == why
    assert not any(c.unusable for c in find(root, suffixes=("T2starw",)).considered)


def test_a_file_without_permission_is_wanted(dataset, monkeypatch):
    root = dataset(anat("swi.nii.gz"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    [file] = find(root).considered
    assert file.unusable
    assert file.reason == "cannot be read (permission denied)"


def test_a_folder_that_cannot_be_read_is_wanted(dataset, monkeypatch):
    root = dataset(anat("swi.nii.gz"), anat("swi.nii.gz", "02"))
    scandir = os.scandir

    def guarded(folder):
        if str(folder).endswith("sub-02/anat"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    [file] = [c for c in find(root).considered if c.unusable]
    assert file.relative_path == "sub-02/anat"
    assert file.reason == "cannot be read (permission denied)"


def test_where_pybids_may_not_look_the_rest_is_found_all_the_same(dataset, monkeypatch):
    def stops(*_, **__):
        raise PermissionError(13, "Permission denied")

    root = dataset(anat("swi.nii.gz"), anat("minIP.nii.gz"), "sub-02/swi/sub-02_swi.nii.gz")
    expected = find(root)
    monkeypatch.setattr("bids.layout.BIDSLayout", stops)
    assert find(root) == expected
    assert names(expected) == ["sub-01_swi", "sub-02_swi"]


def test_a_folder_named_like_an_image_is_left(dataset):
    root = dataset(f"{anat('swi.nii.gz')}/inside.txt", anat("T2starw.nii.gz"))
    found = find(root)
    assert names(found) == ["sub-01_T2starw"]
    assert reason(found, "swi.nii.gz") == "is a folder, not an image"


def test_linked_subjects_and_fetched_annex_links_are_followed(dataset, tmp_path):
    root = dataset(anat("swi.nii.gz", "02"))
    (tmp_path / "elsewhere").mkdir()
    (root / "sub-02").rename(tmp_path / "elsewhere" / "sub-02")
    (root / "sub-02").symlink_to(tmp_path / "elsewhere" / "sub-02")
    (tmp_path / "object").write_bytes(b"voxels")
    (root / "sub-02" / "anat" / "sub-02_T2starw.nii.gz").symlink_to(tmp_path / "object")
    (root / "sub-02" / "anat" / "loop").symlink_to("..")
    found = find(root)
    assert names(found) == ["sub-02_T2starw", "sub-02_swi"]
    assert found.scans[1].path == root / "sub-02/anat/sub-02_swi.nii.gz"


# Subjects, sessions, shards


@pytest.fixture
def cohort(dataset):
    """Ten subjects 01 to 10 with a swi each; 01 has the sessions a and b, 02 has b."""
    files = [anat("swi.nii.gz", f"{n:02d}") for n in range(3, 11)]
    sessions = [("01", "a"), ("01", "b"), ("02", "b")]
    files += [f"sub-{s}/ses-{t}/anat/sub-{s}_ses-{t}_swi.nii.gz" for s, t in sessions]
    return dataset(*files, "participants.tsv", "sub-/anat/sub-_swi.nii.gz", "sub-file")


def subjects(selection):
    return [scan.subject for scan in selection.scans]


def test_subjects_are_the_folders(cohort):
    assert list_subjects(cohort) == [f"{n:02d}" for n in range(1, 11)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("03",), ["03"]),
        (("sub-03", "04"), ["03", "04"]),
        (("0[34]", "sub-1*"), ["03", "04", "10"]),
        (("03", "03", "0[3]"), ["03"]),
    ],
)
def test_labels_are_matched_whole_with_or_without_prefix_or_as_globs(cohort, labels, expected):
    assert subjects(find(cohort, participants=labels)) == expected


def test_a_label_that_begins_with_the_letters_of_its_prefix_keeps_them(dataset):
    root = dataset(anat("swi.nii.gz", "bus01"), anat("swi.nii.gz", "01"))
    assert subjects(find(root, participants=("sub-bus01",))) == ["bus01"]


def test_labels_in_a_file_choose_and_exclude(cohort, tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("03 sub-04")
    assert subjects(find(cohort, participants=(f"@{path}",))) == ["03", "04"]
    assert len(find(cohort, excluded=(f"@{path}",)).scans) == 9


def test_unknown_labels_are_refused_together_with_what_is_there(cohort):
    wrong = r"Every participant label must exist in .*; unknown: 1, x\*; there: 01, 02, .*, 10\."
    with pytest.raises(ValueError, match=wrong):
        find(cohort, participants=("01", "1", "x*"))


def test_excluded_subjects_are_left_and_absent_ones_are_said(cohort):
    found = find(cohort, participants=("0*",), excluded=("sub-01", "02", "77"))
    assert subjects(found) == ["03", "04", "05", "06", "07", "08", "09"]
    assert found.notes == ("Not in the dataset, though to be excluded: 77.",)


def test_sessions_are_chosen_and_those_without_are_left(cohort):
    found = find(cohort, sessions=("ses-b",))
    assert names(found) == ["sub-01_ses-b_swi", "sub-02_ses-b_swi"]
    assert reason(found, "ses-a_swi.nii.gz") == "is of session a, which was not requested"
    assert reason(found, "sub-03_swi.nii.gz") == "is of no session, which was not requested"
    assert names(find(cohort, sessions=("[ab]",), participants=("02",))) == ["sub-02_ses-b_swi"]


def test_a_session_that_no_subject_has_is_refused(cohort):
    with pytest.raises(ValueError, match=r"Every session label .* unknown: c; there: a, b\."):
        find(cohort, sessions=("a", "c"))
    with pytest.raises(ValueError, match=r"unknown: b; there: none\."):
        find(cohort, sessions=("b",), participants=("03",))


def test_shards_share_out_the_chosen_subjects(cohort):
    query = {"participants": ("0*",), "excluded": ("05",)}
    parts = [names(find(cohort, shard=(i, 3), **query)) for i in (1, 2, 3)]
    assert sorted(chain(*parts)) == names(find(cohort, **query))
    assert all(0 < len(part) < 9 for part in parts)


def test_all_sessions_of_a_person_are_in_one_shard(dataset):
    """So its lesions can be followed over time by the process that has the shard."""
    root = dataset(
        *(f"sub-{s}/ses-{t}/anat/sub-{s}_ses-{t}_swi.nii.gz" for s in "ABCDEF" for t in "123")
    )
    for part in range(1, 5):
        found = subjects(find(root, shard=(part, 4)))
        assert all(found.count(subject) == 3 for subject in found)


def test_a_person_who_joins_the_dataset_moves_nobody_to_another_shard(cohort):
    before = [names(find(cohort, shard=(part, 4))) for part in range(1, 5)]
    newcomer = cohort / "sub-005" / "anat" / "sub-005_swi.nii.gz"  # first but for 001 to 004
    newcomer.parent.mkdir(parents=True)
    newcomer.write_bytes(b"voxels")
    after = [names(find(cohort, shard=(part, 4))) for part in range(1, 5)]
    assert [[name for name in part if name != "sub-005_swi"] for part in after] == before
    assert [part.count("sub-005_swi") for part in after].count(1) == 1


def test_a_shard_without_anybody_says_so_and_does_not_ask_for_other_names(cohort):
    found = [find(cohort, shard=(part, 50)) for part in range(1, 51)]
    assert [each.shard_is_empty for each in found] == [not each.scans for each in found]
    assert 40 <= sum(each.shard_is_empty for each in found) < 50
    assert not any(each.notes for each in found)
    (cohort / "sub-11" / "anat").mkdir(parents=True)
    alone = find(cohort, participants=("11",), shard=(1, 1))
    assert not alone.shard_is_empty
    assert NAMING_HINT in alone.notes


def test_a_session_is_not_unknown_for_lying_in_another_shard(cohort):
    held = [names(find(cohort, sessions=("a",), shard=(part, 10))) for part in range(1, 11)]
    assert sorted(held) == [[]] * 9 + [["sub-01_ses-a_swi"]]


def test_only_the_subjects_of_the_shard_are_opened(cohort, monkeypatch):
    opened, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(str(path)) or scandir(path))
    found = find(cohort, shard=(3, 5))
    folders = {part for path in opened for part in path.split("/") if part.startswith("sub-")}
    assert folders == {f"sub-{subject}" for subject in subjects(found)}
    assert 1 < len(folders) < 10


def test_many_subjects_are_found_in_pieces(dataset, monkeypatch):
    monkeypatch.setattr(discovery, "SUBJECTS_PER_INDEX", 2)
    root = dataset(*(anat("swi.nii.gz", f"{n}") for n in range(5)))
    assert subjects(find(root)) == ["0", "1", "2", "3", "4"]


def test_images_of_the_spinal_cord_are_left_as_their_sidecars_say(dataset):
    root = dataset(
        *(anat("T2starw.nii.gz", label) for label in ("01", "02", "03")),
        **{
            "T2starw.json": {"BodyPartExamined": "RUECKENMARK"},
            anat("T2starw.json", "02"): {"BodyPartExamined": "HEAD"},
            anat("T2starw.json", "03"): {"BodyPartExamined": "CSPINE"},
        },
    )
    found = find(root)
    assert subjects(found) == ["02"]
    why = "shows another part of the body than the brain (BodyPartExamined {})"
    assert reason(found, anat("T2starw.nii.gz")) == why.format("RUECKENMARK")
    assert reason(found, anat("T2starw.nii.gz", "03")) == why.format("CSPINE")


def test_phase_images_and_projections_are_left_as_their_sidecars_say(dataset):
    """Conversions name them like the magnitude: a filtered phase image as swi, a minIP too."""
    types = {"01": ["M", "SWI"], "02": ["P", "ND", "PHASE"], "03": ["M", "MNIP"]}
    root = dataset(
        *(anat("swi.nii.gz", label) for label in types),
        **{anat("swi.json", label): {"ImageType": words} for label, words in types.items()},
    )
    found = find(root)
    assert subjects(found) == ["01"]
    assert reason(found, anat("swi.nii.gz", "02")) == "is a phase image (ImageType P, PHASE)"
    why = "is an intensity projection (ImageType MNIP)"
    assert reason(found, anat("swi.nii.gz", "03")) == why


def test_an_extension_in_capitals_is_listed_with_its_reason(dataset):
    root = dataset(anat("T2starw.NII.GZ"), anat("swi.Nii"), anat("T1w.NII.GZ"))
    found = find(root)
    assert found.scans == ()
    assert reason(found, "NII.GZ") == "has the extension .NII.GZ; BIDS knows only .nii.gz"
    assert reason(found, "Nii") == "has the extension .Nii; BIDS knows only .nii"


def test_subjects_without_a_scan_are_said(dataset):
    found = find(dataset(anat("swi.nii.gz"), anat("T1w.nii.gz", "02")))
    assert found.notes == ("No scan was selected for 1 of 2 participants: 02.",)


def test_a_folder_without_subjects_gives_nothing_and_says_so(tmp_path):
    found = find(tmp_path)
    assert (found.scans, found.considered) == ((), ())
    assert found.notes == (f"{tmp_path} has no `sub-` folders.", NAMING_HINT)


def test_a_file_that_is_not_named_by_bids_is_answered_with_a_name_that_would_be(tmp_path):
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "sub-01" / "swi.nii.gz").touch()
    assert NAMING_HINT in find(tmp_path).notes
    for name in re.findall(r"sub-01/anat/\S+?\.nii\.gz", NAMING_HINT):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"voxels")
    assert len(find(tmp_path).scans) == 2
    assert NAMING_HINT not in find(tmp_path).notes


def test_a_dataset_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a BIDS dataset is a folder; found none there"):
        find(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[]", '{"DatasetType": "derivative"}'])
def test_an_odd_dataset_description_stops_nobody(dataset, text):
    root = dataset(anat("swi.nii.gz"), **{"dataset_description.json": text})
    assert names(find(root)) == ["sub-01_swi"]


@pytest.mark.parametrize("text", ['["x"]', '{"DatasetType": "derivative", "GeneratedBy": 3}'])
def test_a_dataset_description_that_stops_pybids_is_named(dataset, text):
    root = dataset(anat("swi.nii.gz"), **{"dataset_description.json": text})
    with pytest.raises(ValueError, match=r"dataset_description\.json: must be an object"):
        find(root)


def test_a_pybids_configuration_in_the_data_has_no_say(dataset):
    root = dataset(
        anat("swi.nii.gz"), **{"layout_config.json": "{", "sub-01/layout_config.json": "{"}
    )
    assert names(find(root)) == ["sub-01_swi"]


# What is asked for, and what is known, comes together


def test_flags_and_filter_files_are_heeded(dataset, tmp_path):
    root = dataset(*(anat(f"{x}_{s}.nii.gz") for x in ("acq-x", "acq-y") for s in ("swi", "XYZ")))
    assert names(find(root, acq=("x",))) == ["sub-01_acq-x_swi"]
    (tmp_path / "filter.json").write_text('{"swi": {"suffix": "XYZ", "acquisition": "y"}}')
    filters, _ = read_filter_file(tmp_path / "filter.json")
    assert names(find(root, filters=filters)) == ["sub-01_acq-y_XYZ"]  # though nobody knows XYZ


def test_a_scan_carries_what_its_sidecars_say(dataset):
    root = dataset(
        anat("swi.nii.gz"),
        **{"swi.json": {"MagneticFieldStrength": 3, "EchoTime": 9}, anat("swi.json"): "{"},
    )
    (root / "sub-01" / "sub-01_swi.json").write_text('{"EchoTime": 20}')
    [scan] = find(root).scans
    assert scan.metadata == {"MagneticFieldStrength": 3, "EchoTime": 0.02}
    assert (scan.echo_time_s, scan.field_strength_t, scan.session) == (0.02, 3.0, None)
    assert [note.split(" ")[0] for note in scan.notes] == [anat("swi.json"), "sub-01_swi.nii.gz:"]


# The database


def test_a_database_is_made_once_and_read_again(cohort, tmp_path):
    there = tmp_path / "new" / "database"
    made = find(cohort, database_dir=there, shard=(1, 2))
    assert [path.name for path in there.iterdir()] == ["layout_index.sqlite"]
    stamp = (there / "layout_index.sqlite").stat().st_mtime_ns
    assert made.scans == find(cohort, shard=(1, 2)).scans
    assert find(cohort, database_dir=there).scans == find(cohort).scans
    assert (there / "layout_index.sqlite").stat().st_mtime_ns == stamp
    assert "newer ones are not seen" in made.notes[0]


def test_a_database_made_anew_sees_new_files(cohort, tmp_path):
    there = tmp_path / "database"
    before = find(cohort, database_dir=there).scans
    new = cohort / "sub-new" / "anat" / "sub-new_T2starw.nii.gz"
    new.parent.mkdir(parents=True)
    new.write_bytes(b"an image")
    assert len(find(cohort, database_dir=there).scans) == len(before)
    assert len(find(cohort, database_dir=there, reset_database=True).scans) == len(before) + 1


def test_a_database_knows_suffixes_that_nobody_had_asked_for(dataset, tmp_path):
    root = dataset(anat("swi.nii.gz"), anat("FLASH.nii.gz"), anat("XYZ.nii.gz"))
    find(root, database_dir=tmp_path / "db")
    assert names(find(root, database_dir=tmp_path / "db", suffixes=("xyz",))) == ["sub-01_XYZ"]


def test_a_database_of_pybids_itself_is_read(cohort, tmp_path):
    layout = BIDSLayout(cohort, validate=False, database_path=tmp_path / "db")
    indexing._list_files(layout)
    assert len(find(cohort, database_dir=tmp_path / "db").scans) == 11


def test_a_file_that_went_since_the_database_was_made_is_wanted(cohort, tmp_path):
    find(cohort, database_dir=tmp_path / "db")
    (cohort / anat("swi.nii.gz", "03")).unlink()
    [wanted] = [c for c in find(cohort, database_dir=tmp_path / "db").considered if c.unusable]
    assert "no longer there" in wanted.reason


def test_a_database_of_another_dataset_is_refused(cohort, tmp_path):
    (tmp_path / "other").mkdir()
    find(tmp_path / "other", database_dir=tmp_path / "db")
    with pytest.raises(ValueError, match=r"must have been made from .*data; it is of .*other"):
        find(cohort, database_dir=tmp_path / "db")


def test_a_file_that_is_no_database_is_refused(cohort, tmp_path):
    (tmp_path / "layout_index.sqlite").write_text("nothing of the kind, but long enough to open")
    with pytest.raises(ValueError, match="must be a pybids database"):
        find(cohort, database_dir=tmp_path)


def test_others_find_swi_by_its_datatype_in_a_database_of_ours(dataset, tmp_path):
    root = dataset("sub-01/swi/sub-01_swi.nii.gz")
    find(root, database_dir=tmp_path / "db")
    layout = BIDSLayout(database_path=tmp_path / "db", validate=False)
    assert len(layout.get(datatype="swi", suffix="swi")) == 1
    indexing._list_files(layout)
