"""Networks in one process for all workers predict what one's own do."""

import numpy as np
import pytest

from bids_cmb.networks import sharing
from bids_cmb.networks.inference import predict
from bids_cmb.networks.loading import (
    describe_computation,
    load_network,
    load_patch_model,
)
from bids_cmb.networks.model_cards import load_card, locate_weights
from bids_cmb.networks.sharing import share_networks, should_share


@pytest.fixture(scope="module")
def members():
    """The member of each builder of the default detector, and where its weights are."""
    card = load_card("two-stage")
    return {
        member["builder"]: (member, locate_weights("two-stage", member, None))
        for member in card["members"]
    }


def test_an_image_is_predicted_alike_with_a_mask_and_without(members, rng):
    image = rng.normal(1, 0.3, (32, 48, 8)).astype(np.float32)
    own = load_network(*members["unet"])
    with share_networks(shared=True):
        other = load_network(*members["unet"])
        assert other is not own
        assert (other.name, other.multiple, other.flips) == (own.name, own.multiple, own.flips)
        np.testing.assert_array_equal(predict(other, image), predict(own, image))
        np.testing.assert_array_equal(predict(other, image, image > 1), predict(own, image))


def test_patches_are_classified_alike_from_several_inputs(members, rng):
    member, path = members["classifier"]
    shape, places = member["arguments"]["shape"], member["arguments"]["places"]
    inputs = [
        rng.normal(1, 0.3, (4, *shape, 3)).astype(np.float32),
        rng.normal(0, 1, (4, places)).astype(np.float32),
    ]
    own = load_patch_model(member, path)(*inputs)
    with share_networks(shared=True):
        np.testing.assert_array_equal(load_patch_model(member, path)(*inputs), own)


def test_weights_that_are_not_those_of_the_card_are_refused_as_always(members):
    member, path = members["unet"]
    with share_networks(shared=True) as service:
        with pytest.raises(ValueError, match=r"npz"):
            load_network({**member, "sha256": "0" * 64}, path)
        assert describe_computation()[1] in ("openvino", "tensorflow")
        assert service.n_requests == 2


def test_networks_are_shared_where_a_gpu_would_have_several_users(monkeypatch):
    monkeypatch.setattr(sharing, "may_have_gpu", lambda: True)
    assert should_share("auto", 2)
    assert not should_share("auto", 1)
    assert not should_share("off", 2)
    monkeypatch.setattr(sharing, "may_have_gpu", lambda: False)
    assert not should_share("auto", 2)
    assert should_share("on", 1)
