"""Lobes and nuclei from TemplateFlow's atlases: phantoms of them in a local archive."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bids_cmb.anatomy.atlases import Atlases, find_parcel, map_capsule, map_lobes
from bids_cmb.anatomy.mars import RIGHT_OFFSET, find_label, index_regions, load_mars_table
from bids_cmb.anatomy.region_map import build_region_map
from bids_cmb.anatomy.segmentation import Anatomy
from bids_cmb.imaging.nifti import save
from bids_cmb.imaging.volume import Volume

NAME = "tpl-MNI152NLin2009cAsym_res-01_atlas-HOCPAL_desc-th25_dseg.nii.gz"
MASSP = "tpl-MNI152NLin2009cAsym_res-01_atlas-MASSP20_dseg.nii.gz"
NUCLEI = {  # labels left and right of MASSP 2.0, where they lie on the left, mm, and how thick
    "internal capsule": (21, 22, (-20, -2, 6), 8),
    "substantia nigra": (5, 6, (-10, -17, -11), 4),
    "claustrum": (30, 31, (-33, 2, 2), 3),
    "dentate gyrus": (46, 47, (-30, -25, -12), 4),
    "lateral ventricle": (15, 16, (-10, 5, 14), 5),
}
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
    """An archive with the atlases alone: a ball of each parcel or nucleus, left and right."""
    home = tmp_path_factory.mktemp("templateflow")
    folder = home / "tpl-MNI152NLin2009cAsym"
    folder.mkdir()
    (folder / "template_description.json").write_text('{"Name": "phantom"}')
    data = np.zeros((193, 229, 193), np.int16)
    for parcel, place in SEEDS.values():
        for side, label in ((1, 2 * parcel - 1), (-1, 2 * parcel)):
            paint(data, np.array(place) * [side, 1, 1], 8, label)
    save(Volume(data, AFFINE), folder / NAME, dtype=np.int16)
    data = np.zeros(data.shape, np.int16)
    for left, right, place, radius in NUCLEI.values():
        for side, label in ((1, left), (-1, right)):
            paint(data, np.array(place) * [side, 1, 1], radius, label)
    save(Volume(data, AFFINE), folder / MASSP, dtype=np.int16)
    return home


def paint(data, place, radius, label):
    """Paint a ball about a place in mm, within the grid."""
    middle = np.array(place) - AFFINE[:3, 3]
    low = np.maximum(middle - radius, 0).astype(int)
    box = tuple(map(slice, low, np.ceil(middle + radius + 1).astype(int)))
    index = np.indices(data[box].shape) + low[:, None, None, None]
    data[box][np.linalg.norm(index - middle[:, None, None, None], axis=0) < radius] = label


@pytest.fixture
def atlases(archive):
    folder = archive / "tpl-MNI152NLin2009cAsym"
    return Atlases(folder / NAME, folder / MASSP)


def asked(home, **more):
    """What `find_atlases` says in a process of its own: the client looks when it is imported."""
    code = "from bids_cmb.anatomy import atlases; print(*atlases.find_atlases().paths or ['None'])"
    env = {**os.environ, "TEMPLATEFLOW_HOME": str(home), **more}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


def test_the_atlases_are_found_by_their_entities_in_an_archive(archive):
    before = sorted(archive.rglob("*"))
    folder = archive / "tpl-MNI152NLin2009cAsym"
    assert asked(archive).split() == [str(folder / NAME), str(folder / MASSP)]
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
    found = map_lobes(known, archive / "tpl-MNI152NLin2009cAsym" / NAME)
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
            assert index_regions()[int(found[tuple(voxel)])][0] == first


def test_an_archive_is_looked_at_once_in_a_process_and_each_archive_for_itself(archive):
    code = """
import os
from pathlib import Path
from bids_cmb.anatomy.atlases import find_atlases
first = find_atlases().lobes
first.rename("atlas-elsewhere.nii.gz")
again = find_atlases().lobes
Path("atlas-elsewhere.nii.gz").rename(first)
os.environ["TEMPLATEFLOW_HOME"] = "nowhere"
print(again == first, find_atlases().lobes)
"""
    env = {**os.environ, "TEMPLATEFLOW_HOME": str(archive)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True,
        cwd=archive,
    )  # fmt: skip
    assert ran.stdout.split() == ["True", "None"]


def test_without_a_way_to_mni_there_are_no_lobes(anatomy, archive):
    lost = Anatomy(anatomy.structures, anatomy.brain, anatomy.midline, None, None)
    assert map_lobes(lost, archive / "tpl-MNI152NLin2009cAsym" / NAME) is None


@pytest.mark.parametrize("side", [1, -1])
def test_a_lobar_lesion_has_the_name_of_the_nearest_parcel_of_its_lobe(atlases, side):
    names = load_mars_table()["harvard_oxford_names"]
    for lobe, (parcel, place) in SEEDS.items():
        mni = np.array(place) * [side, 1, 1] + [0, 0, 10]  # 2 mm beside the ball
        assert find_parcel(mni, "lobar", lobe, atlases) == names[parcel - 1]
        assert find_parcel(mni, "lobar", None, atlases) == names[parcel - 1]
        other = "occipital" if lobe == "frontal" else "frontal"
        assert find_parcel(mni, "lobar", other, atlases) is None


@pytest.mark.parametrize("side", [1, -1])
def test_a_deep_lesion_has_the_name_of_the_nucleus_within_3_mm(atlases, side):
    for name, (_, _, place, radius) in NUCLEI.items():
        for beyond, said in ((0, name), (radius + 1.5, name), (radius + 4.5, None)):
            mni = np.array(place) * [side, 1, 1] + [0, 0, -beyond]
            found = find_parcel(mni, "deep", None, atlases)
            assert found == (None if name == "lateral ventricle" else said)


def test_without_the_atlas_or_the_place_there_is_no_name(atlases):
    assert find_parcel((-20, -2, 6), "deep", None, Atlases(lobes=atlases.lobes)) is None
    assert find_parcel((-30, 50, 15), "lobar", None, Atlases(nuclei=atlases.nuclei)) is None
    assert find_parcel(None, "deep", None, atlases) is None
    assert find_parcel((-20, -2, 6), None, None, atlases) is None


def test_deep_white_matter_that_the_atlas_calls_internal_capsule_is_that(anatomy, atlases):
    to_mni = AFFINE @ np.diag([2, 2, 2, 1]) @ np.linalg.inv(anatomy.structures.affine)
    known = Anatomy(anatomy.structures, anatomy.brain, anatomy.midline, to_mni, 1.0)
    capsule = map_capsule(known, atlases.nuclei)
    white = np.isin(anatomy.structures.data, [2, 41])
    voxels = np.argwhere(white)
    mni = voxels * 2 + AFFINE[:3, 3]
    for side in (1, -1):
        away = np.linalg.norm(mni - np.array([-20 * side, -2, 6]), axis=1)
        inside = capsule[tuple(voxels.T)]
        assert inside[away < 6.5].all()
    assert not (capsule & ~white).any()
    before, after = (
        build_region_map(known).data % RIGHT_OFFSET,
        build_region_map(known, None, capsule).data % RIGHT_OFFSET,
    )
    changed = before != after
    assert set(np.unique(after[changed])) <= {find_label("internal capsule")}
    deep = {find_label(name) for name in ("deep white matter", "external capsule")}
    assert set(np.unique(before[changed])) <= deep
    assert (
        map_capsule(
            Anatomy(*[anatomy.structures, anatomy.brain, anatomy.midline, None, None]),
            atlases.nuclei,
        )
        is None
    )


def test_the_seeds_are_parcels_of_their_lobes():
    assert all(
        parcel in load_mars_table()["harvard_oxford"][name] for name, (parcel, _) in SEEDS.items()
    )
    assert Path(NAME).name.startswith("tpl-MNI152NLin2009cAsym_res-01_atlas-HOCPAL")
