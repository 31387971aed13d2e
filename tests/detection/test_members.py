"""Maps of networks come back to the scan."""

import numpy as np
from grids import oblique

from bids_cmb.detection.members import resample_around
from bids_cmb.imaging.resampling import resample_to_scan
from bids_cmb.imaging.volume import Volume

REACH_MM = 2.5


def test_around_positions_a_map_is_what_it_is_everywhere(rng):
    scan = Volume(np.zeros((40, 36, 9), np.float32), oblique())
    coarse = Volume(rng.random((22, 20, 12), np.float32), scan.affine @ np.diag([2, 2, 0.8, 1]))
    corner, beyond = scan.world(np.array([[0, 0, 0], [39, 60, 4]]))
    positions = np.array([*scan.world(rng.uniform(5, [30, 30, 7], (3, 3))), corner, beyond])
    everywhere = resample_to_scan(coarse, scan).data
    around = resample_around(coarse, scan, positions, REACH_MM)
    assert around.shape == scan.shape
    for position in positions[:-1]:
        box, near = scan.find_ball(position, REACH_MM)
        np.testing.assert_allclose(around[box][near], everywhere[box][near], atol=1e-5)
    assert np.count_nonzero(around) < np.count_nonzero(everywhere) / 2
