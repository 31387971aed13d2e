"""What readers said, from their tables to counts, agreement and a truth; cases by hand."""

import json

import nibabel as nib
import numpy as np
import pytest

from bids_cmb.anatomy.mars import RIGHT_OFFSET, find_label
from bids_cmb.anatomy.mni_fit import format_itk_affine
from bids_cmb.bids.paths import locate_candidate_table
from bids_cmb.bids.tables import read_columns, read_table, write_table
from bids_cmb.cli.commands import main
from bids_cmb.evaluation.outputs import REVIEWS_FILE
from bids_cmb.files import write_json
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.nifti import load_labels, save
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.table import MNI_COLUMNS
from bids_cmb.report.frequency_map import MAP_STEM, REVIEWED_MAP_STEM
from bids_cmb.report.html import write_page
from bids_cmb.review.reviews import make_agreement_rows, merge_reviews, read_reviews
from bids_cmb.training.reference_labels import LESION, UNCERTAIN
from bids_cmb.training.scan_files import find_training_scans
from bids_cmb.training.scan_loading import load_training_scan
from bids_cmb.workflow.group import write_group

MASK = "sub-{0}/anat/sub-{0}_space-orig_label-CMB_desc-T2starw_mask.nii.gz"
SPOTS = {1: (20, 30, 10), 2: (40, 30, 10), 3: (30, 45, 20)}  # voxels; (12, 12, 24) is missed
MISSED = (12, 12, 24)
CANDIDATES = {4: (48, 14, 6), 5: (14, 48, 6), 6: (50, 50, 16)}  # worth a look, never counted


@pytest.fixture
def read(tmp_path, blank, rng):
    """Two scans with three found lesions and a missed one each, on an oblique grid."""
    raw, found = tmp_path / "raw", tmp_path / "found"
    write_json(raw / "dataset_description.json", {"Name": "N", "BIDSVersion": "1.11.1"})
    for label in ("01", "02"):
        data = rng.normal(100, 1, blank.shape).astype(np.float32)
        marks, rows = np.zeros(blank.shape, np.uint16), []
        for index, (x, y, z) in {**SPOTS, 4: MISSED}.items():
            spot = (slice(x - 2, x + 3), slice(y - 2, y + 3), slice(z, z + 1))
            data[spot] = 20
            if index < 4:
                marks[spot] = index
                place = dict(zip(("x_mm", "y_mm", "z_mm"), at((x, y, z), blank), strict=True))
                row = {"equivalent_diameter_mm": 3, "probability_max": 0.9, "certainty": "possible"}
                counted = "no" if index == 3 else "yes"
                rows.append({"index": index, **place, **row, "included": counted})
        save(Volume(data, blank.affine), raw / f"sub-{label}/anat/sub-{label}_T2starw.nii.gz")
        mask = found / MASK.format(label)
        dseg = mask.with_name(f"sub-{label}_space-orig_seg-CMB_desc-T2starw_dseg.nii.gz")
        save(Volume(marks, blank.affine), dseg, dtype=np.uint16)
        save(Volume(marks > 0, blank.affine), mask, dtype=np.uint8)
        table = [dict.fromkeys(read_columns("lesion")) | row for row in rows]
        write_table(dseg.with_name(f"{dseg.name[:-7]}.tsv"), read_columns("lesion"), table)
        brain = np.ones(blank.shape, np.uint8)
        save(Volume(brain, blank.affine), mask.with_name(mask.name.replace("CMB", "brain")))
        about = {"Sources": [f"bids:raw:sub-{label}/anat/sub-{label}_T2starw.nii.gz"]}
        counts = {"n_cmb": 2, "burden": "2 to 4"}
        write_json(mask.with_name(f"{mask.name[:-7]}.json"), {**about, "Microbleeds": counts})
    return raw, found, tmp_path / "reviews"


@pytest.fixture
def with_candidates(read, blank):
    """The same, and three candidates in sub-01; the first lies in the left frontal lobe."""
    _, found, _ = read
    mask = found / MASK.format("01")
    table = locate_candidate_table(mask)
    marks, rows = np.zeros(blank.shape, np.uint16), []
    for index, (x, y, z) in CANDIDATES.items():
        marks[x - 1 : x + 2, y - 1 : y + 2, z] = index
        place = dict(zip(("x_mm", "y_mm", "z_mm"), at((x, y, z), blank), strict=True))
        known = {"equivalent_diameter_mm": 2, "probability_max": 0.05, "certainty": "candidate"}
        rows.append({"index": index, **place, **known, "included": "no"})
    rows[0] |= {**WHERE[1], **dict(zip(MNI_COLUMNS, (-20.0, 40.0, 30.0), strict=True))}
    save(Volume(marks, blank.affine), table.with_suffix(".nii.gz"), dtype=np.uint16)
    empty = dict.fromkeys(read_columns("lesion"))
    write_table(table, empty, [empty | row for row in rows])
    return read


def at(voxel, grid):
    return [round(float(x), 2) for x in grid.world(np.array(voxel, float))]


def review(folder, grid, reader, said, *, label="01", missed=(), date="2026-01-01T10:00:00Z"):
    """A table as the page saves it; ``said``: index → verdict, 0 → complete."""
    folder.mkdir(exist_ok=True)
    rows = []
    for index, verdict in said.items():
        place = at({**SPOTS, **CANDIDATES}[index], grid) if index else (None,) * 3
        rows.append((index or None, *place, verdict))
    rows += [(None, *at(voxel, grid), "missed") for voxel in missed]
    names = ("index", "x_mm", "y_mm", "z_mm", "verdict")
    fixed = {"participant_id": f"sub-{label}", "filename": MASK.format(label),
             "reader": reader, "date": date}  # fmt: skip
    empty = dict.fromkeys(read_columns("review"))
    table = [{**empty, **fixed, **dict(zip(names, row, strict=True))} for row in rows]
    write_table(
        folder / f"sub-{label}_reader-{reader}_{date[:4]}.tsv", read_columns("review"), table
    )


def test_counts_before_and_after_review_stand_in_the_group_table(read, blank):
    """By hand: 1 accepted, 2 rejected, 3 (not counted) accepted, one missed: 2 before, 3 after."""
    _, found, reviews = read
    review(reviews, blank, "A", {1: "accept", 2: "reject", 3: "accept"}, missed=[MISSED])
    write_group(found, reviews=reviews)
    rows = read_table(found / "group_microbleeds.tsv")
    assert (rows[0]["n_cmb"], rows[0]["n_cmb_reviewed"]) == ("2", "3")
    assert [rows[0][f"n_{name}"] for name in ("accepted", "rejected", "added")] == ["2", "1", "1"]
    assert rows[1]["n_cmb_reviewed"] is None
    described = json.loads((found / "group_microbleeds.json").read_text())
    assert list(described) == list(rows[0])
    assert "<strong>3</strong> after" in (found / "group_microbleeds.html").read_text()


def test_the_cohorts_lesions_are_those_of_its_counts_before_and_after_review(
    with_candidates, blank
):  # fmt: skip
    """Every lesion has a row; accepted candidates and added lesions have one after review."""
    _, found, reviews = with_candidates
    write_group(found)
    rows = read_table(found / "group_lesions.tsv")
    assert [row["participant_id"] for row in rows] == ["sub-01"] * 3 + ["sub-02"] * 3
    assert sum(row["included"] == "yes" for row in rows) == 4
    review(reviews, blank, "A", {1: "reject", 3: "accept", 4: "accept", 5: "reject"},
           missed=[MISSED])  # fmt: skip
    write_group(found, reviews=reviews)
    rows = read_table(found / "group_lesions.tsv")
    described = json.loads((found / "group_lesions.json").read_text())
    assert list(described) == list(rows[0])
    verdicts = [row["verdict"] for row in rows]
    assert verdicts == ["reject", "not_reviewed", "accept", "accept", "added", None, None, None]
    for scan in read_table(found / "group_microbleeds.tsv"):
        counted = [
            row["included_reviewed"] for row in rows if row["filename"] == scan["filename"]
        ].count("yes")
        assert counted == int(scan["n_cmb_reviewed"] or scan["n_cmb"])
    added = rows[verdicts.index("added")]
    assert [float(added[axis]) for axis in ("x_mm", "y_mm", "z_mm")] == at(MISSED, blank)


def test_a_page_says_what_its_review_came_to_until_the_review_or_the_result_is_gone(read, blank):
    _, found, reviews = read
    page = write_page(found, "01")
    assert "not reviewed by a reader" in page.read_text()
    review(reviews, blank, "Ann", {1: "accept", 2: "reject"}, missed=[MISSED])
    write_group(found, reviews=reviews)
    after = page.read_text()
    assert "<strong>2 microbleeds after review</strong> by Ann, 2026-01-01" in after
    assert "after review: reject" in after
    assert "not reviewed by a reader" not in after
    assert write_page(found, "01").read_text() == after  # also when another scan is processed
    marker = found / MASK.format("01").replace(".nii.gz", ".json")
    first = json.loads(marker.read_text())
    write_json(marker, {**first, "Provenance": {"Fingerprint": "another"}})
    assert "microbleeds after review" not in write_page(found, "01").read_text()
    write_json(marker, first)
    write_group(found)
    assert "microbleeds after review" not in page.read_text()
    assert not list(found.glob("sub-*/figures/*_reviewed.json"))


MNI_AT = {1: (-30.0, 20.0, 40.0), 2: (12.0, -18.0, 8.0), 3: (-25.0, -60.0, -40.0)}
WHERE = {
    1: {"side": "left", "mars_side": "left", "territory": "lobar", "mars_region": "frontal"},
    2: {"side": "midline", "mars_side": "right", "territory": "deep", "mars_region": "thalamus"},
    3: {"side": "left", "mars_side": "left", "territory": "infratentorial",
        "mars_region": "cerebellum"},
}  # fmt: skip


def place_lesions(found, grid, *, with_map):
    """Say in the results of sub-01 where its lesions lie; the missed one: MNI (40, 0, 20)."""
    mask = found / MASK.format("01")
    stem = mask.name.replace("_label-CMB_desc-T2starw_mask.nii.gz", "")
    table = mask.with_name(f"{stem}_seg-CMB_desc-T2starw_dseg.tsv")
    rows = [{**row, **WHERE[at], **dict(zip(MNI_COLUMNS, MNI_AT[at], strict=True))}
            for at, row in enumerate(read_table(table), start=1)]  # fmt: skip
    write_table(table, read_columns("lesion"), rows)
    names = ["sub-01_from-T2starw_to-MNI152NLin2009cAsym_mode-image_xfm.txt"]
    to_mni = np.eye(4)
    to_mni[:3, 3] = np.array([40, 0, 20]) - at(MISSED, grid)
    mask.with_name(names[0]).write_text(format_itk_affine(to_mni))
    if with_map:
        names.append(f"{stem}_seg-regions_desc-T2starw_dseg.nii.gz")
        data = np.full(grid.shape, find_label("frontal"), np.uint8)
        x, y, z = MISSED
        data[x - 2 : x + 3, y - 2 : y + 3, z - 1 : z + 2] = find_label("cerebellum") + RIGHT_OFFSET
        save(Volume(data, grid.affine), mask.with_name(names[1]), dtype=np.uint8)
    sidecar = mask.with_name(f"{mask.name[:-7]}.json")
    said = json.loads(sidecar.read_text())
    said["Provenance"] = {"Files": names}
    said["Microbleeds"] |= {"n_lobar": 1, "n_deep": 1, "n_infratentorial": 0, "pattern": "mixed",
                            "n_frontal_left": 1, "n_thalamus_right": 1, "n_cerebellum_right": 0,
                            "n_thalamus_left": 0}  # fmt: skip
    write_json(sidecar, said)


def regions_after(found):
    return {
        row["region"]: (row["n_evaluable"], row["n_positive"], row["n_lesions"])
        for row in read_table(found / "group_regions_reviewed.tsv")
    }


def people_at(found, stem, place):
    """How many participants the map has there."""
    image = nib.load(found / f"{stem}.nii.gz")
    index = np.rint(np.linalg.inv(image.affine) @ [*place, 1])[:3].astype(int)
    return int(np.asarray(image.dataobj)[tuple(index)])


def test_regions_pattern_and_map_are_told_before_and_after_review(read, blank):
    """Rejected: the thalamus; accepted: a lesion of the cerebellum; added: one more there."""
    _, found, reviews = read
    place_lesions(found, blank, with_map=True)
    write_group(found)
    plain = {path: path.read_bytes() for path in found.glob("group_[rs]*")}
    assert not list(found.glob("*reviewed*"))
    review(reviews, blank, "A", {1: "accept", 2: "reject", 3: "accept"}, missed=[MISSED])
    write_group(found, reviews=reviews)
    assert all(path.read_bytes() == content for path, content in plain.items())
    row = read_table(found / "group_microbleeds.tsv")[0]
    told = [row[f"n_{name}_reviewed"] for name in ("lobar", "deep", "infratentorial")]
    assert (row["pattern"], row["pattern_reviewed"], told) == (
        "mixed", "strictly lobar", ["1", "0", "2"]
    )  # fmt: skip
    after = regions_after(found)
    assert after["cmb"] == ("2", "2", "5")  # three here, and two of a scan that nobody reviewed
    assert after["thalamus_right"] == ("1", "0", "0")
    assert after["cerebellum_left"] == after["cerebellum_right"] == ("1", "1", "1")
    for place, before, then in (
        *((MNI_AT[index], *said) for index, said in {1: (1, 1), 2: (1, 0), 3: (0, 1)}.items()),
        ((40, 0, 20), 0, 1),
    ):
        assert people_at(found, MAP_STEM, place) == before
        assert people_at(found, REVIEWED_MAP_STEM, place) == then
    page = (found / "group_microbleeds.html").read_text()
    assert "mixed → strictly lobar" in page
    assert page.count('src="data:image/png;base64,') == 2
    assert "Scans that nobody reviewed (1) keep their counts before review" in page
    write_group(found)
    assert not list(found.glob("*reviewed*"))
    assert not list(found.glob("group_agreement*"))


def test_the_region_of_an_added_lesion_is_not_known_without_the_scans_map(read, blank):
    _, found, reviews = read
    place_lesions(found, blank, with_map=False)
    review(reviews, blank, "A", {2: "reject"}, missed=[MISSED])
    write_group(found, reviews=reviews)
    row = read_table(found / "group_microbleeds.tsv")[0]
    assert (row["n_cmb_reviewed"], row["n_lobar_reviewed"], row["pattern_reviewed"]) == (
        "2", None, None
    )  # fmt: skip
    assert regions_after(found)["thalamus_right"] == ("0", None, None)
    assert people_at(found, REVIEWED_MAP_STEM, (40, 0, 20)) == 1


def test_a_scan_whose_lesions_are_all_accepted_has_the_regions_it_had(read, blank):
    _, found, reviews = read
    place_lesions(found, blank, with_map=False)
    review(reviews, blank, "A", {1: "accept", 2: "accept", 3: "unsure"})
    write_group(found, reviews=reviews)
    row = read_table(found / "group_microbleeds.tsv")[0]
    assert row["pattern_reviewed"] == row["pattern"] == "mixed"
    after = regions_after(found)
    assert after["thalamus_right"] == after["frontal_left"] == ("1", "1", "1")
    assert after["thalamus_left"] == ("1", "0", "0")  # it lies on the midline and leans right


def test_what_nobody_judged_stays_as_it_was_found(read, blank):
    _, found, reviews = read
    review(reviews, blank, "A", {2: "reject"})
    write_group(found, reviews=reviews)
    row = read_table(found / "group_microbleeds.tsv")[0]
    assert (row["n_cmb_reviewed"], row["n_not_reviewed"]) == ("1", "2")


def test_only_an_accepted_candidate_counts_and_only_after_review(with_candidates, blank):
    """By hand: 2 before; 1 accepted, 2 rejected, a candidate accepted, one rejected: 2 after."""
    _, found, reviews = with_candidates
    place_lesions(found, blank, with_map=False)
    write_group(found)
    before = read_table(found / "group_microbleeds.tsv")[0]
    assert before["n_cmb"] == "2"
    review(reviews, blank, "A", {1: "accept", 2: "reject", 4: "accept", 5: "reject"})
    write_group(found, reviews=reviews)
    row = read_table(found / "group_microbleeds.tsv")[0]
    assert {name: row[name] for name in before} == before
    counts = [row[f"n_{name}"] for name in ("accepted", "rejected", "not_reviewed", "unsure")]
    assert counts == ["1", "1", "1", "0"]  # of the three lesions
    assert (row["n_candidates_accepted"], row["n_added"], row["n_cmb_reviewed"]) == ("1", "0", "2")
    assert row["n_lobar_reviewed"] == "2"
    assert regions_after(found)["frontal_left"] == ("1", "1", "2")
    assert people_at(found, REVIEWED_MAP_STEM, (-20, 40, 30)) == 1
    assert people_at(found, MAP_STEM, (-20, 40, 30)) == 0


def test_a_review_of_a_candidate_that_lies_elsewhere_by_now_is_refused(with_candidates, blank):
    _, found, reviews = with_candidates
    review(reviews, blank, "A", {4: "accept"})
    locate_candidate_table(found / MASK.format("01")).unlink()
    with pytest.raises(ValueError, match=r"lesion 4 of .* is not there. Was the scan processed"):
        write_group(found, reviews=reviews)


def test_accepted_candidates_are_lesions_of_the_truth_and_rejected_ones_mimics(
    with_candidates, blank, tmp_path
):
    """What the reader let pass, 6, is neither."""
    raw, found, reviews = with_candidates
    review(reviews, blank, "A", {1: "accept", 2: "accept", 3: "accept", 4: "accept", 5: "reject",
                                 0: "complete"})  # fmt: skip
    truth = tmp_path / "truth"
    assert main(["reviews", str(found), str(reviews), str(raw), str(truth)]) == 0
    (paths,) = find_training_scans(raw, truth)
    labels = load_labels(paths.lesions).data
    assert [labels[CANDIDATES[index]] for index in CANDIDATES] == [4, 0, 0]
    mimics = load_labels(next((truth / "sub-01/anat").glob("*seg-mimics*.nii.gz"))).data
    assert [mimics[CANDIDATES[index]] > 0 for index in CANDIDATES] == [False, True, False]
    rows = read_table(next((truth / "sub-01/anat").glob("*seg-CMB*.tsv")))
    assert [row["certainty"] for row in rows] == ["definite"] * 4


def test_the_majority_decides_and_two_minds_are_unsure(read, blank):
    _, found, reviews = read
    review(reviews, blank, "A", {1: "accept", 2: "accept", 3: "reject"}, missed=[MISSED])
    review(reviews, blank, "B", {1: "accept", 2: "reject", 3: "unsure"}, missed=[(13, 12, 24)])
    review(reviews, blank, "C", {1: "reject", 3: "unsure"}, missed=[(50, 50, 5)])
    judged = merge_reviews([1, 2, 3], read_reviews(reviews, found)[MASK.format("01")])
    assert judged.verdicts == {1: "accept", 2: "unsure", 3: "unsure"}
    middle = blank.world(np.array([12.5, 12, 24]))
    assert judged.added == pytest.approx(np.array([middle]), abs=0.01)
    assert judged.doubtful == pytest.approx(np.array([at((50, 50, 5), blank)]), abs=0.01)


def test_two_readers_agree_as_counted_by_hand(read, blank):
    """Of 5 common verdicts 4 alike; by chance 3/5 · 4/5 + 2/5 · 1/5 = 0.56: kappa 0.24 / 0.44.

    Counts 2 and 3 against 2 and 2: between scans 0.25, between readers 0.25, rest 0.25, each with
    one degree of freedom: ICC (0.25 - 0.25) / … = 0.
    """
    _, found, reviews = read
    review(reviews, blank, "A", {1: "accept", 2: "reject", 3: "unsure"}, missed=[MISSED])
    review(reviews, blank, "B", {1: "accept", 2: "accept", 3: "reject"})
    review(
        reviews, blank, "A", {1: "accept", 2: "accept", 3: "reject"}, label="02", missed=[MISSED]
    )
    review(reviews, blank, "B", {1: "accept", 2: "accept", 3: "reject"}, label="02")
    (row,) = make_agreement_rows(found, read_reviews(reviews, found))
    assert (row["n_scans"], row["n_lesions"], row["n_agree"]) == (2, 5, 4)
    assert row["kappa"] == pytest.approx((0.8 - 0.56) / 0.44, abs=1e-4)
    assert (row["n_scans_complete"], row["icc"]) == (2, 0)


def test_the_latest_table_of_a_reader_counts(read, blank):
    _, found, reviews = read
    review(reviews, blank, "A", {1: "reject"}, date="2027-01-01T00:00:00Z")
    review(reviews, blank, "A", {1: "accept"}, missed=[MISSED])
    (one,) = read_reviews(reviews, found)[MASK.format("01")]
    assert one.verdicts == {1: "reject"}
    assert not len(one.missed)


def test_a_missed_lesion_beyond_the_scan_is_refused(read, blank):
    """A slip of the hand: it was counted, and lay in no region."""
    _, found, reviews = read
    review(reviews, blank, "A", {1: "accept"}, missed=[(20, 30, 10), (20, 30, 400)])
    with pytest.raises(ValueError, match=r"must lie in the scan sub-01.*; found one at .* mm"):
        read_reviews(reviews, found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verdict": "maybe"}, "line 2: a verdict must be one of accept, reject, unsure, missed"),
        ({"x_mm": "left"}, "line 2: x_mm, y_mm and z_mm must be numbers"),
        ({"x_mm": "nan"}, "line 2: x_mm, y_mm and z_mm must be numbers"),
        ({"index": "-1"}, "line 2: the index of a lesion must be a whole number; found '-1'"),
        ({"index": "9"}, "lesion 9 of .* is not there. Was the scan processed again"),
        ({"x_mm": "0"}, "lesion 1 of .* was reviewed at .* and lies at"),
        ({"filename": "../../etc/passwd"}, "must be of a scan of .*; it has no"),
        ({"reader": None}, "line 2 must name its reader and its scan"),
        ({"reader": "=1+1"}, "line 2: a reader's name must not begin with = .* found '=1[+]1'"),
        ({"reader": "@A"}, "line 2: a reader's name must not begin with = .* found '@A'"),
    ],
)
def test_a_review_of_something_else_is_refused_in_a_sentence(read, blank, change, said):
    _, found, reviews = read
    review(reviews, blank, "A", {1: "accept"})
    (path,) = reviews.glob("*.tsv")
    rows = read_table(path)
    write_table(path, rows[0], [{**rows[0], **change}])
    with pytest.raises(ValueError, match=said):
        write_group(found, reviews=reviews)


def test_what_is_no_review_is_refused_in_a_sentence(read):
    _, found, reviews = read
    reviews.mkdir()
    with pytest.raises(ValueError, match=r"reviews are tables .* found none"):
        read_reviews(reviews, found)
    (reviews / "a.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match=r"a review needs the columns .* found a, b"):
        read_reviews(reviews, found)
    (reviews / "a.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="must be text in UTF-8; found the byte 0xff"):
        read_reviews(reviews, found)


def test_reviews_become_a_truth_that_networks_can_learn_from(read, blank, tmp_path, capsys):
    """Accepted and missed lesions are taught, unsure ones passed over, rejected ones mimics."""
    raw, found, reviews = read
    review(reviews, blank, "A", {1: "accept", 2: "reject", 3: "unsure", 0: "complete"},
           missed=[MISSED])  # fmt: skip
    review(reviews, blank, "A", {1: "accept"}, label="02")
    truth = tmp_path / "truth"
    assert main(["reviews", str(found), str(reviews), str(raw), str(truth)]) == 0
    assert "sub-02" in capsys.readouterr().err
    (paths,) = find_training_scans(raw, truth)
    labels = load_labels(paths.lesions).data
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    grown = np.argwhere(labels == 3)
    assert len(grown) == 25  # the dark square of 5 x 5 voxels, no more
    assert grown.mean(axis=0) == pytest.approx(MISSED)
    case = load_training_scan(paths, Grid(axes="slices"))
    assert (case.labels == LESION).sum() == 50
    assert (case.labels == UNCERTAIN).sum() == 25
    assert [len(places) for places in case.sampling_centres["mimic"]] == [25]
    rows = read_table(next((truth / "sub-01/anat").glob("*seg-CMB*.tsv")))
    assert [row["certainty"] for row in rows] == ["definite", "possible", "definite"]


def test_training_with_reviews_needs_the_results_they_speak_of(read, tmp_path, capsys):
    raw, _, reviews = read
    words = ["train", "ensemble-a", str(raw), str(tmp_path / "run"), "--reviews", str(reviews)]
    assert main(words) == 1
    assert "--reviews needs one dataset, no --validation" in capsys.readouterr().err


def check_f1_rises_to_one(found, reviews, places):
    """Evaluate against these places: F1 is 0.5 before review and 1 after. Returns the folder."""
    out = reviews.parent / "result"
    table = reviews.parent / "truth.tsv"
    columns = ("participant_id", "x_mm", "y_mm", "z_mm")
    write_table(table, columns, [dict(zip(columns, ("sub-01", *x), strict=True)) for x in places])
    words = ["evaluate", str(found), str(table), str(out), "--bootstrap", "0"]
    assert main([*words, "--reviews", str(reviews)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["figures"]["f1"]["value"] == 0.5
    assert metrics["reviewed"]["figures"]["f1"] == 1
    return out


def test_an_evaluation_tells_the_figures_before_and_after_review(read, blank):
    """Truth: lesion 1 and the missed one. Found 1 and 2: one hit, one false alarm, one miss."""
    _, found, reviews = read
    review(reviews, blank, "A", {1: "accept", 2: "reject"}, missed=[MISSED])
    out = check_f1_rises_to_one(found, reviews, [at(SPOTS[1], blank), at(MISSED, blank)])
    (row,) = read_table(out / REVIEWS_FILE)
    assert (row["true"], row["found"], row["after"], row["n_added"]) == ("2", "2", "2", "1")
    assert "After review" in (out / "evaluation.html").read_text()


def test_an_evaluation_after_review_has_the_candidates_that_were_accepted(with_candidates, blank):
    """Truth: lesion 1 and candidate 4. Found 1 and 2; after review 1 and 4, which is all."""
    _, found, reviews = with_candidates
    review(reviews, blank, "A", {1: "accept", 2: "reject", 4: "accept"})
    check_f1_rises_to_one(found, reviews, [at(SPOTS[1], blank), at(CANDIDATES[4], blank)])
