"""One scan: its echoes, its brain, its thresholds and when it is done."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from phantoms import T1W, T2STAR, painted, stripped

from bids_cmb.anatomy import scan_anatomy
from bids_cmb.anatomy.atlases import Atlases
from bids_cmb.anatomy.mni_fit import format_itk_affine
from bids_cmb.anatomy.scan_anatomy import (
    AnatomyResult,
    BrainSource,
    get_brain_mask,
    load_brain_mask,
    segment_anatomy,
)
from bids_cmb.bids.paths import Output
from bids_cmb.bids.scan import Scan
from bids_cmb.bids.tables import read_table
from bids_cmb.config import Config
from bids_cmb.files import write_json
from bids_cmb.imaging import nifti
from bids_cmb.imaging.loading import load_echoes
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.model_cards import load_card
from bids_cmb.simulation.tissue_properties import is_brain
from bids_cmb.workflow import inputs
from bids_cmb.workflow import scan as participant
from bids_cmb.workflow.inputs import (
    compute_fingerprint,
    resolve_candidate_threshold,
    resolve_inputs,
    resolve_thresholds,
    uses_networks,
)
from bids_cmb.workflow.scan import analyze_scan, complete_anatomy, process_scan


@pytest.fixture
def config(tmp_path):
    return Config(
        tmp_path, tmp_path / "out", ("participant",), detector=("radial",), anatomy="none"
    )


@pytest.fixture
def echoes(tmp_path, blank, rng):
    """Two echoes on disk, and the scan that they make up."""
    images, paths = [], []
    for number in (1, 2):
        image = Volume(rng.uniform(1, 9, blank.shape).astype(np.float32), blank.affine)
        path = tmp_path / f"sub-01_echo-{number}_MEGRE.nii.gz"
        nifti.save(image, path)
        images.append(image)
        paths.append(path)
    name = "sub-01/anat/sub-01_MEGRE.nii.gz"
    entities = (("sub", "01"),)
    return images, Scan(paths[0], name, "anat", "MEGRE", entities, "", {}, (paths[1],))


def read(scan):
    return load_echoes((scan.path, *scan.more_echoes))


def files_of(scan, config):
    return [path for _, path in resolve_inputs(scan, config).roles]


def segmented(scan, image, config):
    """The anatomy of a scan, before it is refined."""
    needed = resolve_inputs(scan, config)
    network = config.anatomy == "network"
    return segment_anatomy(
        image, needed.models, needed.brain, segmentation=needed.segmentation, network=network
    )


def brain_mask(scan, image, config, anatomy=None):
    return get_brain_mask(image, resolve_inputs(scan, config).brain, anatomy)


def test_echoes_are_combined_as_the_root_of_their_mean_square(echoes):
    (first, second), scan = echoes
    combined, _ = read(scan)
    expected = np.sqrt((first.data**2 + second.data**2) / 2)
    np.testing.assert_allclose(combined.data, expected, rtol=1e-5)


def test_a_scan_of_one_echo_is_read_as_it_is(echoes):
    (first, _), scan = echoes
    np.testing.assert_array_equal(read(replace(scan, more_echoes=()))[0].data, first.data)


def test_echoes_on_different_grids_are_refused(echoes, blank):
    _, scan = echoes
    moved = Volume(blank.data + np.arange(32), blank.affine @ np.diag([1, 1, 1.1, 1]))
    nifti.save(moved, scan.more_echoes[0])
    with pytest.raises(ValueError, match="echoes to be combined must share one grid"):
        read(scan)


def test_the_thresholds_are_those_of_the_card_unless_they_are_given(config):
    on_card = load_card("radial")
    cut = resolve_thresholds(config)
    assert (cut.threshold, cut.definite) == (on_card["threshold"], on_card["definite_threshold"])
    assert cut.min_volume == on_card["min_volume_mm3"]
    cut = resolve_thresholds(replace(config, threshold=0.99, min_volume=0.0))
    assert (cut.threshold, cut.definite, cut.min_volume) == (0.99, 0.99, 0)


@pytest.mark.parametrize(
    ("detector", "change", "from_sensitive"),
    [
        (("two-stage",), {}, True),
        (("two-stage",), {"operating_point": "specific"}, True),
        (("two-stage",), {"operating_point": "sensitive"}, False),
        (("two-stage",), {"threshold": 0.01}, False),
        (("two-stage", "radial"), {}, False),
        (("ensemble",), {}, False),
        (("ensemble",), {"members": ("ensemble-a",)}, False),
        (("radial",), {}, False),
    ],
)
def test_only_below_a_detector_with_a_sensitive_operating_point_is_something_worth_a_look(
    config, detector, change, from_sensitive
):
    config = replace(config, detector=detector, **change)
    floor = resolve_candidate_threshold(config, resolve_thresholds(config))
    points = {point.get("name"): point for point in load_card("two-stage")["operating_points"]}
    assert floor == (points["sensitive"]["threshold"] if from_sensitive else None)


def test_candidates_are_written_apart_and_change_nothing_else(config, tmp_path):
    """With and without a sensitive operating point on the card: counts, mask and tables stay.

    Of the four dark spots radial is 0.9884 to 0.9902 sure.
    """
    scan = Scan(tmp_path / "sub-01_T2starw.nii.gz", "a.nii.gz", "anat", "T2starw", (("sub", "01"),))
    nifti.save(stripped(3), scan.path)
    config = replace(config, skip_brain_extraction=True, report="static", threshold=0.989)
    written = {}
    for points in ([], [{"name": "sensitive", "threshold": 0.3}]):
        models = tmp_path / f"models-{len(points)}"
        write_json(models / "radial.json", {**load_card("radial"), "operating_points": points})
        out = replace(config, output_dir=tmp_path / f"out-{len(points)}", model_dir=models)
        process_scan(scan, out)
        written[len(points)] = Output(out.output_dir, scan)
    without, with_candidates = written[0], written[1]
    rows = read_table(with_candidates.candidates(".tsv"))
    assert rows
    for path in (*without.mask().parent.iterdir(), without.participant_dir / "sub-01_scans.tsv"):
        if path.suffix != ".json":
            same = with_candidates.folder / path.relative_to(without.folder)
            assert same.read_bytes() == path.read_bytes()
    assert not without.candidates().exists()
    lesions = nib.load(with_candidates.labels()).get_fdata()
    candidates = nib.load(with_candidates.candidates()).get_fdata()
    assert not ((lesions > 0) & (candidates > 0)).any()
    assert {int(row["index"]) for row in rows} == set(np.unique(candidates)) - {0}
    assert all(0.3 <= float(row["probability_max"]) < 0.989 for row in rows)
    pages = [(output.folder / "sub-01.html").read_text() for output in (without, with_candidates)]
    assert ["Also worth a look" in page for page in pages] == [False, True]
    assert f"Also worth a look (not counted): {len(rows)}<" in pages[1]
    marker = with_candidates.mask(".json").read_text()
    assert with_candidates.candidates(".tsv").name in marker


def test_a_brain_mask_on_another_grid_is_looked_up(blank, tmp_path):
    coarse = Volume(np.zeros((32, 32, 32), np.float32), blank.affine @ np.diag([2, 2, 1, 1]))
    coarse.data[8:24, 8:24, 8:24] = 1
    nifti.save(coarse, tmp_path / "mask.nii.gz")
    found = load_brain_mask(tmp_path / "mask.nii.gz", blank)
    assert found.data.dtype == bool
    assert found.data.sum() * found.voxel_volume == pytest.approx(16**3 * 2, rel=0.15)


def test_a_brain_mask_may_be_brain_everywhere(blank, tmp_path):
    nifti.save(Volume(blank.data + 1, blank.affine), tmp_path / "mask.nii.gz")
    assert load_brain_mask(tmp_path / "mask.nii.gz", blank).data.all()


@pytest.mark.parametrize(("factor", "notes"), [(1, 1), (6, 0)])
def test_a_brain_mask_that_holds_no_brain_is_told(factor, notes, blank, tmp_path):
    """Of 30 voxels once: a scan with "0 microbleeds", and no word."""
    affine = blank.affine @ np.diag([factor, factor, factor, 1])
    image = Volume(blank.data + 1, affine)
    mask = Volume(np.zeros(blank.shape, np.float32), affine)
    mask.data[20:40, 20:40, 20:40] = 1
    path = tmp_path / "mask.nii.gz"
    nifti.save(mask, path)
    found = get_brain_mask(image, BrainSource(Path("scan.nii.gz"), mask=path), None)
    volume = found.mask.data.sum() * image.voxel_volume / 1000
    assert (volume < 150) == bool(notes)
    assert [f"found {volume:.1f} ml" in note for note in found.notes] == [True] * notes


def test_a_brain_mask_beside_the_scan_is_refused(blank, tmp_path):
    far = blank.affine.copy()
    far[:3, 3] += 500
    data = np.zeros(blank.shape, np.float32)
    data[20:40, 20:40] = 1
    nifti.save(Volume(data, far), tmp_path / "mask.nii.gz")
    with pytest.raises(ValueError, match=r"mask.nii.gz must overlap the scan; found no voxel"):
        load_brain_mask(tmp_path / "mask.nii.gz", blank)


def test_a_scan_without_a_brain_is_named(config, echoes, rng, blank):
    noise = Volume(rng.uniform(0, 1, blank.shape).astype(np.float32), blank.affine)
    with pytest.raises(ValueError, match=r"echo-1_MEGRE.nii.gz: "):
        brain_mask(echoes[1], noise, config)


def test_a_stripped_scan_is_its_own_brain(config, echoes):
    image = Volume(np.zeros((80, 90, 40), np.float32), np.diag([-2.0, 2, 4, 1]))
    image.data[10:70, 10:80, 5:35] = 100
    image.data[30, 30, 20] = 0  # a hole
    found = brain_mask(echoes[1], image, replace(config, skip_brain_extraction=True))
    assert found.mask.data.sum() == 60 * 70 * 30
    assert "non-zero voxels" in found.source


def test_every_file_that_decides_the_result_is_an_input(config, echoes, tmp_path):
    scan = echoes[1]
    assert files_of(scan, config) == [scan.path, *scan.more_echoes]
    mask = tmp_path / "masks/sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    mask.parent.mkdir(parents=True)
    mask.touch()
    with_mask = replace(config, derivatives=(tmp_path / "masks",))
    assert files_of(scan, with_mask) == [scan.path, *scan.more_echoes, Path(mask)]


@pytest.mark.parametrize("settings", [{"anatomy": "network"}, {"own": True}, {}])
def test_the_atlas_decides_the_result_wherever_anatomy_is_looked_at(
    config, echoes, tmp_path, monkeypatch, settings
):
    """By the network or by the user's own segmentation; else no atlas is asked."""
    scan, atlas = echoes[1], tmp_path / "atlas.nii.gz"
    if settings.pop("own", False):
        own = tmp_path / "own/sub-01/anat/sub-01_desc-aseg_dseg.nii.gz"
        own.parent.mkdir(parents=True)
        own.touch()
        settings = {"derivatives": (tmp_path / "own",)}
    config = replace(config, **settings)
    atlas.write_bytes(b"lobes")
    told = []
    for found in (Atlases(), Atlases(atlas)):
        monkeypatch.setattr(inputs, "find_atlases", lambda found=found: found)
        told.append(compute_fingerprint(resolve_inputs(scan, config), []))
    assert (told[0] != told[1]) == bool(settings)


@pytest.fixture
def on_t1w(known, tmp_path, config):
    """A scan of a head, and fMRIPrep's segmentation of it on a T1w image that lies askew."""
    codes = known[0]
    motion = from_matvec(euler2mat(0.1, 0.05, -0.1), [9, -14, 20])
    there = Volume(codes.data, motion @ codes.affine)
    image = painted(there, T2STAR, there.affine, there.shape, np.random.default_rng(6))
    prep = tmp_path / "prep/sub-01/anat"
    nifti.save(codes, prep / "sub-01_desc-aseg_dseg.nii.gz", dtype=np.int32)
    own = is_brain(there.data).astype(np.uint8)
    nifti.save(Volume(own, there.affine), prep / "sub-01_space-orig_desc-brain_mask.nii.gz")
    t1w = painted(codes, T1W, codes.affine, codes.shape, np.random.default_rng(7))
    nifti.save(t1w, prep / "sub-01_desc-preproc_T1w.nii.gz")
    path = tmp_path / "sub-01/anat/sub-01_T2starw.nii.gz"
    nifti.save(image, path)
    entities = (("sub", "01"),)
    scan = Scan(path, "sub-01/anat/sub-01_T2starw.nii.gz", "anat", "T2starw", entities)
    return scan, image, replace(config, derivatives=(tmp_path / "prep",)), motion


@pytest.mark.usefixtures("few_samples")
def test_a_segmentation_on_a_t1w_image_is_brought_to_the_scan_and_the_way_is_written(on_t1w):
    scan, image, config, motion = on_t1w
    inside = segmented(scan, image, config)
    apart = inside.registered.to_scan @ [20, -30, 10, 1] - motion @ [20, -30, 10, 1]
    assert np.linalg.norm(apart) < 1.5
    assert brain_mask(scan, image, config, inside).source.endswith("desc-brain_mask.nii.gz")
    assert Output(config.output_dir, scan).from_t1w().name == (
        "sub-01_from-T1w_to-orig_mode-image_desc-T2starw_xfm.txt"
    )
    names = [path.name for path in files_of(scan, config)]
    assert "sub-01_desc-aseg_dseg.nii.gz" in names
    assert "sub-01_desc-preproc_T1w.nii.gz" in names


def test_a_segmentation_that_cannot_be_brought_is_left_with_a_sentence(on_t1w):
    scan, image, config, _ = on_t1w
    (prep,) = config.derivatives
    (prep / "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz").rename(
        prep / "sub-01/anat/sub-01_space-T1w_desc-preproc_T1w.nii.gz"
    )
    wrong = prep / "sub-01/anat/sub-01_from-T1w_to-orig_mode-image_xfm.txt"
    wrong.write_text(format_itk_affine(from_matvec(np.eye(3), [120, 0, 0])))
    inside = segmented(scan, image, config)
    assert inside.head is None
    (note,) = inside.notes
    assert "desc-aseg_dseg.nii.gz was not used: " in note
    assert "Dice of 0.7" in note


def with_parcels(codes):
    """Cortex and white matter as FreeSurfer's parcels: precuneus left, superior frontal right."""
    table = {3: 1025, 42: 2028, 2: 3025, 41: 4028}
    return np.select([codes == code for code in table], list(table.values()), codes)


@pytest.fixture
def own_space(tmp_path, config, known):
    """A maker of scans with the user's segmentation on a grid of its own, slices tilted by 25°."""

    def make(label, change=lambda codes: codes):
        codes = known[0].data.astype(np.int32)
        affine = from_matvec(euler2mat(np.radians(25), 0.1, -0.05), [3, -9, 6]) @ known[0].affine
        home = tmp_path / "seg/sub-01/anat"
        nifti.save(
            Volume(change(codes), affine),
            home / f"sub-01_space-T2starw_desc-{label}_dseg.nii.gz",
            dtype=np.int32,
        )
        grid = affine @ np.diag([-0.5, 0.6, 1.5, 1])
        grid[:3, 3] = (affine @ [codes.shape[0] - 1, 0, 0, 1])[:3]
        shape = tuple(np.ceil(codes.shape / np.array([0.5, 0.6, 1.5])).astype(int))
        image = painted(Volume(codes, affine), T2STAR, grid, shape, np.random.default_rng(8))
        scan = Scan(
            tmp_path / "sub-01/anat/sub-01_T2starw.nii.gz",
            "sub-01/anat/sub-01_T2starw.nii.gz",
            "anat",
            "T2starw",
            (("sub", "01"),),
        )
        return codes, image, scan, replace(config, derivatives=(tmp_path / "seg",))

    return make


@pytest.mark.parametrize(
    ("label", "change"),
    [
        ("aseg", lambda codes: codes),
        ("aparcaseg", with_parcels),
        ("synthseg", with_parcels),
    ],
)
def test_a_segmentation_in_the_scans_space_is_used_as_it_is(own_space, label, change):
    """No network redraws a voxel of it, wherever lesions are and however its grid lies."""
    codes, image, scan, config = own_space(label, change)
    classes = load_card("anatomy")["classes"]
    codes_of_classes = {one[side] for one in classes for side in ("left", "right")}
    same = np.isin(codes, list(codes_of_classes - {0, 24}))
    assert same.sum() > 100_000
    for anatomy in ("none", "network"):
        config = replace(config, anatomy=anatomy)
        inside = segmented(scan, image, config)
        inside, regions = complete_anatomy(
            image, inside, resolve_inputs(scan, config), config, has_lesions=True
        )
        np.testing.assert_array_equal(inside.head.structures.data[same], codes[same])
        assert inside.source.endswith(f"desc-{label}_dseg.nii.gz")
        assert not inside.notes
        assert (regions.data > 0).any()
    assert not uses_networks(replace(config, anatomy="none"))


@pytest.mark.parametrize(
    ("lesions", "level", "asked"),
    [(["one"], "standard", True), ([], "standard", False), ([], "full", True)],
)
def test_the_finer_network_is_asked_only_if_anybody_wants_to_know(
    config, echoes, blank, monkeypatch, lesions, level, asked
):
    before, after = (SimpleNamespace(fit_mm=None, to_mni=None) for _ in range(2))
    monkeypatch.setattr(scan_anatomy, "refine_structures", lambda *_: (after, "it is dark"))
    monkeypatch.setattr(inputs, "find_atlases", Atlases)
    monkeypatch.setattr(participant, "build_region_map", lambda *_, **__: "regions")
    config = replace(config, output_level=level, anatomy="network")
    needed = resolve_inputs(echoes[1], config)
    found, _ = complete_anatomy(
        blank, AnatomyResult(before), needed, config, has_lesions=bool(lesions)
    )
    assert found.head is (after if asked else before)
    assert any("on 2 mm voxels: it is dark." in note for note in found.notes) == asked


def test_a_hole_in_a_scan_is_no_lesion_and_no_fault_of_the_header(config, tmp_path):
    """A hole of NaN in the brain, which is found as a microbleed if its voxel is 0."""
    config, image = replace(config, skip_brain_extraction=True), stripped(3)
    hole = np.rint(image.index(np.array([25.0, 10.0, 30.0]))).astype(int)
    path = tmp_path / "sub-01_T2starw.nii.gz"
    scan = Scan(path, path.name, "anat", "T2starw", (("sub", "01"),))
    apart = []
    for value in (0, np.nan):
        image.data[tuple(hole)] = value
        nifti.save(image, path)
        found = analyze_scan(resolve_inputs(scan, config), config)
        away = [lesion.centre - image.world(hole) for lesion in found.lesions]
        apart.append(np.linalg.norm(away, axis=1).min())
    assert apart[0] < 1
    assert apart[1] > 5
    assert "nonfinite" in found.quality.flags
    assert "header_corrected" not in found.quality.flags


def test_a_scan_that_is_not_brighter_than_0_in_the_brain_is_refused_by_name(config, echoes):
    image = Volume(np.zeros((80, 90, 40), np.float32), np.diag([-2.0, 2, 4, 1]))
    image.data[10:70, 10:80, 5:35] = -100
    with pytest.raises(ValueError, match=r"MEGRE.nii.gz: a magnitude image must be brighter than"):
        brain_mask(echoes[1], image, replace(config, skip_brain_extraction=True))
