"""Grids that tests share."""

import numpy as np
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

OBLIQUE = from_matvec(euler2mat(0.2, -0.1, 0.15) @ np.diag([-0.5, 0.5, 2.0]), [40, -60, -30])


def oblique(spacing=(-0.5, 0.6, 3.0), degrees=20.0, origin=(31.0, -47.0, 12.0)):
    """Make the affine of slices that are turned about the left–right axis."""
    a = np.radians(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    return from_matvec(turn @ np.diag(spacing), origin)
