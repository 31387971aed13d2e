"""The card of a network gives its grid, or is refused in a sentence."""

import pytest

from bids_cmb.imaging.grid import Grid


def test_one_number_stands_for_three_and_null_for_the_scan():
    assert Grid.from_card({"spacing": 1, "multiple": 16}) == Grid(
        spacing=(1, 1, 1), multiple=(16, 16, 16)
    )
    assert Grid.from_card({"spacing": None}).spacing == (None, None, None)
    assert Grid.from_card({}) == Grid()


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        ({"spacin": 1, "b": 2}, r"may hold spacing, axes, .*masked\. Received: b, spacin\."),
        ({"spacing": 0}, r"`spacing` .* above 0, .* Received: \(0, 0, 0\)\."),
        ({"spacing": [1, 1]}, r"`spacing` .* three sizes in mm .* Received: \(1, 1\)\."),
        ({"spacing": "1 mm"}, "`spacing` .* three sizes in mm"),
        ({"finest": 0}, r"`finest` .* a size in mm above 0, or null\. Received: 0\."),
        ({"axes": "LPS"}, r"`axes` .* `ras` or `slices`\. Received: 'LPS'\."),
        ({"conform": [256, 256]}, "`conform` .* three numbers of voxels, or null"),
        ({"shape": [160, 214, 17.6]}, "`shape` .* three numbers of voxels, or null"),
        ({"multiple": 0}, r"`multiple` .* three numbers of voxels\. Received: \(0, 0, 0\)\."),
        ({"margin": -1}, r"`margin` .* 0 mm or more, or null\. Received: -1\."),
        ({"margin": float("nan")}, "`margin` .* Received: nan"),
        ({"shape": [8, 8, 8], "headroom": True}, "`headroom` .* Received: True"),
        ({"order": 2}, r"`order` .* 0, 1 or 3\. Received: 2\."),
        ({"intensity": "minmax"}, r"`intensity` .* one of shiva, .*none\. Received: 'minmax'\."),
        ({"intensity": ["shiva"]}, "`intensity` .* Received: \\('shiva',\\)"),
        ({"masked": "yes"}, r"`masked` .* true or false\. Received: 'yes'\."),
        ({"conform": [256] * 3}, "`conform` .* needs a `spacing` .* Received: spacing="),
        ({"shape": [8] * 3, "margin": 2}, "`shape` .* nothing for .* Received: margin=2"),
        ({"headroom": 5}, "`headroom` .* needs a `shape`.* Received: headroom=5"),
    ],
)
def test_a_card_with_a_mistake_is_refused_in_a_sentence(card, sentence):
    with pytest.raises(ValueError, match=sentence):
        Grid.from_card(card)
