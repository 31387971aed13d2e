"""Grids that tests share."""

import numpy as np
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

OBLIQUE = from_matvec(euler2mat(0.2, -0.1, 0.15) @ np.diag([-0.5, 0.5, 2.0]), [40, -60, -30])
