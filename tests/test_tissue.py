"""Grey or white at a lesion: what the finer network is shown, and what its word is good for."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax

from bids_cmb import tissue
from bids_cmb.anatomy import Place, places
from bids_cmb.cards import card
from bids_cmb.cases import Case, Drawing, Paths
from bids_cmb.lessons.tissue import PULL, Seen, draw, read_seen
from bids_cmb.models.losses import TissueLoss
from bids_cmb.networks import Models
from bids_cmb.preprocessing import Grid
from bids_cmb.tissue import KINDS, finer, kinds_of, opinion, shown, summed
from bids_cmb.volume import Volume

CLASSES = card("anatomy")["classes"]
LOBAR = ["lobar"] * 20  # territories
WHITE, GREY = KINDS.index("cerebral white matter"), KINDS.index("cerebral cortex")


@pytest.fixture
def models(tmp_path):
    """A folder with an anatomy card that has a network for tissue."""
    said = card("anatomy")
    grid = {"spacing": [1, 1, None], "axes": "slices", "margin": 6, "intensity": "brain-median"}
    member = {
        "name": tissue.MEMBER, "builder": "unet", "arguments": {}, "grid": grid,
        "weights": "none.npz", "sha256": "",
    }  # fmt: skip
    said["members"] = [said["members"][0], member]
    (tmp_path / "anatomy.json").write_text(json.dumps(said))
    return Models(folder=tmp_path)


@pytest.fixture
def by_brightness(monkeypatch):
    """A network to which bright is white matter and dark is grey, of cerebrum and cerebellum."""

    def ask(batch):
        assert batch.shape[1:] == (*tissue.SHAPE, len(KINDS))
        bright = batch[..., :1] > 0.7
        return np.where(bright, [0, 1, 0, 1, 0, 9], [0, 0, 1, 0, 1, 9]).astype(np.float32)

    monkeypatch.setattr(tissue, "load_patcher", lambda *_, **__: ask)


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


def test_every_class_of_the_anatomy_is_of_one_kind():
    found = dict(zip((one["name"] for one in CLASSES), kinds_of(CLASSES), strict=True))
    for name in ("outside", "fluid outside the brain", "lateral ventricle", "fourth ventricle"):
        assert KINDS[found[name]] == "no tissue"
    for name in ("thalamus", "putamen", "brainstem", "hippocampus"):
        assert KINDS[found[name]] == "other tissue"
    for name in (name for pair in tissue.PAIRS for name in pair):
        assert KINDS[found[name]] == name


def test_an_opinion_on_finer_voxels_is_that_of_the_voxel_they_lie_in_or_between(anatomy):
    kinds = kinds_of(CLASSES)
    affine = anatomy.structures.affine @ np.diag([0.5, 0.5, 0.5, 1])
    shape = tuple(2 * side - 1 for side in anatomy.structures.shape)
    told = opinion(summed(anatomy, kinds), affine, shape)
    there = kinds[anatomy.chances.argmax(-1)]
    for kind in range(1, len(KINDS)):
        assert np.array_equal(told[::2, ::2, ::2, kind - 1], 255 * (there == kind))
    halves = told[1::2, ::2, ::2, WHITE - 1]
    pair = (there[:-1] == WHITE).astype(int) + (there[1:] == WHITE)
    assert (np.abs(halves - 127.5 * pair) <= 0.5).all()


@pytest.mark.usefixtures("by_brightness")
def test_grey_and_white_follow_the_finer_network_at_the_very_place(anatomy, models):
    whites, greys = spots(anatomy, 2), spots(anatomy, 42)
    centres = [*whites, *greys]
    coarse = places(anatomy, centres, CLASSES)
    image = scan(anatomy, whites[:2])
    found = finer(image, anatomy, centres, coarse, LOBAR[: len(coarse)], models)
    near_dark = [min(np.linalg.norm(centre - dark) for dark in whites[:2]) for centre in centres]
    for place, away in zip(found, near_dark, strict=True):
        if away > 9:  # beyond the reach of any dark ball
            assert place.structure == "cerebral white matter"
        if away < 1:
            assert place.structure == "cerebral cortex"
    assert [one.mni for one in found] == [one.mni for one in coarse]
    assert [one.side for one in found] == [one.side for one in coarse]


@pytest.mark.usefixtures("by_brightness")
def test_what_is_neither_grey_nor_white_stays(anatomy, models):
    centres = [*spots(anatomy, 10, 2), *spots(anatomy, 16, 2), *spots(anatomy, 7, 1)]
    coarse = places(anatomy, centres, CLASSES)
    found = finer(scan(anatomy, centres), anatomy, centres, coarse, LOBAR[: len(coarse)], models)
    assert [one.structure for one in found[:4]] == [one.structure for one in coarse[:4]]
    assert coarse[4].structure == "cerebellar white matter"
    assert found[4].structure == "cerebellar cortex"  # never of the cerebrum


@pytest.mark.usefixtures("by_brightness")
def test_a_segmentation_of_the_user_and_a_card_without_that_network_have_the_last_word(
    anatomy, models, tmp_path
):
    centre = spots(anatomy, 2, 1)
    coarse = [Place("cerebral white matter", "left", None)]
    image = scan(anatomy, centre)
    assert finer(image, anatomy, centre, coarse, LOBAR[: len(coarse)], models) != coarse
    assert (
        finer(image, replace(anatomy, chances=None), centre, coarse, LOBAR[: len(coarse)], models)
        == coarse
    )
    said = card("anatomy")
    said["members"] = said["members"][:1]
    (tmp_path / "anatomy.json").write_text(json.dumps(said))
    assert finer(image, anatomy, centre, coarse, LOBAR[:1], Models(folder=tmp_path)) == coarse


@pytest.mark.usefixtures("by_brightness")
def test_a_place_at_the_edge_of_the_scan_is_looked_at_too(anatomy, models):
    image = scan(anatomy, [])
    corner = image.world(np.zeros(3))
    coarse = [Place("cerebral cortex", "left", None)]
    (found,) = finer(image, anatomy, [corner], coarse, LOBAR[: len(coarse)], models)
    assert found.structure in tissue.PAIRS[0]


@pytest.mark.usefixtures("by_brightness")
def test_there_is_no_cortex_in_the_depth(anatomy, models):
    (centre,) = spots(anatomy, 2, 1)
    coarse = [Place("cerebral white matter", "left", None)] * 2
    image = scan(anatomy, [centre])
    deep, lobar = finer(image, anatomy, [centre] * 2, coarse, ["deep", "lobar"], models)
    assert deep.structure == "cerebral white matter"
    assert lobar.structure == "cerebral cortex"


@pytest.mark.usefixtures("by_brightness")
def test_a_scan_without_brightness_keeps_its_places(anatomy, models):
    image = scan(anatomy, [])
    dark = Volume(np.zeros_like(image.data), image.affine)
    coarse = [Place("cerebral cortex", "left", None)]
    assert (
        finer(dark, anatomy, spots(anatomy, 3, 1), coarse, LOBAR[: len(coarse)], models) == coarse
    )


# --- Learning -------------------------------------------------------------------------------------


def seen(rng):
    """A scan whose brightness says its kind, with one lesion."""
    kinds = rng.integers(1, len(KINDS), (40, 44, 12)).astype(np.uint8)
    told = np.zeros((*kinds.shape, len(KINDS) - 1), np.uint8)
    lesion = np.array([[20, 22, 6]], np.int16)
    case = Case(
        "one", (kinds / 4).astype(np.float16), np.zeros(kinds.shape, np.uint8),
        np.ones(kinds.shape, bool), {"lesion": [lesion], "any": [lesion]},
    )  # fmt: skip
    return Seen(case, told, kinds, np.array([1.0, 1.0, 3.0]))


def test_patch_and_truth_are_turned_alike_and_the_lesion_weighs_most():
    one = seen(np.random.default_rng(1))
    still = Drawing(
        (16, 16, 8), {"lesion": 1.0}, gain=(1, 1), gamma=(1, 1), noise=0.0, reach=(4, 4, 1)
    )
    for seed in range(12):
        image, truth = draw({id(one.case): one}, still, np.random.default_rng(seed))
        kinds, weight = truth[..., 0], truth[..., 1]
        assert image.shape == (16, 16, 8, len(KINDS))
        assert np.array_equal(np.rint(4 * image[..., 0]), kinds)
        assert weight.max() == pytest.approx(1 + PULL)
        heaviest = np.unravel_index(weight.argmax(), weight.shape)
        assert kinds[heaviest] == one.kinds[20, 22, 6]
        assert (weight[kinds == 0] == 0).all()


def test_the_same_seed_draws_the_same_patch():
    one = seen(np.random.default_rng(2))
    drawing = Drawing((16, 16, 8), {"lesion": 1.0}, reach=(4, 4, 1))
    first, again = (draw({id(one.case): one}, drawing, np.random.default_rng(5)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_scan_without_structures_teaches_no_tissue(tmp_path):
    paths = Paths("one", tmp_path / "one.nii.gz", tmp_path / "les.nii.gz", None, None, None)
    with pytest.raises(
        ValueError, match=r"one\.nii\.gz: tissue is learnt from a truth of structures"
    ):
        read_seen(paths, Grid(), CLASSES)


def test_the_loss_is_the_weighted_mean_of_what_a_log_softmax_says():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, 3, 3, 2, 4)).astype(np.float32)
    kinds = rng.integers(0, 4, (2, 3, 3, 2))
    weight = rng.integers(0, 5, kinds.shape).astype(np.float32)
    said = np.take_along_axis(log_softmax(logits, axis=-1), kinds[..., None], -1)[..., 0]
    wanted = -(said * weight).sum() / (weight.sum() + 1)
    truth = np.stack([kinds, weight], axis=-1).astype(np.float32)
    assert float(TissueLoss(kinds=4)(truth, logits)) == pytest.approx(wanted, rel=1e-5)


def test_an_opinion_lies_beside_the_image_from_0_to_1():
    fed = shown(np.array([0.5, 7.0]), np.array([[0, 51, 255, 0, 0], [255, 0, 0, 0, 0]], np.uint8))
    assert fed[0] == pytest.approx([0.5, 0, 0.2, 1, 0, 0])
    assert fed[1] == pytest.approx([3.0, 1, 0, 0, 0, 0])  # a bright vessel is no outlier
