"""Labels in each group's format become BIDS with truth: lesions lie where they were drawn."""

import hashlib
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from openpyxl import Workbook
from scipy import ndimage
from scipy.io import savemat
from scipy.spatial.distance import pdist
from validating import PROGRAM, find_errors, needs_validator

from bids_cmb.bids.filters import Query
from bids_cmb.bids.selection import find_scans
from bids_cmb.bids.tables import read_table, write_table
from bids_cmb.cli.commands import main
from bids_cmb.datasets import dou
from bids_cmb.datasets.convert import ImportOptions, import_labels
from bids_cmb.evaluation.counts import compare_counts
from bids_cmb.evaluation.evaluate import evaluate
from bids_cmb.evaluation.options import EvaluationOptions
from bids_cmb.files import read_json, write_json
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.nifti import load, load_labels, save
from bids_cmb.imaging.volume import Volume
from bids_cmb.training.scan_files import find_training_scans
from bids_cmb.training.scan_loading import load_training_scan

SHAPE = (84, 100, 44)
TURN = euler2mat(0.1, -0.08, 0.12) @ np.diag([-1.2, 1.2, 2.2])
MIDDLE = np.array([3.0, -12.0, 20.0])
AFFINE = from_matvec(TURN, MIDDLE - TURN @ ((np.array(SHAPE) - 1) / 2))
SPOTS = {  # voxels from 0, at whole ones: that is how people mark
    "a": [(28, 28, 15), (56, 60, 28), (32, 72, 21)],
    "b": [(47, 38, 17)],
    "c": [],
}


@pytest.fixture(scope="module")
def scans():
    """Three stripped brains on an oblique, flipped, anisotropic grid, with spots of 5 mm."""
    rng = np.random.default_rng(3)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    world = index @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    brain = (((world - MIDDLE) / (46, 56, 42)) ** 2).sum(axis=-1) < 1
    made = {}
    for name, spots in SPOTS.items():
        data = rng.normal(100, 2, SHAPE)
        for spot in spots:
            away = np.linalg.norm(world - world[spot], axis=-1)
            data *= 1 - 0.8 / (1 + np.exp((away - 2.5) / 0.3))
        made[name] = Volume(np.where(brain, data, 0).astype(np.float32), AFFINE)
    return made


@pytest.fixture(scope="module")
def crumbs(scans):
    """A corner of each, where it does not matter what is in the scan."""
    return {name: Volume(one.data[30:50, 30:50, 14:24], AFFINE) for name, one in scans.items()}


def places(name):
    """World positions of the spots, mm."""
    return nib.affines.apply_affine(AFFINE, np.array(SPOTS[name]).reshape(-1, 3))


def counted(name, base=0, flips="", order="xyz"):
    """The spots as somebody counts them."""
    index = np.array(SPOTS[name], float).reshape(-1, 3)
    for axis in flips:
        at = "xyz".index(axis)
        index[:, at] = SHAPE[at] - 1 - index[:, at]
    return index[:, ["xyz".index(axis) for axis in order]] + base


def book(path, rows):
    """An Excel file with one sheet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Workbook()
    for row in rows:
        made.active.append(list(row))
    made.save(path)


def put(volume, path):
    """Write a scan as others do: packed or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".gz"):
        save(volume, path)
    else:
        image = nib.Nifti1Image(volume.data, volume.affine)
        image.set_sform(volume.affine, code=1)
        nib.save(image, path)


# --- Writers of the formats, as their descriptions have them --------------------------------------


def as_valdo(root, scans):
    for name, volume in scans.items():
        stem = root / f"sub-{name}" / f"sub-{name}_space-T2S"
        torn = Volume(volume.data.copy(), volume.affine)
        torn.data[0, 0, :5] = np.nan
        put(torn, stem.with_name(f"{stem.name}_desc-masked_T2S.nii.gz"))
        put(volume, stem.with_name(f"{stem.name}_desc-masked_T1.nii.gz"))
        mask = np.zeros(volume.shape, np.float32)
        for at, (x, y, z) in enumerate(SPOTS[name]):
            mask[x - 2 : x + 3, y - 2 : y + 3, z : z + 1] = 0.5 if at == 1 else 1
        put(Volume(mask, AFFINE), stem.with_name(f"{stem.name}_CMB.nii.gz"))
    return "valdo"


def as_momeni(root, scans):
    share = root / "data" / "PublicDataShare_2020"
    rows = [["Filename", "x1", "y1", "z1", "x2", "y2", "z2"]]
    for name, volume in scans.items():
        part = "rCMB_DefiniteSubject" if SPOTS[name] else "NoCMBSubject"
        torn = Volume(volume.data.copy(), volume.affine)
        torn.data[0, 0, :5] = np.nan
        put(torn, share / part / f"{name}.nii.gz")
        if SPOTS[name]:
            rows.append([f"{name}.nii.gz", *map(int, counted(name, base=1).ravel())])
    book(share / "rCMBInformationInfo.xlsx", rows)
    return "momeni"


def as_dou(root, scans, **counting):
    for name, volume in scans.items():
        put(volume, root / "nii" / f"{name}.nii")
        path = root / "ground_truth" / f"{name}.mat"
        path.parent.mkdir(exist_ok=True)
        points = counted(name, **{"base": 1, **counting})
        savemat(path, {"cen": points.astype(np.uint16), "gt_num": float(len(points))})
    return "dou"


def as_newer_dou(root, scans):
    as_dou(root, scans)
    for name in scans:
        with h5py.File(root / "ground_truth" / f"{name}.mat", "w", userblock_size=512) as file:
            points = counted(name, base=1)
            file["cen"] = points.T if len(points) else np.array([0, 0], np.uint64)
            if not len(points):
                file["cen"].attrs["MATLAB_empty"] = 1
    return "dou"


def as_almasni(root, scans):
    """Slices from the last, everything from 1, and a lesion marked on two slices."""
    for name, volume in scans.items():
        for part in ("SWI", "Phase"):
            put(volume, root / "Data" / part / f"{name}.nii.gz")
        points = counted(name, base=1, flips="z")
        rows = [["slice", "x", "y"], *([int(z), int(x), int(y)] for x, y, z in points)]
        if name == "b":
            rows.append([rows[1][0] + 1, *rows[1][1:]])
        book(root / "Label" / f"{name}.xlsx", rows)
    return "almasni"


def as_csv(root, scans, *, space="voxel", table=None, **counting):
    """A table with the positions in world mm or in voxels."""
    lines = ["file;x;y;z;space;certainty"]
    for name, volume in scans.items():
        put(volume, root / "images" / f"{name}.nii.gz")
        points = places(name) if space == "world" else counted(name, **counting)
        for at, point in enumerate(points):
            sure = "possible" if (name, at) == ("a", 1) else ""
            lines.append(f"{name}.nii.gz;{';'.join(f'{v:.3f}' for v in point)};{space};{sure}")
        if not len(points):
            lines.append(f"images/{name}.nii.gz;;;;{space};")
    (root / "points.csv").write_text(table or "\n".join(lines) + "\n", encoding="utf-8")
    return "csv"


def as_world(root, scans):
    return as_csv(root, scans, space="world")


def as_voxels(root, scans):
    return as_csv(root, scans, base=1, flips="y", order="yxz")


def as_mars(root, scans):
    rows = [["file", "Frontal_left", "frontal right possible", "brain stem left"]]
    for name, volume in scans.items():
        put(volume, root / f"{name}.nii.gz")
        rows.append([name, len(SPOTS[name]), 1 if name == "a" else None, 0])
    book(root / "ratings.xlsx", rows)
    return "mars"


WITH_PLACES = [as_valdo, as_momeni, as_dou, as_almasni, as_world, as_voxels]


def imported(tmp_path, scans, write, **asked):
    """The dataset that a source becomes, what was said, and what came of it."""
    source, out, said = tmp_path / "source", tmp_path / "out", []
    source.mkdir()
    kind = write(source, scans)
    made = import_labels(kind, source, out, options=ImportOptions(**asked), log=said.append)
    return out, said, made


def truth_of(out, name):
    """Label map and table of a scan."""
    (image,) = (out / "derivatives" / "truth").glob(f"sub-{name}/anat/*seg-CMB*dseg.nii.gz")
    return load_labels(image), read_table(image.with_name(image.name[:-7] + ".tsv"))


@pytest.fixture(scope="module", params=WITH_PLACES, ids=lambda write: write.__name__)
def dataset(request, tmp_path_factory, scans):
    """A source in each format, imported."""
    return imported(tmp_path_factory.mktemp("imported"), scans, request.param)


# --- What comes of it -----------------------------------------------------------------------------


def test_truth_lies_where_the_spots_were_drawn(dataset):
    out, _, made = dataset
    assert (made.scans, made.lesions, made.balls) == (3, 4, 0)
    for name, spots in SPOTS.items():
        labels, table = truth_of(out, name)
        assert len(table) == len(spots) == labels.data.max()
        for place in places(name):
            gaps = [np.linalg.norm([float(row[f"{a}_mm"]) for a in "xyz"] - place) for row in table]
            row = table[int(np.argmin(gaps))]
            assert min(gaps) < labels.spacing.max()
            assert labels.data[tuple(np.rint(labels.index(place)).astype(int))] == int(row["index"])
            assert 2.5 < float(row["in_plane_diameter_mm"]) < 8


def test_scans_are_the_sources_under_names_of_bids(dataset, scans):
    out, _, _ = dataset
    found = find_scans(out, Query()).scans
    assert [scan.path.parent.parent.name for scan in found] == ["sub-a", "sub-b", "sub-c"]
    for scan, (name, volume) in zip(found, scans.items(), strict=True):
        image, _ = load(scan.path)
        np.testing.assert_allclose(image.data, volume.data)
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
        said = read_json(scan.path.with_name(scan.path.name[:-7] + ".json"))
        assert name in Path(said["SourceFile"]).name
        assert not set(said) & {"EchoTime"} or scan.path.name.endswith("_swi.nii.gz")
    people = read_table(out / "participants.tsv")
    assert [row["source_id"].removeprefix("sub-") for row in people] == list("abc")
    assert [row["n_cmb"] for row in people] == ["3", "1", "0"]


@needs_validator
def test_the_dataset_is_valid_bids(dataset):
    assert find_errors(dataset[0]) == []


def test_a_prediction_made_of_the_truth_finds_everything(dataset, tmp_path):
    truth = dataset[0] / "derivatives" / "truth"
    for match in ("valdo", "overlap"):
        result = evaluate(
            truth, truth, tmp_path / match, options=EvaluationOptions(match=match, draws=0)
        )
        assert result.figures["sensitivity"].value == 1
        assert result.figures["precision"].value == 1
        assert result.figures["scans"].value == 3


def test_training_reads_it(dataset):
    cases = find_training_scans(dataset[0])
    assert [one.subject for one in cases] == ["sub-a", "sub-b", "sub-c"]
    case = load_training_scan(cases[1], Grid(spacing=(1, 1, 2), margin=4, intensity="brain-median"))
    assert np.median(case.image[case.labels == 1]) < 0.7
    assert len(case.sampling_centres["lesion"]) == 1


def test_what_not_all_raters_saw_is_possible(tmp_path, scans):
    out, _, _ = imported(tmp_path, scans, as_valdo)
    _, table = truth_of(out, "a")
    assert sorted((row["certainty"], row["agreement"]) for row in table) == [
        ("definite", "1.0"),
        ("definite", "1.0"),
        ("possible", "0.5"),
    ]
    assert "NaN" in read_json(out / "sub-a/anat/sub-a_T2starw.json")["ImportNotes"][0]
    assert "BY-NC-SA" in read_json(out / "dataset_description.json")["License"]
    assert "BY-NC-SA" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("base", "flips", "order"), [(0, "", "xyz"), (1, "y", "xyz"), (1, "xz", "yxz"), (0, "z", "yxz")]
)
def test_the_way_to_count_is_found_by_darkness(tmp_path, scans, base, flips, order):
    def write(root, volumes):
        return as_dou(root, volumes, base=base, flips=flips, order=order)

    out, said, made = imported(tmp_path, scans, write)
    assert (made.fit.convention.base, made.fit.convention.flips) == (base, flips)
    assert made.fit.convention.order == order
    assert any("voxel index convention" in one for one in said)
    told = read_json(out / "derivatives/truth/dataset_description.json")["VoxelCounting"]
    assert (told["IndexBase"], told["Flips"], told["Order"]) == (base, flips or "none", order)
    assert "by local darkness" in (out / "README.md").read_text() + told["Decided"]


def test_both_kinds_of_mat_files_say_the_same(tmp_path, crumbs):
    as_dou(tmp_path / "old", crumbs)
    as_newer_dou(tmp_path / "new", crumbs)
    old, new = (dou.read(tmp_path / name).scans for name in ("old", "new"))
    assert [[point.coordinates for point in scan.points] for scan in old] == [
        [point.coordinates for point in scan.points] for scan in new
    ]
    assert [len(scan.points) for scan in new] == [3, 1, 0]


def test_the_users_word_goes_before_darkness(tmp_path, scans):
    out, _, made = imported(tmp_path, scans, as_dou, base=0, flips="", order="xyz")
    assert made.fit is None
    _, table = truth_of(out, "b")
    marked = [float(table[0][f"marked_{axis}_mm"]) for axis in "xyz"]
    assert np.linalg.norm(marked - places("b")[0]) == pytest.approx(
        np.linalg.norm(TURN @ [1, 1, 1]), abs=0.02
    )


def test_a_lesion_marked_on_two_slices_is_one(tmp_path, scans):
    out, _, _ = imported(tmp_path, scans, as_almasni)
    _, table = truth_of(out, "b")
    assert [row["marks"] for row in table] == ["2"]


def test_neighbours_stay_two_lesions_each_in_one_piece(tmp_path, scans):
    (x, y, z), step = places("b")[0], TURN[:, 1]
    lines = ["file,x,y,z,space"]
    for side in (-1, 1):
        at = np.array([x, y, z]) + side * step
        lines.append(f"b,{at[0]},{at[1]},{at[2]},world")

    def write(root, volumes):
        return as_csv(root, volumes, table="\n".join(lines) + "\n")

    out, _, made = imported(tmp_path, {"b": scans["b"]}, write)
    assert made.lesions == 2
    labels, table = truth_of(out, "b")
    for index, side in ((1, -1), (2, 1)):
        marked = np.rint(labels.index(np.array([x, y, z]) + side * step)).astype(int)
        assert labels.data[tuple(marked)] == index
        assert ndimage.label(labels.data == index, np.ones((3, 3, 3)))[1] == 1
    volumes = [float(row["volume_mm3"]) for row in table]
    assert sum(volumes) == pytest.approx((labels.data > 0).sum() * labels.voxel_volume, rel=1e-3)


def test_a_measured_diameter_is_kept_to(tmp_path, scans):
    x, y, z = places("b")[0]
    rows = f"file,x,y,z,space,diameter_mm\nb,{x},{y},{z},world,2.4\n"

    def write(root, volumes):
        return as_csv(root, volumes, table=rows)

    out, _, _ = imported(tmp_path, {"b": scans["b"]}, write)
    labels, _ = truth_of(out, "b")
    voxels = labels.world(np.argwhere(labels.data > 0))
    assert pdist(voxels).max(initial=0) <= 2.4


def test_the_source_stays_as_it_is(tmp_path, scans):
    source = tmp_path / "source"
    source.mkdir()
    as_dou(source, scans)

    def state():
        return {
            path: (path.stat().st_mtime_ns, hashlib.md5(path.read_bytes()).hexdigest())
            for path in sorted(source.rglob("*"))
            if path.is_file()
        }

    before = state()
    import_labels("dou", source, tmp_path / "out", options=ImportOptions(), log=str)
    assert state() == before
    for path in (tmp_path / "out").rglob("*.nii.gz"):
        path.write_bytes(b"")
    assert state() == before  # no link leads back


def test_synthetic_copies_stay_with_their_subject(tmp_path, scans):
    share = tmp_path / "source"
    for name in ("007_sCMB_1", "007_sCMB_2"):
        put(scans["b"], share / "sCMB_NoCMBSubject" / f"{name}.nii.gz")
    put(scans["c"], share / "NoCMBSubject" / "007.nii.gz")
    row = list(map(int, counted("b", base=1).ravel()))
    book(share / "list.xlsx", [["007_sCMB_1.nii.gz", *row], ["007_sCMB_2.nii.gz", *row]])
    import_labels("momeni", share, tmp_path / "out", options=ImportOptions(), log=str)
    scans_found = [scan.path.name for scan in find_scans(tmp_path / "out", Query()).scans]
    assert scans_found == [f"sub-007_run-{run:02d}_swi.nii.gz" for run in (1, 2, 3)]
    assert [case.subject for case in find_training_scans(tmp_path / "out")] == ["sub-007"] * 3


def test_names_that_bids_does_not_know_are_made_plain_and_stay_apart(tmp_path, scans):
    both = ("A_1", "A1")
    for name in both:
        put(scans["b"], tmp_path / "s" / f"{name}.nii.gz")
    x, y, z = places("b")[0]
    rows = "".join(f"{name},{x},{y},{z},world\n" for name in both)
    (tmp_path / "s" / "t.csv").write_text("file,x,y,z,space\n" + rows)
    import_labels(
        "csv", tmp_path / "s", tmp_path / "out", options=ImportOptions(suffix="swi"), log=str
    )
    assert [row["participant_id"] for row in read_table(tmp_path / "out/participants.tsv")] == [
        "sub-A1",
        "sub-A1x2",
    ]


# --- Rating sheets --------------------------------------------------------------------------------


def test_a_rating_sheet_becomes_a_table_of_counts(tmp_path, scans):
    out, said, made = imported(tmp_path, scans, as_mars)
    assert made.lesions is None
    assert any("no positions" in one for one in said)
    rows = read_table(out / "derivatives/truth/phenotype/mars.tsv")
    assert [row["n_frontal_left"] for row in rows] == ["3", "1", "0"]
    assert [row["n_frontal_right"] for row in rows] == ["1", "0", "0"]
    assert rows[0]["n_possible"] == "1"
    assert rows[0]["n_insula_left"] is None  # not rated: unknown, not 0
    assert rows[0]["n_cmb"] is None
    if PROGRAM.exists():
        assert find_errors(out) == []


@pytest.mark.parametrize("layout", ["wide", "long"])
def test_columns_that_are_no_counts_are_named(tmp_path, scans, layout):
    def write(root, volumes):
        as_mars(root, volumes)
        long = ["file", "region", "side", "count", "Rater"], ["a", "frontal", "left", 2, "X"]
        wide = ["file", "frontal left", "Rater", "subject"], ["a", 2, "X", "a"]
        book(root / "ratings.xlsx", wide if layout == "wide" else long)
        return "mars"

    _, said, _ = imported(tmp_path, scans, write)
    assert "ratings.xlsx: columns left out: rater." in said


@pytest.mark.parametrize("title", ["frontal_probable", "frontal_rigth", "L basal-ganglia n2"])
def test_a_column_of_a_region_that_is_no_count_is_refused(tmp_path, scans, title):
    write = with_book(as_mars, "*.xlsx", [["file", "frontal left", title], ["a", 1, 2]])
    with pytest.raises(ValueError, match=rf"named like frontal_left .* found {title.lower()}\.$"):
        imported(tmp_path, scans, write)


def long_sheet(root, scans):
    lines = ["file,region,side,count,certainty"]
    for name, volume in scans.items():
        put(volume, root / f"{name}.nii.gz")
        lines.append(f"{name},frontal,L,{len(SPOTS[name])},definite")
        lines.append(f"{name},Thalamus,right,{int(name == 'a')},possible")
    (root / "ratings.csv").write_text("\n".join(lines) + "\n")
    return "mars"


def results(app, *sources):
    """Results of the app: (source, number of microbleeds) each."""
    for source, count in sources:
        stem, _, suffix = source.rpartition("_")
        write_json(
            app / f"sub-01/anat/{stem}_space-orig_label-CMB_desc-{suffix}_mask.json",
            {"Sources": [f"bids:raw:sub-01/anat/{source}.nii.gz"], "Microbleeds": {"n_cmb": count}},
        )
    return app


@pytest.mark.parametrize(
    ("sources", "rated", "count"),
    [  # the swi comes last by name
        ([("sub-01_T2starw", 2), ("sub-01_swi", 9)], "sub-01_T2starw.nii.gz", "2"),
        ([("sub-01_T2starw", 2), ("sub-01_swi", 9)], "sub-01/anat/sub-01_SWI.nii", "9"),
        ([("sub-01_T2starw", 2), ("sub-01_acq-hr_T2starw", 9)], "sub-01_T2starw.nii.gz", "2"),
        ([("sub-01_T2starw", 2), ("sub-01_rec-x_T2starw", 9)], "sub-01", "2"),
    ],
)
def test_a_rating_is_compared_with_the_result_of_the_very_scan(tmp_path, sources, rated, count):
    app, table = results(tmp_path / "app", *sources), tmp_path / "mars.tsv"
    write_table(table, ("scan", "n_cmb"), [{"scan": rated, "n_cmb": 2}])
    compare_counts(app, table, tmp_path / "result", overwrite=False)
    (row,) = read_table(tmp_path / "result/counts.tsv")
    assert row["n_cmb_found"] == count


@pytest.mark.parametrize(
    ("sources", "rated"),
    [
        (["sub-01_T2starw", "sub-01_swi"], "sub-01"),
        (["sub-01_desc-a_T2starw", "sub-01_desc-b_T2starw"], "sub-01_T2starw.nii.gz"),
    ],
)
def test_a_rating_that_may_be_of_two_results_is_refused(tmp_path, sources, rated):
    app = results(tmp_path / "app", *((source, 1) for source in sources))
    table = tmp_path / "mars.tsv"
    write_table(table, ("scan", "n_cmb"), [{"scan": rated, "n_cmb": 2}])
    with pytest.raises(ValueError, match=rf"mars.tsv: {rated} needs one result .* found 2: sub-01"):
        compare_counts(app, table, tmp_path / "result", overwrite=False)
    assert not (tmp_path / "result").exists()


def test_a_rating_without_scans_is_refused(tmp_path):
    write_table(tmp_path / "mars.tsv", ("file", "n_cmb"), [{"file": "sub-01", "n_cmb": 2}])
    with pytest.raises(ValueError, match=r"mars.tsv: the column scan is needed; found file, n_cmb"):
        compare_counts(tmp_path, tmp_path / "mars.tsv", tmp_path / "result", overwrite=False)


def test_a_rating_of_another_contrast_is_missing(tmp_path):
    app, table = results(tmp_path / "app", ("sub-01_swi", 9)), tmp_path / "mars.tsv"
    write_table(table, ("scan", "n_cmb"), [{"scan": "sub-01_T2starw.nii.gz", "n_cmb": 2}])
    with pytest.raises(ValueError, match="found 1 results and 1 rated scans"):
        compare_counts(app, table, tmp_path / "result", overwrite=False)


def test_counts_of_the_app_are_held_against_the_rating(tmp_path, scans, capsys):
    out, _, _ = imported(tmp_path, scans, long_sheet)
    rows = read_table(out / "derivatives/truth/phenotype/mars.tsv")
    assert [row["n_cmb"] for row in rows] == ["4", "1", "0"]
    assert [row["pattern"] for row in rows] == ["mixed", "strictly lobar", "none"]
    app = tmp_path / "app"
    for name, found in (("a", 2), ("b", 1)):
        known = {"n_cmb": found, "n_lobar": found, "n_frontal_left": found}
        write_json(
            app / f"sub-{name}/anat/sub-{name}_space-orig_label-CMB_desc-T2starw_mask.json",
            {"Microbleeds": known},
        )
    truth = out / "derivatives" / "truth"
    assert main(["evaluate", str(app), str(truth), str(tmp_path / "result")]) == 0
    said = capsys.readouterr()
    assert "2 scans, found 3, rated 5" in said.out
    assert "sub-c/anat/sub-c_T2starw.nii.gz: no prediction" in said.err
    table = {row["region"]: row for row in read_table(tmp_path / "result/agreement.tsv")}
    assert (table["cmb"]["count_mae"], table["cmb"]["count_bias"]) == ("1.0", "-1.0")
    assert table["frontal_left"]["count_mae"] == "0.5"
    assert table["deep"]["n_scans"] == "0"
    with pytest.raises(ValueError, match="needs an empty folder or --overwrite"):
        compare_counts(app, truth / "phenotype/mars.tsv", tmp_path / "result", overwrite=False)
    with pytest.raises(ValueError, match="need a scan in common; found 0 results and 3"):
        compare_counts(
            tmp_path / "no", truth / "phenotype/mars.tsv", tmp_path / "other", overwrite=False
        )


# --- What is refused ------------------------------------------------------------------------------


def test_points_that_fit_two_ways_to_count_are_refused(tmp_path, scans):
    double = Volume(np.minimum(scans["b"].data, scans["b"].data[::-1]), AFFINE)
    with pytest.raises(ValueError, match=r"source: the 1 points do not tell .* --index-base, --fl"):
        imported(tmp_path, {"b": double}, as_dou)


def test_points_that_are_not_dark_are_refused(tmp_path, scans):
    swapped = {"a": scans["b"], "b": scans["a"]}
    with pytest.raises(ValueError, match="microbleeds are dark, and the 4 points are not"):
        imported(tmp_path, swapped, as_momeni)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("space", "sentence"),
    [("world", "points.csv: row 2: a point must lie in the image"),
     ("voxel", r"row 2: a point must lie in the image; .*\(500, 0, 0\)")],
)  # fmt: skip
def test_points_outside_the_image_are_refused(tmp_path, scans, space, sentence):
    write = partial(as_csv, table=f"file,x,y,z,space\na.nii.gz,500,0,0,{space}\n")
    with pytest.raises(ValueError, match=sentence):
        imported(tmp_path, scans, write)


def test_a_bad_scan_is_skipped_if_asked(tmp_path, scans):
    def write(root, volumes):
        as_world(root, volumes)
        (root / "images" / "c.nii.gz").write_bytes(b"no image")
        return "csv"

    with pytest.raises(ValueError, match=r"c.nii.gz: a NIfTI image was expected"):
        imported(tmp_path, scans, write)
    assert not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / "source")
    out, said, made = imported(tmp_path, scans, write, skip_invalid=True)
    assert (made.scans, len(made.skipped)) == (2, 1)
    assert any(one.startswith("skipped:") for one in said)
    assert "c.nii.gz: a NIfTI image was expected" in (out / "README.md").read_text()


def without(kind, pattern):
    """A writer that loses files."""

    def write(root, scans):
        name = kind(root, scans)
        for path in root.rglob(pattern):
            path.unlink()
        return name

    return write


def with_text(kind, name, text):
    """A writer that puts something else into a file."""

    def write(root, scans):
        said = kind(root, scans)
        (path,) = root.rglob(name)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return said

    return write


def with_book(kind, name, rows, sheets=1):
    def write(root, scans):
        said = kind(root, scans)
        (path,) = root.rglob(name)
        book(path, rows)
        if sheets > 1:
            made = Workbook()
            for _ in range(sheets):
                made.create_sheet().append([1, 2, 3])
            made.save(path)
        return said

    return write


def with_two_of_one_name(kind, name, other):
    """A writer that has a scan twice."""

    def write(root, scans):
        said = kind(root, scans)
        assert len(list(root.rglob(name))) == 1
        put(scans["a"], root / other)
        return said

    return write


def broken_newer_mat(root, scans):
    as_newer_dou(root, scans)
    path = root / "ground_truth" / "a.mat"
    path.write_bytes(path.read_bytes()[:1200])
    return "dou"


def with_mat(content):
    def write(root, scans):
        said = as_dou(root, scans)
        savemat(root / "ground_truth" / "a.mat", content)
        return said

    return write


REFUSED = {
    "a scan twice among images": (
        with_two_of_one_name(as_dou, "a.nii", "again/a.nii"),
        "every file needs a name of its own; found again/a.nii and nii/a.nii",
    ),
    "a broken newer mat": (broken_newer_mat, r"a.mat: a .mat file is expected; it cannot be read"),
    "a name that is not the only one": (
        with_two_of_one_name(as_world, "a.nii.gz", "images/again/a.nii.gz"),
        r"row 2: the scan a.nii.gz is not the only one of this name \(2\)",
    ),
    "an unknown base": (
        with_text(as_world, "points.csv", "file,x,y,z,space,index_base\na,1,2,3,voxel,2\n"),
        "`index_base` must be 0 or 1, the same in every row; found 2.0",
    ),
    "a sheet of nobody": (
        with_book(as_mars, "*.xlsx", [["file", "frontal left"]]),
        "at least one scan with labels is needed; found none",
    ),
    "no mask": (without(as_valdo, "sub-b*CMB*"), r"sub-b_space-T2S_CMB.nii.gz is missing"),
    "no files of valdo": (without(as_valdo, "*.nii.gz"), "found none of them"),
    "no list": (without(as_momeni, "*.xlsx"), "an Excel list of positions"),
    "no scan of the list": (without(as_momeni, "b.nii.gz"), "row 3: the scan b is missing"),
    "no scans": (without(as_momeni, "*.nii.gz"), "folders rCMB_DefiniteSubject.* found none"),
    "half a triple": (
        with_book(as_momeni, "*.xlsx", [["a.nii.gz", 1, 2]]),
        "row 1: positions come as x, y, z, three numbers each",
    ),
    "no row": (
        with_book(as_momeni, "*.xlsx", [["a.nii.gz", 1, 2, 3]]),
        "b.nii.gz: a scan of rCMB_DefiniteSubject needs a row",
    ),
    "a row without numbers": (
        with_book(as_momeni, "*.xlsx", [["a.nii.gz", 1, 2, 3], ["b.nii.gz", None]]),
        "row 2: a file name and positions x, y, z are needed",
    ),
    "no workbook": (with_text(as_momeni, "*.xlsx", "nothing"), "Excel workbook is expected"),
    "two sheets": (with_book(as_momeni, "*.xlsx", [], sheets=2), "one filled sheet is expected"),
    "no mat": (without(as_dou, "*.mat"), r"files ….mat with positions are needed"),
    "no scan of a mat": (without(as_dou, "b.nii"), r"b.mat: the scan b.nii is missing"),
    "a broken mat": (with_text(as_dou, "a.mat", b"MATLAB" * 40), "a .mat file is expected"),
    "another key": (with_mat({"centre": [[1, 2, 3]]}), "expected in `cen`; found centre"),
    "two columns": (with_mat({"cen": [[1, 2]]}), "three numbers for each lesion; found 1 × 2"),
    "no numbers": (with_mat({"cen": [[1, np.nan, 3]]}), "`cen` must hold numbers"),
    "no tables": (without(as_almasni, "*.xlsx"), "a table for each scan is needed"),
    "no scan of a table": (without(as_almasni, "b.nii.gz"), r"b.xlsx: the scan b.nii is missing"),
    "a table of words": (
        with_book(as_almasni, "a.xlsx", [["s", "x", "y"], [1, 2, "three"]]),
        "a.xlsx: row 2: slice, x and y are needed",
    ),
    "an empty table": (with_book(as_almasni, "a.xlsx", []), "at least one row is expected"),
    "no csv": (without(as_world, "*.csv"), "one table .* is needed; found none"),
    "no column": (
        with_text(as_world, "points.csv", "file,x,y,space\n"),
        "the columns file, x, y, z, space are needed; z not among file, x, y, space",
    ),
    "a column twice": (
        with_text(as_world, "points.csv", "file,x,y,z,space,x\n"),
        "every column needs a name of its own; found x twice",
    ),
    "an unknown space": (
        with_text(as_world, "points.csv", "file,x,y,z,space\na.nii.gz,1,2,3,mni\n"),
        "`space` must be voxel or world, the same in every row; found mni",
    ),
    "an unknown scan": (
        with_text(as_world, "points.csv", "file,x,y,z,space\nq.nii.gz,1,2,3,world\n"),
        "row 2: the scan q.nii.gz is missing",
    ),
    "part of a position": (
        with_text(as_world, "points.csv", "file,x,y,z,space\na.nii.gz,1,,3,world\n"),
        "row 2: x, y and z must be numbers, or all three empty",
    ),
    "a diameter of 0": (
        with_text(as_world, "points.csv", "file,x,y,z,space,diameter_mm\na,1,2,3,world,0\n"),
        "row 2: diameter_mm must be a number above 0",
    ),
    "an unknown certainty": (
        with_text(as_world, "points.csv", "file,x,y,z,space,certainty\na,1,2,3,world,maybe\n"),
        "row 2: certainty must be definite or possible; found 'maybe'",
    ),
    "text in no UTF-8": (with_text(as_world, "points.csv", b"file\xff,x"), "UTF-8 is expected"),
    "no regions": (with_book(as_mars, "*.xlsx", [["file", "q"], ["a", 1]]), "columns of MARS"),
    "half a lesion": (
        with_book(as_mars, "*.xlsx", [["file", "frontal left"], ["a", 1.5]]),
        "row 2: frontal left must be a whole number from 0; found 1.5",
    ),
    "a scan twice": (
        with_book(as_mars, "*.xlsx", [["file", "frontal left"], ["a", 1], ["a", 1]]),
        "a scan needs one row; a has 2",
    ),
    "no region": (
        with_text(long_sheet, "*.csv", "file,region,side,count\na,foot,left,1\n"),
        "row 2: a region of MARS .* found 'foot', 'left'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_understood_is_refused_in_a_sentence(name, tmp_path, crumbs):
    write, said = REFUSED[name]
    with pytest.raises(ValueError, match=said) as caught:
        imported(tmp_path, crumbs, write)
    assert str(tmp_path / "source") in str(caught.value)
    assert not (tmp_path / "out").exists()


def shifted_mask(root, scans):
    as_valdo(root, scans)
    path = root / "sub-a" / "sub-a_space-T2S_CMB.nii.gz"
    mask = load_labels(path)
    save(Volume(mask.data, mask.affine @ from_matvec(np.eye(3), [3, 0, 0])), path)
    return "valdo"


def smaller_mask(root, scans):
    as_valdo(root, scans)
    path = root / "sub-a" / "sub-a_space-T2S_CMB.nii.gz"
    save(Volume(load_labels(path).data[1:], AFFINE), path)
    return "valdo"


def full_mask(root, scans):
    as_valdo(root, scans)
    save(Volume(np.ones((20, 20, 10)), AFFINE), root / "sub-a" / "sub-a_space-T2S_CMB.nii.gz")
    return "valdo"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (shifted_mask, "on the grid of its scan; their corners are 3.6 mm apart"),
        (smaller_mask, "on the grid of its scan, 20 × 20 × 10 voxels; found 19 × 20 × 10"),
        (full_mask, "covers at most 10 % of an image; found 1 to 1 and 100 %"),
    ],
)
def test_masks_of_something_else_are_refused(write, said, tmp_path, crumbs):
    with pytest.raises(ValueError, match=said):
        imported(tmp_path, crumbs, write)


def test_folders_that_cannot_be_are_refused(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    for out, said in (
        (source, "must lie outside the source"),
        (source / "bids", "must lie outside the source"),
        (full, "needs an empty folder; found files in it"),
    ):
        with pytest.raises(ValueError, match=said):
            import_labels("csv", source, out, options=ImportOptions(), log=str)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        import_labels("csv", tmp_path / "no", tmp_path / "o", options=ImportOptions(), log=str)
    with pytest.raises(ValueError, match="a folder Data with scans is needed"):
        import_labels("almasni", source, tmp_path / "o", options=ImportOptions(), log=str)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"base": 2}, "`index-base` must be 0 or 1"),
        ({"flips": "xx"}, "`flips` must be none or of x, y, z"),
        ({"order": "xy"}, "`order` must be x, y and z in some order"),
        ({"suffix": "T1w"}, "`suffix` must be T2starw or swi"),
    ],
)
def test_impossible_wishes_are_refused(asked, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        import_labels(
            "csv", tmp_path, tmp_path.parent / "o", options=ImportOptions(**asked), log=str
        )


# --- The door -------------------------------------------------------------------------------------


def test_the_command_says_what_came_of_it(tmp_path, scans, capsys):
    (tmp_path / "source").mkdir()
    as_voxels(tmp_path / "source", scans)
    command = ["import-labels", "csv", str(tmp_path / "source"), str(tmp_path / "out")]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'out'}: 3 scans, 4 microbleeds.\n"
    assert "first voxel 1, y from the far end, order y, x, z" in said.err
    assert main(command) == 1
    assert "needs an empty folder" in capsys.readouterr().err


def test_help_opens_no_library():
    heavy = "sys.exit(any(n in sys.modules for n in ('openpyxl', 'scipy', 'nibabel', 'numpy')))"
    code = f"""
import sys
from functools import partial
from bids_cmb.cli.commands import main
try:
    main(['import-labels', '--help'])
except SystemExit:
    {heavy}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0
    assert b"--index-base" in done.stdout
