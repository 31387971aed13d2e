"""Phantoms and small BIDS datasets that the tests share."""

import gc
import shutil
from functools import partialmethod

import numpy as np
import pytest
from bids_datasets import begin_dataset, place_scan
from grids import OBLIQUE
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from phantoms import phantom, stripped
from running import no_other_process, run_on_two_scans
from scipy import ndimage

from bids_cmb.anatomy.labels import build_class_table
from bids_cmb.anatomy.segmentation import decode_anatomy
from bids_cmb.bids.tables import write_table
from bids_cmb.files import write_json
from bids_cmb.imaging import nifti, registration
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks import backend
from bids_cmb.networks.model_cards import load_card
from bids_cmb.simulation.geometry import measure_geometry
from bids_cmb.simulation.head_model import crop
from bids_cmb.simulation.lesion_priors import load_priors
from bids_cmb.simulation.lesions import sample_sources
from bids_cmb.simulation.phantom import make_procedural_head
from bids_cmb.simulation.tissue_properties import CSF, FIRST_EXTRACEREBRAL_CODE

# Else, from the first network on, the memory of each large array goes back to the system and is
# asked for anew: a phantom, a head, its brain and its distances took 16 s of a processor, not 10.5.
backend._set_malloc_threshold = lambda: None

LONG = ("integration", "detection", "simulation")  # folders


def pytest_collection_finish():
    """Let the garbage collector leave alone what libraries and tests have made: an eighth sooner.

    It looked at all of it again and again; of what tests make, it looks less often at the old.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)


def pytest_collection_modifyitems(items):
    """Begin with what takes longest, so that no process has much left when the other is done."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


@pytest.fixture
def rng():
    return np.random.default_rng(20261120)


@pytest.fixture
def blank():
    """An empty volume on an oblique, flipped, anisotropic grid."""
    return Volume(np.zeros((64, 64, 32), np.float32), OBLIQUE)


@pytest.fixture(scope="session")
def made_up():
    """A made-up head; whoever writes into it copies it first."""
    return make_procedural_head(np.random.default_rng(1))


@pytest.fixture(scope="session")
def heads(tmp_path_factory):
    """Scans on disk: a head with six microbleeds and thick slices, one with none, and a ball.

    The ball is a stripped brain in coarse voxels, which the app reads in half a second.
    """
    folder = tmp_path_factory.mktemp("heads")
    rng = np.random.default_rng(7)
    truth = {}
    for name, bleeds in (("six", 6), ("none", 0)):
        image, _, placed = phantom(rng, bleeds=bleeds, spacing=(1.4, 1.4, 4.0))
        nifti.save(image, folder / f"{name}.nii.gz")
        truth[name] = placed
    nifti.save(stripped(3), folder / "ball.nii.gz")
    return folder, truth


@pytest.fixture(scope="session")
def reported(tmp_path_factory, heads):
    """A run with static pages on a scan with six microbleeds and one with none.

    The words of its command line without flags, and its output; whoever writes into it copies it.
    """
    return run_on_two_scans(tmp_path_factory.mktemp("reported"), heads[0])


@pytest.fixture
def one_process():
    """The app reads scans in the process of the test."""
    with no_other_process():
        yield


@pytest.fixture
def in_16_bits():
    """Networks are built in mixed precision, as training does it where there are units for it."""
    import keras  # noqa: PLC0415 - not before the package, which chooses its settings

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.fixture
def few_samples(monkeypatch):
    """Registration looks at a quarter of the voxels: enough for a millimetre, in half the time."""
    monkeypatch.setattr(registration, "MAX_SAMPLES", registration.MAX_SAMPLES // 4)


@pytest.fixture
def dataset(tmp_path, heads):
    """A maker of BIDS datasets: ``dataset({"sub-01/anat/sub-01_T2starw": "six"})``."""

    def make(scans, sidecar=None):
        root = tmp_path / "raw"
        begin_dataset(root, "Phantoms")
        for stem, head in scans.items():
            path = place_scan(root, stem, sidecar or {})
            shutil.copyfile(heads[0] / f"{head}.nii.gz", path)
        return root

    return make


@pytest.fixture(scope="session")
def askew(made_up):
    """The labels of a made-up head, stored mirrored and lying askew in the scanner."""
    head = made_up.labels
    turn = from_matvec(euler2mat(0.1, -0.08, 0.06), [12, -7, 20])
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = head.shape[0] - 1
    return Volume(head.data[::-1], turn @ head.affine @ flip)


@pytest.fixture(scope="session")
def terrain(askew):
    return measure_geometry(askew)


@pytest.fixture(scope="session")
def whole(terrain):
    """All sources of two scans."""
    return [
        sample_sources(np.random.default_rng(seed), load_priors(), terrain) for seed in range(2)
    ]


@pytest.fixture(scope="session")
def depths(askew):
    """Distance in voxels from fluid within tissue, and from tissue within fluid."""
    solid = ~np.isin(askew.data, (0, CSF)) & (askew.data < FIRST_EXTRACEREBRAL_CODE)
    return [ndimage.distance_transform_edt(side) for side in (solid, ~solid)]


@pytest.fixture
def lessons(tmp_path, rng):
    """A maker of small BIDS datasets with their truth: oblique scans with two dark spots each.

    The first spot is a definite microbleed, the second only a possible one.
    """
    return lambda subjects: _write_lessons(tmp_path, subjects, rng)


@pytest.fixture(scope="session")
def two_lessons(tmp_path_factory):
    """Such a dataset of two scans; nobody writes into it."""
    rng = np.random.default_rng(20261120)
    return _write_lessons(tmp_path_factory.mktemp("lessons"), 2, rng)


@pytest.fixture
def unfitted(monkeypatch):
    """Training draws a batch and its validation, if any, and learns nothing: the shapes of both."""
    from bids_cmb.training import loop, progress  # noqa: PLC0415

    drawn = []

    def run(course):
        exam = course.batches.validation[0].shape[1:] if course.batches.validation else None
        drawn.append((course.batches.draw(0, 0)[0].shape[1:], exam))
        row = dict.fromkeys((*progress.COLUMNS, "steps_s", "waited_s"), 1)
        course.progress.rows.append(row)
        return "epochs"

    monkeypatch.setattr(loop.TrainingLoop, "run", run)
    return drawn


@pytest.fixture
def eagerly(monkeypatch):
    """Training takes its steps one operation after the other: for a few steps no graph is built."""
    import keras  # noqa: PLC0415

    compiled = partialmethod(keras.Model.compile, run_eagerly=True)
    monkeypatch.setattr(keras.Model, "compile", compiled)


def _write_lessons(root, subjects, rng):
    write_json(root / "dataset_description.json", {"Name": "N", "BIDSVersion": "1.9.0"})
    for number in range(1, subjects + 1):
        _lesson(root, f"sub-{number:02d}", rng)
    return root


def _lesson(root, subject, rng):
    shape, labels = (96, 112, 36), np.zeros((96, 112, 36), np.uint16)
    data = rng.normal(100, 2, shape).astype(np.float32)
    for index, (x, y, z) in {1: (50, 50, 18), 2: (40, 70, 14)}.items():
        spot = (slice(x - 2, x + 3), slice(y - 2, y + 3), slice(z, z + 1))
        data[spot], labels[spot] = 20, index
    brain = np.zeros(shape, np.uint16)
    brain[8:-8, 8:-8, 4:-4] = 1
    nifti.save(Volume(data * brain, OBLIQUE), root / subject / f"anat/{subject}_T2starw.nii.gz")
    stem = root / "derivatives" / "truth" / subject / "anat" / f"{subject}_space-orig"
    for name, codes in (
        ("seg-CMB_desc-truth_dseg", labels),
        ("label-brain_desc-truth_mask", brain),
        ("seg-structures_desc-truth_dseg", np.where(brain, 2, 0)),
    ):
        place = stem.with_name(f"{stem.name}_{name}.nii.gz")
        nifti.save(Volume(codes, OBLIQUE), place, dtype=np.uint16)
    rows = [{"index": 1, "certainty": "definite"}, {"index": 2, "certainty": "possible"}]
    write_table(stem.with_name(f"{stem.name}_seg-CMB_desc-truth_dseg.tsv"), rows[0], rows)


@pytest.fixture(scope="session")
def known(made_up):
    """A made-up head, nodding and turned, and the answer that a faultless network would give."""
    classes = load_card("anatomy")["classes"]
    head = crop(made_up.labels)
    turn = from_matvec(euler2mat(0.06, -0.08, 0.1), [12, -7, 20])
    codes = Volume(head.data[::2, ::2, ::2], turn @ head.affine @ np.diag([2, 2, 2, 1]))
    table = build_class_table(classes)
    chances = 255 * np.eye(table.count + 1, dtype=np.uint8)[table.classes[codes.data]]
    chances[..., -1] = 255 * table.sides[codes.data]
    return codes, chances


@pytest.fixture(scope="session")
def anatomy(known):
    """What lies where in that head."""
    codes, chances = known
    return decode_anatomy(chances, codes.affine, load_card("anatomy")["classes"])
