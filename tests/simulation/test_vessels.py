"""Vessels run where anatomy has them."""

import numpy as np
from phantoms import codes_at
from scipy.spatial import cKDTree

from bids_cmb.simulation.geometry import VENTRICULAR
from bids_cmb.simulation.tissue_properties import CSF


def test_the_sagittal_sinus_runs_in_the_midline_of_the_outer_shell(whole, terrain):
    for sources in whole:
        [sinus] = [part for part in sources if part.kind == "superior sagittal sinus"]
        across, along, up = terrain.to_head(sinus.points).T
        assert np.abs(across).max() < 4
        assert np.ptp(along) > 120
        assert up.max() > 40
        assert sinus.radius[0] > sinus.radius[-1]
        assert along[0] < along[-1]  # widest at the back


def test_medullary_veins_stand_upright_on_the_ventricle(whole, askew):
    wall = cKDTree(askew.world(np.argwhere(np.isin(askew.data, VENTRICULAR))))
    gains = []
    for part in (part for sources in whole for part in sources if part.kind == "medullary vein"):
        near, far = wall.query(part.points[[0, -1]])[0]
        length = np.linalg.norm(part.points[-1] - part.points[0])
        gains.append((far - near) / length)
    assert np.median(gains) > 0.75  # 1: straight away from the wall


def test_arteries_run_in_fluid_and_the_basilar_before_the_brainstem(whole, terrain, askew):
    for sources in whole:
        arteries = [part for part in sources if part.kind == "artery"]
        wet = [codes_at(askew, part.points) == CSF for part in arteries]
        assert np.concatenate(wet).mean() > 0.6
        basilar = terrain.to_head(arteries[0].points)
        stem = terrain.to_head(askew.world(np.argwhere(askew.data == 16)))
        for place in basilar:
            level = stem[np.abs(stem[:, 2] - place[2]) < 2]
            assert place[1] > np.median(level[:, 1])


def test_pial_vessels_keep_to_the_surface_of_the_brain(whole, askew, depths):
    within, without = depths
    for sources in whole:
        points = np.concatenate([part.points for part in sources if part.kind == "pial vessel"])
        index = tuple(np.rint(askew.index(points)).astype(int).T)
        assert np.mean((within[index] < 3) & (without[index] < 3.5)) > 0.95
