"""Scans of a block of tissue with dark spots of known shape."""

import numpy as np
from nibabel.affines import from_matvec

from bids_cmb.imaging.volume import Volume

SPACING = np.array([0.6, 0.5, 3.0])  # mm
SHAPE = (76, 88, 11)
MIDDLE = np.array([38, 44, 5])
TILT = np.array([[0.96, 0.28, 0], [-0.28, 0.96, 0], [0, 0, 1]])
AFFINE = from_matvec(TILT @ np.diag([-1, 1, -1] * SPACING), [12, -34, 56])  # oblique, flipped


def position():
    return (np.moveaxis(np.indices(SHAPE), 0, -1) - MIDDLE) * SPACING


def ball(diameter, centre=(0, 0, 0)):
    away = np.linalg.norm(position() - centre, axis=-1)
    return 0.5 - 0.5 * np.tanh((away - diameter / 2) / 0.3)


def tube(diameter, slices):
    where = position()
    round_ = 0.5 - 0.5 * np.tanh((np.hypot(where[..., 0], where[..., 1]) - diameter / 2) / 0.3)
    return round_ * (np.abs(where[..., 2]) < slices * SPACING[2] / 2)


def brain():
    inside = np.zeros(SHAPE, bool)
    inside[10:-10, 10:-10, 1:-1] = True
    return Volume(inside, AFFINE)


def scan(*things):
    """Tissue of brightness 300 with 2 % noise; each (shape, part of the signal lost) drawn in."""
    data = brain().data * (1 + 0.02 * np.random.default_rng(3).standard_normal(SHAPE))
    for shape, loss in things:
        data = data * (1 - loss * shape)
    return Volume((300 * data).astype(np.float32), AFFINE)
