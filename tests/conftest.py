"""Phantoms and small BIDS datasets that the tests share."""

import json
import shutil

import numpy as np
import pytest
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from bids_cmb import volume
from bids_cmb.simulation import phantom
from bids_cmb.volume import Volume

# As scanned: oblique, flipped (LAS) and anisotropic
OBLIQUE = from_matvec(euler2mat(0.2, -0.1, 0.15) @ np.diag([-0.5, 0.5, 2.0]), [40, -60, -30])


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


@pytest.fixture
def blank():
    """An empty volume on an oblique, flipped, anisotropic grid."""
    return Volume(np.zeros((64, 64, 32), np.float32), OBLIQUE)


@pytest.fixture(scope="session")
def heads(tmp_path_factory):
    """Two scans on disk: one with six microbleeds and thick slices, one with none."""
    folder = tmp_path_factory.mktemp("heads")
    rng = np.random.default_rng(7)
    truth = {}
    for name, bleeds in (("six", 6), ("none", 0)):
        image, _, placed = phantom(rng, bleeds=bleeds, spacing=(1.4, 1.4, 4.0))
        volume.save(image, folder / f"{name}.nii.gz")
        truth[name] = placed
    return folder, truth


@pytest.fixture
def dataset(tmp_path, heads):
    """A maker of BIDS datasets: ``dataset({"sub-01/anat/sub-01_T2starw": "six"})``."""

    def make(scans, sidecar=None):
        root = tmp_path / "raw"
        root.mkdir(exist_ok=True)
        about = {"Name": "Phantoms", "BIDSVersion": "1.11.1", "Authors": ["A", "B"]}
        (root / "dataset_description.json").write_text(json.dumps(about))
        for stem, head in scans.items():
            path = root / f"{stem}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(heads[0] / f"{head}.nii.gz", path)
            path.with_name(f"{path.name[:-7]}.json").write_text(json.dumps(sidecar or {}))
        return root

    return make
