"""Distances and axes of a head are those that its labels have in the world."""

import numpy as np
import pytest

from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.geometry import measure_geometry
from bids_cmb.simulation.tissue_properties import CSF


def test_the_axes_of_a_head_turn_with_it(terrain, askew):
    # The made-up head looks straight ahead before it is turned; it is stored mirrored.
    turn = askew.affine[:3, :3] * [-1, 1, 1]
    np.testing.assert_allclose(terrain.axes @ turn, np.eye(3), atol=0.12)
    np.testing.assert_allclose(terrain.axes @ terrain.axes.T, np.eye(3), atol=1e-6)
    place = terrain.to_world(10, 20, -30)
    np.testing.assert_allclose(terrain.to_head(place[None]), [[10, 20, -30]], atol=1e-9)


def test_depths_are_measured_in_millimetres_of_the_world(terrain, askew):
    index = np.array(np.unravel_index(terrain.pial_depth.data.argmax(), terrain.pial_depth.shape))
    deepest, depth = terrain.pial_depth.world(index), terrain.pial_depth.data.max()
    fluid = askew.world(np.argwhere((askew.data == CSF) | (askew.data >= 500)))
    nearest = np.linalg.norm(fluid - deepest, axis=1).min()
    assert depth == pytest.approx(nearest, abs=1.5)


@pytest.mark.parametrize(("gone", "named"), [((13,), "left pallidum"), ((16,), "brainstem")])
def test_a_head_without_a_structure_is_refused_by_its_name(askew, gone, named):
    data = np.where(np.isin(askew.data, gone), 2, askew.data)
    with pytest.raises(ValueError, match=rf"needs both halves .* missing: {named}\."):
        measure_geometry(Volume(data, askew.affine))


def test_a_head_without_the_fluid_around_the_brain_is_refused_with_what_it_has(askew):
    data = np.where(askew.data == CSF, 0, askew.data)
    with pytest.raises(ValueError, match=r"\(code 24\), at least 5 % .*; found 0\.0 %\."):
        measure_geometry(Volume(data, askew.affine))
