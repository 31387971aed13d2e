"""Weights are numbers in a file that nobody has changed; anything else is refused."""

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest

from bids_cmb.networks.model_cards import DETECTION, list_cards, load_card
from bids_cmb.networks.weights import check_weights, describe_models, read_weights, write_weights

ARRAYS = {"b/kernel": np.linspace(-2, 2, 24).reshape(2, 3, 4), "a/bias": np.arange(3.0)}


def test_what_is_written_comes_back_to_half_precision(tmp_path):
    digest = write_weights(tmp_path / "w.npz", ARRAYS)
    found = read_weights(tmp_path / "w.npz", digest)
    assert {name: array.dtype for name, array in found.items()} == dict.fromkeys(ARRAYS, "float32")
    for name, array in ARRAYS.items():
        np.testing.assert_allclose(found[name], array, atol=1e-3)


def test_the_same_weights_are_the_same_bytes_whenever_they_are_written(tmp_path):
    first = write_weights(tmp_path / "1.npz", ARRAYS)
    again = write_weights(tmp_path / "2.npz", dict(reversed(ARRAYS.items())))
    assert first == again == hashlib.sha256((tmp_path / "2.npz").read_bytes()).hexdigest()


def test_one_altered_byte_is_noticed(tmp_path):
    path = tmp_path / "w.npz"
    digest = write_weights(path, ARRAYS)
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"w.npz: weights must have the checksum of their model"):
        read_weights(path, digest)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"w.npz: the weights that a model card names must be"):
        read_weights(tmp_path / "w.npz", "0")


def pickled():
    file = io.BytesIO()
    np.savez(file, a=np.array([{"run": "me"}], object))
    return file.getvalue()


def integers():
    file = io.BytesIO()
    np.savez(file, a=np.arange(3))
    return file.getvalue()


def bomb():
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed,
        packed.open("a.npy", "w", force_zip64=True) as entry,
    ):
        for _ in range(1040):
            entry.write(bytes(2**20))
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all", pickled(), integers(), bomb()])
def test_anything_but_numbers_is_refused_and_not_run(tmp_path, content):
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"w.npz: weights must be a zip of float16 or float32"):
        read_weights(tmp_path / "w.npz")


def test_numbers_that_half_precision_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Weights must be finite as float16; a is not"):
        write_weights(tmp_path / "w.npz", {"a": np.array([1e6])})
    assert not (tmp_path / "w.npz").exists()


def test_every_weight_of_the_package_is_the_one_on_its_card():
    for name in list_cards():
        check_weights(name, load_card(name))


def test_the_list_of_models_says_what_is_wrong(tmp_path):
    member = (
        '{"name": "a", "builder": "unet", "arguments": {}, "grid": {"spacing": 1}, '
        '"weights": "w.npz", "sha256": "0"}'
    )
    (tmp_path / "mine.json").write_text(
        f'{{"name": "mine", "task": "{DETECTION}", "description": "D.", "threshold": 0.5, '
        f'"definite_threshold": 0.9, "min_volume_mm3": 1, "members": [{member}]}}'
    )
    (tmp_path / "odd.json").write_text("[]")
    said = describe_models(tmp_path)
    assert "member a: unet, voxels of 1 mm" in said
    assert "the weights that a model card names must be there" in said
    assert "odd: " in said
    assert "checksum as on the card" in said  # of those in the package


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_of_the_user_are_finite_numbers_before_any_scan_is_read(tmp_path, number):
    """The checksum of a card says that they are the maker's, not that they are numbers."""
    np.savez(tmp_path / "w.npz", a=np.array([1, number], np.float32))
    member = {
        "name": "a", "builder": "unet", "arguments": {}, "grid": {}, "weights": "w.npz",
        "sha256": hashlib.sha256((tmp_path / "w.npz").read_bytes()).hexdigest(),
    }  # fmt: skip
    said = {
        "name": "mine", "task": DETECTION, "description": "Mine.", "threshold": 0.5,
        "definite_threshold": 0.9, "min_volume_mm3": 1, "members": [member],
    }  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps(said))
    with pytest.raises(
        ValueError, match=r"w\.npz: weights must be .* found a number in a that is not"
    ):
        check_weights("mine", load_card("mine", tmp_path), tmp_path)
