"""Views of a candidate: enlarged about its middle, darker, flipped; what is averaged is whole."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from grids import OBLIQUE
from scipy import ndimage

from bids_cmb.detection import two_stage
from bids_cmb.detection.proposals import ANATOMY_FROM, CHANNELS, PLACE_FEATURES
from bids_cmb.detection.views import IMAGE, enlarge_slices, list_views, select_for_protocol
from bids_cmb.imaging.protocol_kinds import THICK, THICK_FINE, THIN
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import load_card

MIDDLE = (20, 20, 4)


def spot(width, *, shape=(40, 40, 9), at=MIDDLE):
    """One patch with a dark spot on grey, (1, X, Y, Z, C), the same in every channel."""
    index = np.stack(np.indices(shape), axis=-1) - at
    dark = np.exp(-(index[..., :2] ** 2).sum(axis=-1) / 2 / width**2) * (index[..., 2] == 0)
    return np.repeat((1 - 0.6 * dark)[None, ..., None], len(CHANNELS), axis=-1).astype(np.float32)


def test_an_enlarged_spot_is_wider_and_stays_in_the_middle_of_its_slice():
    seen = enlarge_slices(spot(3.0), 1.25)
    np.testing.assert_allclose(seen, spot(3.75), atol=0.01)
    np.testing.assert_array_equal(enlarge_slices(spot(3.0), 1.0), spot(3.0))


def test_enlarging_is_what_scipy_makes_of_it(rng):
    patches = rng.random((2, 12, 15, 3, 2), np.float32)
    seen = enlarge_slices(patches, 1.5)
    matrix, middle = np.array([1 / 1.5, 1 / 1.5, 1]), np.array([6, 7, 1])
    for batch, channel in product(range(2), range(2)):
        expected = ndimage.affine_transform(
            patches[batch, ..., channel], matrix, middle - matrix * middle, order=1
        )
        np.testing.assert_allclose(seen[batch, ..., channel], expected, atol=1e-5)


def test_every_zoom_meets_every_flip_and_exponent_and_the_shares_are_one():
    member = {"flips": [[0]], "zooms": [1.25, 1.5], "exponents": [1.4], "blind": 0.25}
    views = list(list_views(member))
    assert len(views) == 2 * 3 * 2 * 2
    assert sum(view.share for view in views) == pytest.approx(1)
    without = [view for view in views if not view.features[ANATOMY_FROM:].any()]
    assert sum(view.share for view in without) == pytest.approx(0.25)
    assert {(view.zoom, view.exponent) for view in views} == set(product((1, 1.25, 1.5), (1, 1.4)))
    (plain,) = list_views({})
    np.testing.assert_array_equal(plain.render(spot(3.0)), spot(3.0))


def test_contrast_is_raised_in_the_image_alone_and_hidden_channels_are_nought():
    member = {"exponents": [2.0], "hidden": ["probability"]}
    plain, raised = list_views(member)
    before, after = (view.render(spot(3.0)) for view in (plain, raised))
    np.testing.assert_allclose(after[..., IMAGE], before[..., IMAGE] ** 2, atol=1e-6)
    rest = [number for number in range(len(CHANNELS)) if number != IMAGE]
    np.testing.assert_array_equal(after[..., rest], before[..., rest])
    assert not after[..., CHANNELS.index("probability")].any()


def test_flipping_comes_after_enlarging_so_the_middle_voxel_stays_the_same_lesion():
    patches = spot(3.0, at=(24, 20, 4))
    both = list(list_views({"flips": [[0]], "zooms": [1.25]}))[-1]
    (darkest,) = np.argwhere(both.render(patches)[0, ..., IMAGE] == both.render(patches).min())
    assert darkest.tolist() == [39 - 25, 20, 4]


@pytest.fixture
def scan():
    """An oblique, flipped, anisotropic scan, even but for a dark spot at (30, 36, 9)."""
    index = np.stack(np.indices((80, 72, 20)), axis=-1)
    away = (index - (30, 36, 9)) * Volume(np.zeros((1, 1, 1)), OBLIQUE).spacing
    data = 100 - 80 * np.exp(-(away**2).sum(axis=-1) / 2 / 0.9**2)
    return Volume(data.astype(np.float32), OBLIQUE)


def make_card(**more):
    grid = {
        "spacing": [0.5, 0.5, None], "axes": "slices", "multiple": [8, 8, 2], "margin": 4,
        "order": 3, "intensity": "brain-median",
    }  # fmt: skip
    member = {
        "name": "u", "builder": "unet", "arguments": {}, "grid": grid, "weights": "w.npz",
        "sha256": 64 * "0",
    }  # fmt: skip
    return {"name": "p", "members": [{**member, **more}], "parameters": {"floor": 0.3}}


def test_the_first_stage_is_shown_the_scan_enlarged_and_answers_where_it_lies(scan, monkeypatch):
    shapes = []

    def see_dark(_, image):
        shapes.append(image.shape)
        return np.clip(1 - image, 0, 1) * (len(shapes) % 2)  # the second time it sees nothing

    monkeypatch.setattr(two_stage, "load_network", lambda *_, **__: None)
    monkeypatch.setattr(two_stage, "predict", see_dark)
    brain = Volume(np.ones(scan.shape, bool), OBLIQUE)
    found = {}
    for name, card in (("once", make_card()), ("twice", make_card(zooms=[1.25]))):
        shapes.clear()
        _, probability, proposals = two_stage.propose(scan, brain, card, ModelOptions())
        found[name] = (probability, proposals)
    once, twice = (found[name][0] for name in ("once", "twice"))
    np.testing.assert_allclose(twice.data, once.data / 2, atol=1e-6)
    assert np.divide(shapes[1][:2], shapes[0][:2]) == pytest.approx(
        1.25, abs=0.12
    )  # sides are multiples of 8
    assert shapes[1][2] == shapes[0][2]


def test_what_an_enlarged_scan_shows_is_found_where_it_is_in_the_scan(scan, monkeypatch):
    calls = []

    def see_dark(_, image):
        calls.append(image.shape)
        return np.clip(1 - image, 0, 1) * (len(calls) == 2)  # the scan as it is shows nothing

    monkeypatch.setattr(two_stage, "load_network", lambda *_, **__: None)
    monkeypatch.setattr(two_stage, "predict", see_dark)
    brain = Volume(np.ones(scan.shape, bool), OBLIQUE)
    _, probability, (proposal,) = two_stage.propose(
        scan, brain, make_card(zooms=[1.25]), ModelOptions()
    )
    place = probability.world(np.array([proposal.voxel]))
    true = scan.world(np.array([[30, 36, 9]]))
    assert np.linalg.norm(place - true) < 0.5
    assert proposal.probability == pytest.approx(0.4, abs=0.05)  # half of 0.8


def test_a_network_of_a_grid_without_pixel_sizes_cannot_be_shown_slices_enlarged(scan, monkeypatch):
    monkeypatch.setattr(two_stage, "load_network", lambda *_, **__: None)
    monkeypatch.setattr(two_stage, "predict", lambda _, image: 0 * image)
    card = make_card(zooms=[1.25], grid={"spacing": [None, None, None], "axes": "slices"})
    with pytest.raises(ValueError, match="pixels have a size; found a grid of"):
        two_stage.propose(scan, Volume(np.ones(scan.shape, bool), OBLIQUE), card, ModelOptions())


def test_a_lesion_seen_in_one_view_of_four_has_a_quarter_of_the_log_odds(monkeypatch):
    """Of four views it knows a lesion in one: that counts a quarter."""

    def ask(patches, places):
        assert places.shape[1] == len(PLACE_FEATURES)
        darkest = patches[..., IMAGE].min(axis=(1, 2, 3))
        wide = (patches[..., IMAGE] < 0.9).sum(axis=(1, 2, 3)) > 1.4 * plain
        return (8.0 * (wide & (darkest < 0.3)))[:, None]

    shape = (40, 40, 9)
    patch = spot(3.0)[0, ..., 0]
    plain = (patch < 0.9).sum()
    grid = Volume(np.zeros((80, 72, 20), np.float32), OBLIQUE)
    image = replace(grid, data=np.ones(grid.shape, np.float32))
    image.data[10:50, 16:56, 5:14] = patch
    monkeypatch.setattr(two_stage, "load_predictor", lambda *_, **__: ask)
    member = {"name": "c", "builder": "classifier", "weights": "w.npz",
              "arguments": {"shape": list(shape)}, "zooms": [1.25], "exponents": [1.4]}  # fmt: skip
    fed = two_stage.Preprocessed(image, Volume(np.ones(grid.shape, bool), OBLIQUE))
    proposals = [two_stage.Proposal((30, 36, 9), 0.5)]
    card = {"name": "p", "members": [member]}
    (chance,) = two_stage.decide(fed, grid, proposals, card, ModelOptions())
    assert np.log(chance / (1 - chance)) == pytest.approx(8 / 4, abs=0.01)


@pytest.mark.parametrize(
    ("spacing", "seen"),
    [((0.45, 4.0, 0.45), 2), ((1.0, 1.0, 4.0), 1), ((0.5, 0.5, 1.0), 1)],
)
def test_views_are_for_the_protocols_that_the_card_names(spacing, seen):
    card = {**make_card(zooms=[1.25], exponents=[1.4]), "views_for": [THICK_FINE]}
    (member,) = select_for_protocol(card, spacing)["members"]
    assert len(list(list_views(member))) == seen**2
    assert card["members"][0]["zooms"] == [1.25]  # as it was
    (always,) = select_for_protocol(make_card(zooms=[1.25]), spacing)["members"]
    assert len(list(list_views(always))) == 2


@pytest.mark.parametrize(
    ("spacing", "used"),
    [((0.5, 0.5, 1.0), ["thin", "all"]), ((1.0, 1.0, 4.0), ["thick", "all"])],
)
def test_a_network_is_used_for_the_protocols_that_its_entry_names(spacing, used):
    members = [
        {"name": "thin", "protocol_kinds": [THIN]},
        {"name": "thick", "protocol_kinds": [THICK, THICK_FINE]},
        {"name": "all"},
    ]
    selected = select_for_protocol({"members": members}, spacing)["members"]
    assert [member["name"] for member in selected] == used


def test_the_bundled_detector_has_a_classifier_for_thin_slices_only():
    card = load_card("two-stage")
    thin, thick = (
        {member["name"] for member in select_for_protocol(card, (0.5, 0.5, spacing))["members"]}
        for spacing in (1.0, 3.0)
    )
    assert thin - thick == {"classifier-thin"}
    assert "classifier-1" in thick
    assert "classifier-1" in thin


def test_the_detector_looks_at_a_scan_of_coarse_pixels_once_and_at_a_fine_one_twice(monkeypatch):
    shapes = []

    def see_nothing(_, image):
        shapes.append(image.shape)
        return 0 * image

    monkeypatch.setattr(two_stage, "load_network", lambda *_, **__: None)
    monkeypatch.setattr(two_stage, "predict", see_nothing)
    card = {**make_card(zooms=[1.25]), "views_for": [THICK_FINE]}
    for pixel, looks in ((1.0, 1), (0.5, 2)):
        affine = OBLIQUE @ np.diag([pixel / 0.5, pixel / 0.5, 2, 1])  # slices of 4 mm
        image = Volume(np.full((40, 36, 8), 100, np.float32), affine)
        shapes.clear()
        two_stage.run_two_stage(
            image, Volume(np.ones(image.shape, bool), affine), card, ModelOptions()
        )
        assert len(shapes) == looks
