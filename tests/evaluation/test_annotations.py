"""What was marked in each scan, read from tables, masks and label maps."""

import json

import numpy as np
import pytest
from scipy import ndimage

from bids_cmb.evaluation.annotations import (
    LesionAnnotations,
    read_annotations,
    read_mimics,
)
from bids_cmb.evaluation.options import locate_reference
from bids_cmb.evaluation.overlap import measure_shared_volume
from bids_cmb.imaging.nifti import save
from bids_cmb.imaging.volume import Volume


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace(" ", "\t"), encoding="utf-8")
    return path


def painted(grid, *boxes):
    """Label map on a grid: each (i, j, k) range with its number from 1."""
    data = np.zeros(grid.shape, np.uint16)
    for number, (i, j, k) in enumerate(boxes, start=1):
        data[slice(*i), slice(*j), slice(*k)] = number
    return Volume(data, grid.affine)


def put(volume, path, dtype=np.uint16):
    path.parent.mkdir(parents=True, exist_ok=True)
    save(volume, path, dtype=dtype)
    return path


CUBE = ((10, 14), (20, 24), (8, 10))
BESIDE = ((14, 18), (20, 24), (8, 10))  # touches CUBE
AWAY = ((40, 42), (20, 24), (8, 10))


def test_a_table_of_coordinates_is_read_per_scan(tmp_path):
    marks = read_annotations(
        write(tmp_path / "t.tsv", "subject cmb x_mm y_mm z_mm\n"
              "sub-2 0 -1.5 2 3\n1 0 4 5 6\nsub-2 1 7 8 9\nsub-3 0 n/a n/a n/a\n")
    )  # fmt: skip
    assert [one.name for one in marks] == ["sub-2", "sub-1", "sub-3"]
    assert marks[0].positions.tolist() == [[-1.5, 2, 3], [7, 8, 9]]
    assert marks[2].positions.shape == (0, 3)
    assert marks[0].lesions["probability"].tolist() == [1, 1]
    assert marks[0].lesions["diameter_mm"].isna().all()


def test_sessions_keep_their_lesions_apart(tmp_path):
    marks = read_annotations(
        write(tmp_path / "t.tsv", "participant_id session_id x_mm y_mm z_mm\n"
              "sub-1 ses-a 1 1 1\nsub-1 b 2 2 2\nsub-2 n/a 3 3 3\n")
    )  # fmt: skip
    assert [one.name for one in marks] == ["sub-1_ses-a", "sub-1_ses-b", "sub-2"]


def test_columns_of_the_app_and_of_the_truth_are_understood(tmp_path):
    (marks,) = read_annotations(
        write(tmp_path / "sub-1_ses-2_run-3_space-orig_seg-CMB_desc-swi_dseg.tsv",
              "index x_mm y_mm z_mm diameter_mm probability_max certainty included visible "
              "territory\n"
              "2 1 2 3 2.5 0.8 definite yes yes deep\n1 4 5 6 3 0.6 possible no no lobar\n")
    )  # fmt: skip
    assert marks.name == "sub-1_ses-2_run-3"
    assert marks.lesions["index"].tolist() == [2, 1]
    assert marks.lesions["probability"].tolist() == [0.8, 0.6]
    assert marks.lesions["uncertain"].tolist() == [False, True]
    assert marks.lesions["included"].tolist() == [True, False]
    assert marks.lesions["territory"].tolist() == ["deep", "lobar"]
    assert marks.image is None


@pytest.mark.parametrize(
    ("desc", "source", "contrast"),
    [
        ("swi", None, "swi"),
        ("maskedT2starw", None, "T2starw"),
        ("T2star", None, "T2starw"),  # which was its name in BIDS
        ("MEGRE", None, "MEGRE"),
        ("truth", "bids::sub-1/anat/sub-1_SWI.nii.gz", "swi"),
        ("truth", "bids::derivatives/x/sub-1_label-CMB_desc-swi_mask.nii.gz", "swi"),
        ("truth", "bids::sub-1/anat/sub-1_T1w.nii.gz", ""),
        ("truth", None, ""),
    ],
)
def test_the_contrast_is_told_by_the_name_or_by_the_sources(tmp_path, desc, source, contrast):
    table = write(tmp_path / f"sub-1_seg-CMB_desc-{desc}_dseg.tsv", "x_mm y_mm z_mm\n")
    table.with_suffix(".json").write_text(json.dumps({"Sources": source and [source]}))
    (marks,) = read_annotations(table)
    assert marks.contrast == contrast


def test_a_label_map_is_measured_lesion_by_lesion(tmp_path, blank):
    labels = painted(blank, CUBE, BESIDE)
    (marks,) = read_annotations(put(labels, tmp_path / "sub-1_seg-CMB_dseg.nii.gz"))
    # The middle of voxels 10 to 13, 20 to 23, 8 to 9 and the 32 voxels of 0.5 mm³
    np.testing.assert_allclose(
        marks.positions, blank.world(np.array([[11.5, 21.5, 8.5], [15.5, 21.5, 8.5]])), atol=1e-4
    )
    np.testing.assert_allclose(marks.lesions["diameter_mm"], np.cbrt(6 * 16 / np.pi))


def test_in_a_mask_what_touches_is_one_lesion(tmp_path, blank):
    mask = painted(blank, CUBE, BESIDE, AWAY)
    mask = Volume(mask.data > 0, mask.affine)
    (marks,) = read_annotations(put(mask, tmp_path / "sub-1_label-CMB_mask.nii.gz", np.uint8))
    assert len(marks.lesions) == ndimage.label(mask.data)[1] == 2


def test_a_probability_map_is_cut_and_keeps_its_peaks(tmp_path, blank):
    chance = painted(blank, CUBE, AWAY).data * np.float32(0.45)  # 0.45 and 0.9
    image = put(Volume(chance, blank.affine), tmp_path / "sub-1_CMB.nii.gz", np.float32)
    (marks,) = read_annotations(image)
    assert marks.lesions["probability"].tolist() == pytest.approx([0.9])


def test_a_mask_of_nothing_is_a_scan_without_lesions(tmp_path, blank):
    for name in ("sub-1_dseg.nii.gz", "sub-1_mask.nii.gz"):
        (marks,) = read_annotations(put(blank, tmp_path / name))
        assert len(marks.lesions) == 0
        assert marks.positions.shape == (0, 3)


def test_a_folder_is_read_by_its_lesion_tables_if_it_has_any(tmp_path, blank):
    stem = "sub-1/anat/sub-1_space-orig_"
    write(
        tmp_path / f"{stem}seg-CMB_desc-swi_dseg.tsv", "x_mm y_mm z_mm probability_max\n1 2 3 0.8\n"
    )
    image = put(blank, tmp_path / f"{stem}seg-CMB_desc-swi_dseg.nii.gz")
    put(blank, tmp_path / f"{stem}label-brain_desc-swi_mask.nii.gz")
    write(tmp_path / "sub-1/sub-1_scans.tsv", "filename n_cmb\nx 1\n")
    (marks,) = read_annotations(tmp_path)
    assert (marks.image, marks.lesions["probability"].tolist()) == (image, [0.8])


def test_a_folder_of_masks_is_read_too(tmp_path, blank):
    for name in ("sub-1_space-T2S_CMB.nii.gz", "sub-2/sub-2_space-T2S_CMB.nii.gz"):
        put(painted(blank, CUBE), tmp_path / name)
    assert [marks.name for marks in read_annotations(tmp_path)] == ["sub-1", "sub-2"]


def test_a_dataset_does_not_answer_for_the_derivatives_within_it(tmp_path):
    # Else a raw dataset with its truth inside would be a perfect prediction.
    truth = tmp_path / "derivatives/truth"
    write(truth / "sub-1/anat/sub-1_space-orig_seg-CMB_dseg.tsv", "x_mm y_mm z_mm\n1 2 3\n")
    assert len(read_annotations(truth)) == 1
    with pytest.raises(ValueError, match="found none of"):
        read_annotations(tmp_path)


def test_a_scan_that_the_app_did_not_finish_does_not_count(tmp_path):
    for label in ("1", "2"):
        name = f"sub-{label}/anat/sub-{label}_space-orig_seg-CMB_desc-swi_dseg.tsv"
        write(tmp_path / name, "x_mm y_mm z_mm probability_max\n")
    marker = tmp_path / "sub-2/anat/sub-2_space-orig_label-CMB_desc-swi_mask.json"
    marker.write_text(json.dumps({"Microbleeds": {"slice_spacing_mm": 4.0}}))
    (marks,) = read_annotations(tmp_path)
    assert (marks.name, marks.sidecar["Microbleeds"]["slice_spacing_mm"]) == ("sub-2", 4.0)


def marked(tmp_path, name, volume):
    (marks,) = read_annotations(put(volume, tmp_path / name / "sub-1_dseg.nii.gz"))
    return marks


def test_shared_volume_is_that_of_the_common_voxels(tmp_path, blank):
    found = marked(tmp_path, "a", painted(blank, ((12, 16), (20, 24), (8, 10)), AWAY))
    true = marked(tmp_path, "b", painted(blank, CUBE, BESIDE))
    # Two of four columns in each: 2 × 4 × 2 voxels of 0.5 × 0.5 × 2 mm
    assert measure_shared_volume(found, true) == pytest.approx(np.array([[8, 8], [0, 0]]))


def test_grids_may_differ_and_a_small_lesion_is_seen_in_a_thick_slice(tmp_path, blank):
    true = marked(tmp_path, "b", painted(blank, CUBE))
    step = np.diag([-0.25, 0.25, 0.25, 1])  # upright, not flipped and finer than the truth
    corner = blank.world(np.array([11.5, 21.5, 8.9])) - [-2.5, 2.5, 2.5]
    step[:3, 3] = corner
    fine = Volume(np.zeros((21, 21, 21), np.uint16), step)
    fine.data[10, 10, 10] = 1  # one voxel, far from every centre of the thick slices
    found = marked(tmp_path, "a", fine)
    assert measure_shared_volume(found, true) == pytest.approx(0.25**3)
    assert measure_shared_volume(true, found) == pytest.approx(0.25**3)


def test_grids_without_a_place_in_common_are_refused(tmp_path, blank):
    far = blank.affine.copy()
    far[:3, 3] += 500
    found = marked(tmp_path, "a", painted(Volume(blank.data, far), CUBE))
    true = marked(tmp_path, "b", painted(blank, CUBE))
    with pytest.raises(ValueError, match="the two grids have no place in common"):
        measure_shared_volume(found, true)


def test_overlap_without_a_label_map_is_refused(tmp_path, blank):
    true = marked(tmp_path, "b", painted(blank, CUBE))
    (points,) = read_annotations(write(tmp_path / "t.tsv", "subject x_mm y_mm z_mm\n1 1 2 3\n"))
    with pytest.raises(ValueError, match=r"needs a mask or label map of both.*coordinates only"):
        measure_shared_volume(points, true)
    nothing = LesionAnnotations({"sub": "1"}, points.lesions.iloc[:0])
    assert measure_shared_volume(nothing, true).shape == (0, 1)


def test_mimics_are_read_from_beside_the_truth(tmp_path, blank):
    name = "sub-1/sub-1_space-orig_seg-{}_desc-truth_dseg"
    write(tmp_path / f"{name.format('CMB')}.tsv", "x_mm y_mm z_mm\n1 2 3\n")
    (truth,) = read_annotations(tmp_path)
    assert read_mimics(truth) is None
    table = tmp_path / f"{name.format('mimics')}.tsv"
    write(table, "index kind x_mm y_mm z_mm\n1 vein 0 0 0\n2 calcification 50 0 0\n")
    kinds, away = read_mimics(truth).find_nearest(np.array([[48.0, 0, 0], [0, 1, 0]]))
    assert (kinds.tolist(), away.tolist()) == (["calcification", "vein"], [2, 1])

    # With a label map the whole vein counts, not its middle.
    long_one = painted(blank, ((0, 60), (5, 6), (4, 5)), CUBE)
    put(long_one, table.with_name(table.name.replace(".tsv", ".nii.gz")))
    mimics = read_mimics(truth)
    kinds, away = mimics.find_nearest(blank.world(np.array([[58.0, 5, 4], [12, 22, 9]])))
    assert kinds.tolist() == ["vein", "calcification"]
    np.testing.assert_allclose(away, 0, atol=1e-3)
    assert mimics.counts == {"vein": 1, "calcification": 1}


def test_mimics_without_a_kind_are_refused(tmp_path):
    write(tmp_path / "sub-1_seg-CMB_dseg.tsv", "x_mm y_mm z_mm\n1 2 3\n")
    write(tmp_path / "sub-1_seg-mimics_dseg.tsv", "x_mm y_mm z_mm\n1 2 3\n")
    (truth,) = read_annotations(tmp_path)
    with pytest.raises(ValueError, match="kind not among x_mm"):
        read_mimics(truth)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("subject x_mm y_mm\nsub-1 1 2\n", r"t\.tsv: the columns .* are needed; z_mm not among"),
        ("x_mm y_mm\n1 2\n", "z_mm not among x_mm, y_mm"),
        ("subject x_mm y_mm z_mm\nsub-1 1 n/a 3\n", "n/a for all three; line 2 has only some"),
        ("subject x_mm y_mm z_mm\nn/a 1 2 3\n", "every line must name its subject; line 2 does"),
        ("subject x_mm y_mm z_mm\nsub-1 1 two 3\n", "must be numbers; .*two"),
        ("x_mm y_mm z_mm\n1 2 3\n1 n/a 3\n", "must have a position; line 3 has not"),
        (
            "x_mm y_mm z_mm probability_max\n1 2 3 .5\n1 2 3 n/a\n",
            "probability from 0 to 1; .* or none",
        ),
        ("x_mm y_mm z_mm probability_max\n1 2 3 7\n", "probability from 0 to 1; found 7 to 7"),
        ("x_mm y_mm z_mm probability_max\n1 2 3 high\n", "probability_max must be numbers; .*high"),
        ("", r"t\.tsv: a tab-separated table is expected; found an empty file"),
    ],
)
def test_a_table_that_cannot_be_read_is_said(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_annotations(write(tmp_path / "t.tsv", text))


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffx_mm\ty_mm\tz_mm\tcomment\n1\t2\t3\ta\n4\t5\t6\tb\n",
        'x_mm\ty_mm\tz_mm\tcomment\n1\t2\t3\t"unclosed\n4\t5\t6\tb\n',
        'x_mm\ty_mm\tz_mm\tcomment\r\n1\t2\t3\t3" mark\r\n"4"\t5\t6\tb\r\n',
        "x_mm\ty_mm\tz_mm\tcomment\n1\t2\t3\n\n4\t5\t6\tb\n",
    ],
    ids=["byte-order mark", "open quotation mark", "Windows and quotes", "short and empty lines"],
)
def test_a_table_is_read_line_by_line_whatever_program_wrote_it(tmp_path, text):
    (tmp_path / "t.tsv").write_bytes(text.encode())
    [marks] = read_annotations(tmp_path / "t.tsv")
    np.testing.assert_array_equal(marks.positions, [[1, 2, 3], [4, 5, 6]])


def test_a_table_that_names_a_column_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="every column needs a name of its own; found x_mm twice"):
        read_annotations(write(tmp_path / "t.tsv", "x_mm x_mm y_mm z_mm\n1 9 2 3\n"))


def test_what_is_no_table_is_said(tmp_path):
    (tmp_path / "t.tsv").write_bytes(b"\x1f\x8b\x00\xff\xfe" * 20)
    with pytest.raises(ValueError, match=r"t\.tsv: a table must be text in UTF-8; found the byte"):
        read_annotations(tmp_path / "t.tsv")
    (tmp_path / "notes.docx").write_text("five microbleeds")
    with pytest.raises(ValueError, match=r"a folder, an image .* or a table .* is expected"):
        read_annotations(tmp_path / "notes.docx")
    with pytest.raises(OSError, match=r"nowhere\.tsv: no such file or folder"):
        read_annotations(tmp_path / "nowhere.tsv")


def test_an_image_that_is_no_lesion_mask_is_refused(tmp_path, blank, rng):
    scan = Volume(rng.normal(300, 50, blank.shape), blank.affine)
    path = put(scan, tmp_path / "sub-1_mask.nii.gz", np.float32)
    with pytest.raises(ValueError, match="covers at most 10 % of an image; found 100 %"):
        read_annotations(path)


@pytest.mark.parametrize("suffix", ["T2starw", "swi", "T1w", "FLAIR"])
def test_a_scan_is_never_read_as_a_mask(tmp_path, blank, suffix):
    """Not even one that is dark but for a few voxels, as a mask is."""
    dark = Volume(blank.data.copy(), blank.affine)
    dark.data[20:23, 20:23, 10] = 1
    scan = put(dark, tmp_path / "raw" / f"sub-1_{suffix}.nii.gz")
    with pytest.raises(ValueError, match="by its name it is a scan"):
        read_annotations(scan)
    with pytest.raises(ValueError, match="nor any other table or image that is no scan"):
        read_annotations(tmp_path / "raw")


def test_of_a_dataset_its_truth_is_read(tmp_path, blank):
    """As a simulated or imported dataset has it: scans at the root, the truth in derivatives."""
    put(blank, tmp_path / "sub-1/anat/sub-1_T2starw.nii.gz")
    marked = Volume(blank.data.copy(), blank.affine)
    marked.data[20:23, 20:23, 10] = 1
    put(marked, tmp_path / "derivatives/truth/sub-1/anat/sub-1_seg-CMB_dseg.nii.gz")
    (annotations,) = read_annotations(locate_reference(tmp_path))
    centre = blank.world(np.array([21, 21, 10]))
    np.testing.assert_allclose(annotations.positions, [centre], atol=1e-3)


def test_a_folder_without_lesions_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tables named sub-… are needed; found none of"):
        read_annotations(tmp_path)


def test_an_image_is_named_after_its_participant(tmp_path, blank):
    put(blank, tmp_path / "sub-_CMB.nii.gz")
    with pytest.raises(ValueError, match="the name must say the participant"):
        read_annotations(tmp_path)
    (marks,) = read_annotations(
        put(blank, tmp_path / "mine.nii.gz")
    )  # named alone it may be anybody's
    assert marks.entities == {}


def test_numbers_survive_the_way_through_the_table(tmp_path):
    (marks,) = read_annotations(write(tmp_path / "a.tsv", "x_mm y_mm z_mm\n0.1 -1e-3 12.345\n"))
    assert marks.positions.tolist() == [[0.1, -1e-3, 12.345]]
