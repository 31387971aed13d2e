"""Structures on finer voxels: what the second network is shown, and what its word is good for."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.special import log_softmax

from bids_cmb.anatomy import refinement
from bids_cmb.anatomy.refinement import (
    KINDS,
    make_input,
    make_query_mask,
    map_classes_to_kinds,
    refine_structures,
    resample_prior,
)
from bids_cmb.anatomy.segmentation import locate_structures
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import load_card
from bids_cmb.training.losses import TissueLoss
from bids_cmb.training.patches import PatchSampling
from bids_cmb.training.scan_files import ScanFiles
from bids_cmb.training.scan_loading import TrainingScan
from bids_cmb.training.tasks.tissue import CENTRE_WEIGHT, TissueScan, load_tissue_scan, sample_patch

CLASSES = load_card("anatomy")["classes"]
PAIRS = (
    ("cerebral white matter", "cerebral cortex"),
    ("cerebellar white matter", "cerebellar cortex"),
)
WHITE, PUTAMEN = KINDS.index("cerebral white matter"), KINDS.index("putamen")


@pytest.fixture
def models(tmp_path):
    """A folder with an anatomy card that has a network for tissue."""
    said = load_card("anatomy")
    grid = {
        "spacing": [1, 1, None], "finest": 1.5, "axes": "slices", "multiple": [4, 4, 2],
        "margin": 6, "intensity": "brain-median",
    }  # fmt: skip
    member = {
        "name": refinement.MEMBER_NAME, "builder": "unet", "arguments": {}, "grid": grid,
        "weights": "none.npz", "sha256": 64 * "0",
    }  # fmt: skip
    said["members"] = [said["members"][0], member]
    (tmp_path / "anatomy.json").write_text(json.dumps(said))
    return ModelOptions(folder=tmp_path)


@pytest.fixture
def by_brightness(monkeypatch):
    """A network of the first one's opinion, but that dark white matter is cortex to it."""

    def ask(batch):
        assert batch.shape[-1] == len(KINDS)
        none = 0.5 - batch[..., 1:].sum(axis=-1, keepdims=True)
        said, dark = np.concatenate([none, batch[..., 1:]], axis=-1), batch[..., 0] < 0.7
        for white, grey in PAIRS:
            one, other = KINDS.index(white), KINDS.index(grey)
            said[dark, other] += said[dark, one]
            said[dark, one] = 0
        return said

    monkeypatch.setattr(refinement, "load_patch_model", lambda *_, **__: ask)


def spots(anatomy, code, count=5):
    """World mm of voxels of a structure, all over it, (N, 3)."""
    voxels = np.argwhere(anatomy.structures.data == code)
    return anatomy.structures.world(voxels[:: len(voxels) // count][:count])


def scan(anatomy, dark):
    """Slices of 3 mm, turned the other way round, that are bright but for balls of 4 mm."""
    turned = anatomy.structures.affine @ np.diag([-0.4, 0.45, 1.5, 1])
    turned[:3, 3] = anatomy.structures.world(np.array([anatomy.structures.shape[0], 0, 0]))
    shape = tuple((np.array(anatomy.structures.shape) / (0.4, 0.45, 1.5)).astype(int) + 2)
    data = np.full(shape, 100.0, np.float32)
    volume = Volume(data, turned)
    for centre in dark:
        at = np.rint(volume.index(centre)).astype(int)
        low = np.maximum(at - (6, 6, 1), 0)
        data[tuple(slice(a, b) for a, b in zip(low, at + (7, 7, 2), strict=True))] = 40
    return volume


def structures_at(anatomy, centres):
    return [one.structure for one in locate_structures(anatomy, centres, CLASSES)]


def test_every_class_of_the_anatomy_is_of_one_kind():
    found = dict(zip((one["name"] for one in CLASSES), map_classes_to_kinds(CLASSES), strict=True))
    for name in ("outside", "fluid outside the brain", "third ventricle", "fourth ventricle"):
        assert KINDS[found[name]] == "no tissue"
    for name in ("ventral diencephalon", "accumbens", "brainstem", "hippocampus"):
        assert KINDS[found[name]] == "other tissue"
    for name in ("cerebral cortex", "lateral ventricle", "thalamus", "pallidum"):
        assert KINDS[found[name]] == name
    assert set(found.values()) == set(range(len(KINDS)))


def test_an_opinion_is_a_linear_interpolation_whatever_way_the_finer_axes_run(anatomy):
    kinds = map_classes_to_kinds(CLASSES)
    coarse = anatomy.structures
    turned = coarse.affine[:, [2, 0, 1, 3]] @ np.diag([1.2, -0.4, 0.5, 1])
    turned[:3, 3] = coarse.world(np.array([coarse.shape[0] - 0.3, -2.2, 1.7]))
    shape = (40, 190, 110)
    told = resample_prior(anatomy, kinds, turned, shape)
    assert told.any()
    for kind in range(1, len(KINDS)):
        chance = 255 * np.isin(anatomy.probabilities.argmax(-1), np.flatnonzero(kinds == kind))
        wanted = resample(Volume(chance.astype(np.float32), coarse.affine), turned, shape).data
        assert np.abs(told[..., kind - 1] - wanted).max() < 0.51


@pytest.mark.usefixtures("by_brightness")
def test_structures_follow_the_finer_network_on_voxels_of_1_mm_in_the_slices_of_the_scan(
    anatomy, models
):
    whites = spots(anatomy, 2)
    image = scan(anatomy, whites[:2])
    found, why = refine_structures(image, anatomy, models)
    assert why is None
    assert found.structures.spacing == pytest.approx([1, 1, 3], abs=0.01)
    for centre, name in zip(whites, structures_at(found, whites), strict=True):
        away = min(np.linalg.norm(centre - dark) for dark in whites[:2])
        if away > 9:  # beyond the reach of any dark ball
            assert name == "cerebral white matter"
        if away < 1:
            assert name == "cerebral cortex"
    assert found.brain is anatomy.brain
    assert found.midline is anatomy.midline
    assert found.to_mni is anatomy.to_mni
    assert found.probabilities is None  # nobody shall ask the first network beside these structures


@pytest.mark.usefixtures("by_brightness")
def test_thin_slices_are_looked_at_a_millimetre_and_a_half_thick(anatomy, models):
    thick = scan(anatomy, [])
    affine = thick.affine @ np.diag([1, 1, 0.25, 1])
    thin = resample(thick, affine, (*thick.shape[:2], 4 * thick.shape[2]))
    found, _ = refine_structures(thin, anatomy, models)
    assert found.structures.spacing == pytest.approx([1, 1, 1.5], abs=0.01)
    assert structures_at(found, spots(anatomy, 10)) == ["thalamus"] * 5


@pytest.mark.usefixtures("by_brightness")
def test_what_the_finer_network_leaves_to_the_first_one_stays(anatomy, models):
    found = refine_structures(scan(anatomy, []), anatomy, models)[0].structures
    codes = anatomy.structures.data
    alike = ndimage.minimum_filter(codes, 3) == ndimage.maximum_filter(codes, 3)
    inner = Volume(np.where(alike, codes, 0), anatomy.structures.affine)
    like = resample(inner, found.affine, found.shape, order=0).data
    for code in (2, 42, 43, 10, 51, 16, 53, 60):
        there = like == code
        assert there.sum() > 3, code
        assert (found.data[there] == code).all(), code


@pytest.mark.usefixtures("by_brightness")
def test_where_the_first_network_sees_no_tissue_the_finer_one_is_not_asked(
    anatomy, models, monkeypatch
):
    ask = refinement.load_patch_model()

    def everywhere(batch):
        said = ask(batch)
        said[..., 0] = -1
        said[..., WHITE] += 0.01
        return said

    monkeypatch.setattr(refinement, "load_patch_model", lambda *_, **__: everywhere)
    found = refine_structures(scan(anatomy, []), anatomy, models)[0].structures
    asked = make_query_mask(
        resample_prior(anatomy, map_classes_to_kinds(CLASSES), found.affine, found.shape)
    )
    assert np.array_equal(np.isin(found.data, (0, 14, 15, 24)), ~asked)
    assert not asked.all()


@pytest.mark.usefixtures("by_brightness")
def test_a_brain_that_is_looked_at_in_parts_is_told_as_one(anatomy, models, monkeypatch):
    image = scan(anatomy, spots(anatomy, 41))
    whole = refine_structures(image, anatomy, models)[0].structures.data
    monkeypatch.setattr(refinement, "MAX_VOXELS_AT_ONCE", 20_000)
    assert np.array_equal(refine_structures(image, anatomy, models)[0].structures.data, whole)


@pytest.mark.usefixtures("by_brightness")
def test_a_segmentation_of_the_user_and_a_card_without_that_network_have_the_last_word(
    anatomy, models, tmp_path
):
    image = scan(anatomy, [])
    mine = replace(anatomy, probabilities=None)
    assert refine_structures(image, mine, models) == (mine, None)
    said = load_card("anatomy")
    said["members"] = said["members"][:1]
    (tmp_path / "anatomy.json").write_text(json.dumps(said))
    assert refine_structures(image, anatomy, ModelOptions(folder=tmp_path)) == (anatomy, None)


@pytest.mark.usefixtures("by_brightness")
def test_a_scan_without_brightness_keeps_its_structures(anatomy, models):
    image = scan(anatomy, [])
    found, why = refine_structures(Volume(np.zeros_like(image.data), image.affine), anatomy, models)
    assert found is anatomy
    assert "median" in why
    assert not why.endswith(".")  # the log puts it into a sentence


@pytest.mark.parametrize(("share", "believed"), [(0.6, True), (0.4, False), (0.25, False)])
@pytest.mark.usefixtures("by_brightness")
def test_a_network_that_hardly_sees_what_the_first_one_is_sure_of_is_not_believed(
    anatomy, models, monkeypatch, share, believed
):
    rng, ask = np.random.default_rng(0), refinement.load_patch_model()

    def blind(batch):
        said = ask(batch)
        said[..., PUTAMEN] *= rng.random(said.shape[:-1]) < share
        said[..., WHITE] += 0.01
        return said

    monkeypatch.setattr(refinement, "load_patch_model", lambda *_, **__: blind)
    found, why = refine_structures(scan(anatomy, []), anatomy, models)
    assert (found is not anatomy) == believed
    assert believed or "sees no putamen" in why


# --- Learning -------------------------------------------------------------------------------------


def seen(rng):
    """A scan whose brightness says its kind, with one lesion."""
    kinds = rng.integers(1, len(KINDS), (40, 44, 12)).astype(np.uint8)
    told = np.zeros((*kinds.shape, len(KINDS) - 1), np.uint8)
    lesion = np.array([[20, 22, 6]], np.int16)
    case = TrainingScan(
        "one", (kinds / 4).astype(np.float16), np.zeros(kinds.shape, np.uint8),
        np.ones(kinds.shape, bool), {"lesion": [lesion], "any": [lesion]},
    )  # fmt: skip
    return TissueScan(case, told, kinds, np.array([1.0, 1.0, 3.0]))


def test_patch_and_truth_are_turned_alike_and_the_lesion_weighs_most():
    one = seen(np.random.default_rng(1))
    still = PatchSampling(
        (16, 16, 8), {"lesion": 1.0}, gain=(1, 1), gamma=(1, 1), noise=0.0, reach=(4, 4, 1)
    )
    for seed in range(12):
        image, truth = sample_patch({id(one.case): one}, still, np.random.default_rng(seed))
        kinds, weight = truth[..., 0], truth[..., 1]
        assert image.shape == (16, 16, 8, len(KINDS))
        assert np.array_equal(np.rint(4 * image[..., 0]), kinds)
        assert weight.max() == pytest.approx(1 + CENTRE_WEIGHT)
        heaviest = np.unravel_index(weight.argmax(), weight.shape)
        assert kinds[heaviest] == one.kinds[20, 22, 6]
        assert (weight[kinds == 0] == 0).all()


def test_the_same_seed_draws_the_same_patch():
    one = seen(np.random.default_rng(2))
    drawing = PatchSampling((16, 16, 8), {"lesion": 1.0}, reach=(4, 4, 1))
    first, again = (
        sample_patch({id(one.case): one}, drawing, np.random.default_rng(5)) for _ in range(2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_scan_without_structures_teaches_no_tissue(tmp_path):
    paths = ScanFiles("one", tmp_path / "one.nii.gz", tmp_path / "les.nii.gz", None, None, None)
    with pytest.raises(
        ValueError, match=r"one\.nii\.gz: tissue is learnt from a truth of structures"
    ):
        load_tissue_scan(paths, Grid(), CLASSES)


def test_the_loss_is_the_weighted_mean_of_what_a_log_softmax_says():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, 3, 3, 2, 4)).astype(np.float32)
    kinds = rng.integers(0, 4, (2, 3, 3, 2))
    weight = rng.integers(0, 5, kinds.shape).astype(np.float32)
    said = np.take_along_axis(log_softmax(logits, axis=-1), kinds[..., None], -1)[..., 0]
    wanted = -(said * weight).sum() / (weight.sum() + 1)
    truth = np.stack([kinds, weight], axis=-1).astype(np.float32)
    assert float(TissueLoss()(truth, logits)) == pytest.approx(wanted, rel=1e-5)


def test_an_opinion_lies_beside_the_image_from_0_to_1():
    fed = make_input(np.array([0.5, 7.0]), np.array([[0, 51, 255], [255, 0, 0]], np.uint8))
    assert fed[0] == pytest.approx([0.5, 0, 0.2, 1])
    assert fed[1] == pytest.approx([3.0, 1, 0, 0])  # a bright vessel is no outlier
