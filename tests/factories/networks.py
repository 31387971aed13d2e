"""What tests do with the weights of networks."""

import keras

from bids_cmb.networks.weights import write_weights


def weights_of(model):
    """The arrays of a network by their paths."""
    return {each.path: keras.ops.convert_to_numpy(each.value) for each in model.weights}


def write_member(model, path, builder, arguments, **more):
    """Write the weights of a network, and give what a card says of it."""
    digest = write_weights(path, weights_of(model), dtype="float32")
    return {
        "name": builder, "builder": builder, "arguments": arguments, "weights": path.name,
        "sha256": digest, **more,
    }  # fmt: skip


def check_folds(unfitted, *folds):
    """Each of two subjects was left out in turn, and judged what the other had taught."""
    for entries in folds:
        assert [entry["left_out"] for entry in entries] == [("sub-01",), ("sub-02",)]
        assert all(entry["training"]["data"].startswith("1 scans") for entry in entries)
    assert len(unfitted) == 2 * len(folds)
    assert all(lesson == exam for lesson, exam in unfitted)
