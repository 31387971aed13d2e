"""Lobes from TemplateFlow's Harvard-Oxford atlas: a phantom of it in a local archive."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bids_cmb.anatomy import Anatomy
from bids_cmb.mars import by_label, table
from bids_cmb.templates import lobes_of
from bids_cmb.volume import Volume, save

NAME = "tpl-MNI152NLin2009cAsym_res-01_atlas-HOCPAL_desc-th25_dseg.nii.gz"
AFFINE = np.array([[1.0, 0, 0, -96], [0, 1, 0, -132], [0, 0, 1, -78], [0, 0, 0, 1]])
SEEDS = {  # a parcel of each lobe (Harvard-Oxford) and a place in MNI, mm, on the left
    "frontal": (1, (-30, 50, 15)),
    "parietal": (17, (-30, -55, 55)),
    "temporal": (9, (-60, -15, -10)),
    "occipital": (48, (-20, -98, 5)),
    "insula": (2, (-38, 5, 0)),
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """An archive with the atlas alone: a ball of each parcel, left and right."""
    home = tmp_path_factory.mktemp("templateflow")
    folder = home / "tpl-MNI152NLin2009cAsym"
    folder.mkdir()
    (folder / "template_description.json").write_text('{"Name": "phantom"}')
    data = np.zeros((193, 229, 193), np.int16)
    grid = np.stack(np.meshgrid(*map(np.arange, data.shape), indexing="ij"), -1) + AFFINE[:3, 3]
    for parcel, place in SEEDS.values():
        for side, label in ((1, 2 * parcel - 1), (-1, 2 * parcel)):
            away = np.linalg.norm(grid - np.array(place) * [side, 1, 1], axis=-1)
            data[away < 8] = label
    save(Volume(data, AFFINE), folder / NAME, dtype=np.int16)
    return home


def asked(home, **more):
    """What `find_lobes` says in a process of its own: the client looks when it is imported."""
    code = "from bids_cmb.templates import find_lobes; print(find_lobes())"
    env = {**os.environ, "TEMPLATEFLOW_HOME": str(home), **more}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


def test_the_atlas_is_found_by_its_entities_in_an_archive(archive):
    before = sorted(archive.rglob("*"))
    assert asked(archive) == str(archive / "tpl-MNI152NLin2009cAsym" / NAME)
    assert sorted(archive.rglob("*")) == before


def test_without_an_archive_there_are_no_lobes_and_nothing_is_made(tmp_path):
    assert asked(tmp_path / "none") == "None"
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    assert asked(tmp_path / "empty") == "None"
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_placeholder_of_the_skeleton_is_no_atlas(tmp_path):
    folder = tmp_path / "tpl-MNI152NLin2009cAsym"
    folder.mkdir()
    (folder / NAME).touch()
    assert asked(tmp_path) == "None"


def test_lobes_are_the_nearest_of_the_atlas_left_and_right(anatomy, archive):
    """The made-up head lies in MNI space by its own midline; each seed's place has its lobe."""
    to_mni = np.linalg.inv(anatomy.structures.affine)
    to_mni = AFFINE @ np.diag([2, 2, 2, 1]) @ to_mni  # voxels of the head onto the template's
    known = Anatomy(anatomy.structures, anatomy.brain, anatomy.midline, to_mni, 1.0)
    found = lobes_of(known, archive / "tpl-MNI152NLin2009cAsym" / NAME)
    tissue = np.isin(anatomy.structures.data, [2, 41, 3, 42])
    assert np.array_equal(found > 0, tissue)
    places = {name: np.array(place) for name, (_, place) in SEEDS.items()}
    voxels = np.argwhere(tissue)[::97]
    mni = voxels * 2 + AFFINE[:3, 3]
    for voxel, at in zip(voxels, mni, strict=True):
        away = {
            name: min(np.linalg.norm(at - place * [side, 1, 1]) for side in (1, -1))
            for name, place in places.items()
        }
        (first, near), (_, next_near) = sorted(away.items(), key=lambda one: one[1])[:2]
        if next_near - near > 4:  # mm; nearer, a voxel of the atlas decides
            assert by_label()[int(found[tuple(voxel)])][0] == first


def test_an_archive_is_looked_at_once_in_a_process_and_each_archive_for_itself(archive):
    code = """
import os
from pathlib import Path
from bids_cmb.templates import find_lobes
first = find_lobes()
Path(str(first)).rename("atlas-elsewhere.nii.gz")
again = find_lobes()
Path("atlas-elsewhere.nii.gz").rename(first)
os.environ["TEMPLATEFLOW_HOME"] = "nowhere"
print(again == first, find_lobes())
"""
    env = {**os.environ, "TEMPLATEFLOW_HOME": str(archive)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True,
        cwd=archive,
    )  # fmt: skip
    assert ran.stdout.split() == ["True", "None"]


def test_without_a_way_to_mni_there_are_no_lobes(anatomy, archive):
    lost = Anatomy(anatomy.structures, anatomy.brain, anatomy.midline, None, None)
    assert lobes_of(lost, archive / "tpl-MNI152NLin2009cAsym" / NAME) is None


def test_the_seeds_are_parcels_of_their_lobes():
    assert all(parcel in table()["harvard_oxford"][name] for name, (parcel, _) in SEEDS.items())
    assert Path(NAME).name.startswith("tpl-MNI152NLin2009cAsym_res-01_atlas-HOCPAL")
