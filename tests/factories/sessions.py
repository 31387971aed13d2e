"""Small heads that are scanned several times: the same texture and spots, lying otherwise."""

import numpy as np
from bids_datasets import begin_dataset, place_scan
from nibabel.affines import apply_affine, from_matvec
from nibabel.eulerangles import euler2mat
from scipy import ndimage

from bids_cmb.imaging import nifti
from bids_cmb.imaging.volume import Volume

RADIUS_MM = 62.0
NODE_MM = 3.0
SPOT_MM = 2.6  # radius of a dark spot
SPACING = (2.0, 2.0, 4.0)
COARSE = {"spacing": (3.0, 3.0, 5.0), "node_mm": 6.0}  # what the app reads in half the time
TURNED = from_matvec(euler2mat(0.12, -0.08, 0.15), [7.0, -9.0, 5.0])


def texture(person, node_mm):
    """The texture of a person's brain, on a lattice around the origin."""
    rng = np.random.default_rng(person)
    nodes = 2 * int(RADIUS_MM / node_mm) + 9
    return ndimage.gaussian_filter(rng.standard_normal((nodes,) * 3), 1.0)


def scanned(person, spots, *, motion=None, noise=1, spacing=SPACING, node_mm=NODE_MM, loss=0.8):
    """A person's stripped brain as a scan shows it, oblique and flipped.

    Args:
        person: Seed of the texture.
        spots: Centres of dark spots in the person's brain, mm.
        motion: The brain's world mm to the scanner's, rigid.
        noise: Seed of the noise.
        spacing: Voxel size in mm, slices last.
        node_mm: Between the nodes of the texture.
        loss: Share of the signal that is lost in each spot, or one for all.
    """
    motion = np.eye(4) if motion is None else motion
    shape = np.ceil(150 / np.array(spacing)).astype(int)
    turn = euler2mat(0.1, -0.1, 0.05) @ np.diag([-1, 1, 1] * np.array(spacing))
    centre = motion[:3, 3]
    affine = from_matvec(turn, centre - turn @ ((shape - 1) / 2))
    image = Volume(np.zeros(shape, np.float32), affine)
    world = image.world(np.argwhere(np.ones(shape)))
    inside = apply_affine(np.linalg.inv(motion), world)
    lattice = texture(person, node_mm)
    nodes = inside / node_mm + (np.array(lattice.shape) - 1) / 2
    shade = ndimage.map_coordinates(lattice, nodes.T, order=1, mode="nearest")
    data = 300 * (1 + 0.8 * shade)
    for spot, lost in zip(spots, np.broadcast_to(loss, len(spots)), strict=True):
        distance = np.linalg.norm(inside - spot, axis=1)
        data *= 1 - lost / (1 + np.exp((distance - SPOT_MM) / 0.4))
    data += np.random.default_rng(noise).normal(0, 5, len(data))
    data[np.linalg.norm(inside, axis=1) > RADIUS_MM] = 0
    return Volume(np.maximum(data, 0).reshape(shape).astype(np.float32), affine)


def write_sessions(root, scans, **tables):
    """Write a BIDS dataset of scans by stem, and tables by path."""
    begin_dataset(root, "Sessions")
    for stem, image in scans.items():
        sidecar = {"EchoTime": 0.02, "MagneticFieldStrength": 3}
        nifti.save(image, place_scan(root, stem, sidecar))
    for path, text in tables.items():
        (root / path).write_text(text)
    return root
