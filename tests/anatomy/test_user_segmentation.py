"""A user's own segmentation in FreeSurfer's codes does what the network does."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from nibabel.eulerangles import euler2mat
from phantoms import T1W, T2STAR, painted

from bids_cmb.anatomy.mars import index_regions, load_mars_table
from bids_cmb.anatomy.mni_fit import format_itk_affine
from bids_cmb.anatomy.segmentation import locate_structures
from bids_cmb.anatomy.user_segmentation import (
    OUTER_CODES,
    describe_unknown_codes,
    load_segmentation,
    register_segmentation,
    transform_anatomy,
)
from bids_cmb.imaging.nifti import load_labels, save
from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.model_cards import load_card
from bids_cmb.simulation.tissue_properties import is_brain

CLASSES = load_card("anatomy")["classes"]


def unknown_codes(path):
    return describe_unknown_codes(load_labels(path), path, CLASSES)


@pytest.fixture
def stored(known, tmp_path):
    """A maker of files: the made-up head's codes, changed."""

    def make(change=lambda codes: codes):
        codes = known[0]
        path = tmp_path / "aseg.nii.gz"
        save(Volume(change(codes.data.astype(np.int32)), codes.affine), path, dtype=np.int32)
        return path

    return make


def test_structures_and_sides_are_those_of_the_file(anatomy, stored):
    found, lobes = load_segmentation(stored(), CLASSES)
    assert lobes is None
    assert (found.structures.data == anatomy.structures.data).mean() > 0.995
    np.testing.assert_allclose(found.midline[0], anatomy.midline[0], atol=1e-6)


@pytest.mark.parametrize(
    ("frontal", "occipital", "right", "white"),
    [(1028, 1005, 2028, 41), (11116, 11111, 12116, 14116)],
    ids=["Desikan-Killiany", "a2009s"],
)
def test_parcels_tell_lobes_apart(anatomy, stored, frontal, occipital, right, white):
    """The front half of the left cortex is called superior frontal, the back half cuneus."""

    def parcelled(codes):
        back = np.arange(codes.shape[1])[None, :, None] < codes.shape[1] // 2
        left = codes == 3
        codes = np.where(left & back, occipital, np.where(left, frontal, codes))
        return np.where(codes == 42, right, np.where(codes == 41, white, codes))

    path = stored(parcelled)
    found, lobes = load_segmentation(path, CLASSES)
    assert (found.structures.data == anatomy.structures.data).mean() > 0.995
    left = anatomy.structures.data == 3
    names = {index_regions()[int(code)][0] for code in np.unique(lobes[left])}
    assert names == {"frontal", "occipital"}
    assert (lobes[anatomy.structures.data == 2] > 0).all()
    assert unknown_codes(path) is None


def test_white_parcels_are_white_matter(anatomy, stored):
    """wmparc: 3000 and more on the left, 4000 on the right."""

    def parcelled(codes):
        return np.where(codes == 2, 3028, np.where(codes == 41, 4028, codes))

    found, _ = load_segmentation(stored(parcelled), CLASSES)
    assert (found.structures.data == anatomy.structures.data).mean() > 0.995


def test_white_matter_that_wmparc_leaves_unsegmented_is_white_matter(anatomy, stored):
    def deep(codes):
        return np.where(codes == 2, 5001, np.where(codes == 41, 5002, codes))

    found, _ = load_segmentation(stored(deep), CLASSES)
    assert (found.structures.data == anatomy.structures.data).mean() > 0.995


@pytest.mark.parametrize("table", ["parcels", "parcels_a2009s"])
def test_every_parcel_has_one_lobe(table):
    """Desikan-Killiany numbers 1 to 35; a2009s 1 to 75. DKT has some of the former."""
    members = [parcel for lobe in load_mars_table()[table].values() for parcel in lobe]
    assert sorted(members) == list(range(1, 36 if table == "parcels" else 76))


def test_unknown_codes_are_counted_in_one_sentence(stored):
    def odd(codes):
        return np.where(codes == 10, 99_999, np.where(codes == 49, 7007, codes))

    sentence = unknown_codes(stored(odd))
    assert "2 of its " in sentence
    assert "(7007, 99999; " in sentence
    assert "% of the labelled voxels); they count as outside the brain." in sentence
    assert unknown_codes(stored()) is None


def test_parts_of_structures_belong_to_them(anatomy, stored):
    """Midbrain, pons and medulla; a thalamus under its older name; the left substantia nigra."""

    def parts(codes):
        third = np.digitize(np.arange(codes.shape[2]), [codes.shape[2] // 3, codes.shape[2] // 2])
        stem = np.array([175, 174, 173])[third][None, None]
        codes = np.where(codes == 16, stem, codes)
        return np.where(codes == 10, 9, np.where(codes == 28, 27, codes))

    path = stored(parts)
    found, _ = load_segmentation(path, CLASSES)
    for code in (16, 10, 28):
        mine, theirs = (head.structures.data == code for head in (found, anatomy))
        assert theirs.any() or code == 28
        assert (mine == theirs).mean() > 0.999, code
    assert unknown_codes(path) is None


def test_every_code_is_kept_or_counted_as_unknown_or_known_to_be_no_brain(known, stored):
    """Each code below 15000 in a voxel of white matter of its own."""
    white = np.flatnonzero(known[0].data == 2)[:15_000]

    def scatter(codes):
        codes.ravel()[white] = np.arange(15_000)
        return codes

    path = stored(scatter)
    found, _ = load_segmentation(path, CLASSES)
    lost = np.flatnonzero(found.structures.data.ravel()[white] == 0)
    counted = int(unknown_codes(path).split(": ")[1].split(" of")[0])
    assert counted == len(set(lost.tolist()) - set(OUTER_CODES))


@pytest.mark.parametrize("offset", [0, 1000])
def test_what_synthseg_and_dkt_tell_apart_is_known_and_has_its_lobe(known, stored, offset):
    """SynthSeg's 31 structures and its 34 parcels of each side; DKT leaves out 1, 32 and 33."""
    structures = (2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28)
    right = (41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60)
    parcels = [1000 + offset + parcel for parcel in range(1, 36) if parcel != 4]
    cortex = np.flatnonzero(known[0].data == (42 if offset else 3))
    spots = np.array_split(cortex, len(parcels))

    def parcelled(codes):
        for spot, parcel in zip(spots, parcels, strict=True):
            codes.ravel()[spot] = parcel
        codes.ravel()[: len(structures + right)] = structures + right
        return codes

    path = stored(parcelled)
    _, lobes = load_segmentation(path, CLASSES)
    assert unknown_codes(path) is None
    assert all((lobes.ravel()[spot] > 0).all() for spot in spots)
    insula = {index_regions()[int(code)][0] for code in np.unique(lobes.ravel()[spots[-1]])}
    assert insula == {"insula"}


def test_a_mask_is_no_segmentation(stored):
    path = stored(lambda codes: (codes > 0).astype(np.int32))
    with pytest.raises(ValueError, match=r"aseg\.nii\.gz: .* codes; found 0 of them"):
        load_segmentation(path, CLASSES)


def test_codes_that_nobody_knows_are_outside(stored):
    def odd(codes):
        codes = codes.copy()
        codes[codes == 10] = -5
        codes[codes == 49] = 99_999
        return codes

    found, _ = load_segmentation(stored(odd), CLASSES)
    assert not np.isin(found.structures.data, [10, 49]).any()


MOVED = from_matvec(euler2mat(0.15, -0.1, 0.2), [14, -22, 31])


@pytest.fixture(scope="module")
def brought(known):
    """A segmentation as it lies on a T1w image, and a thick-sliced scan of the head moved."""
    codes = known[0]
    there = Volume(codes.data, MOVED @ codes.affine)
    affine = from_matvec(euler2mat(0.1, 0, -0.1) @ np.diag([-1.5, 1.5, 4.0]), [100, -140, -40])
    scan = painted(there, T2STAR, affine, (140, 170, 40), np.random.default_rng(4))
    inside = Volume(is_brain(there.data).astype(np.uint8), there.affine)
    brain = Volume(resample(inside, affine, scan.shape, order=0).data > 0, affine)
    return there, scan, brain


def test_a_head_that_moves_takes_its_midline_and_its_way_to_mni_along(anatomy):
    known = replace(anatomy, to_mni=np.diag([1.1, 0.9, 1, 1]), fit_mm=1.0)
    found = transform_anatomy(known, MOVED)
    for place in ([30.0, -20, 10], [-40, 5, 60]):
        then = apply_affine(MOVED, place)
        normal, offset = found.midline
        assert normal @ then + offset == pytest.approx(
            known.midline[0] @ place + known.midline[1], abs=1e-9
        )
        np.testing.assert_allclose(
            apply_affine(found.to_mni, then), apply_affine(known.to_mni, place), atol=1e-9
        )
        np.testing.assert_allclose(found.structures.index(then), known.structures.index(place))


@pytest.mark.slow  # tests/workflow/test_scan.py has the same from file to file
def test_a_segmentation_is_brought_by_registering_its_t1w_image(known, stored, brought, tmp_path):
    there, scan, brain = brought
    t1w = tmp_path / "t1w.nii.gz"
    codes = known[0]
    save(painted(codes, T1W, codes.affine, codes.shape, np.random.default_rng(5)), t1w)
    found = register_segmentation(*load_segmentation(stored(), CLASSES), scan, brain, t1w=t1w)
    places = codes.world(np.argwhere(is_brain(codes.data))[::997])
    apart = apply_affine(found.to_scan, places) - apply_affine(MOVED, places)
    assert np.linalg.norm(apart, axis=1).max() < 3
    assert found.figures["BrainDice"] > 0.9
    assert found.figures["MutualInformationAfter"] > found.figures["MutualInformationBefore"]
    at = np.argwhere(there.data == 10)
    centre = there.world(at[len(at) // 2])
    assert places_of(found.anatomy, centre) == ("thalamus", "left")


def places_of(anatomy, centre):
    (place,) = locate_structures(anatomy, [centre], CLASSES)
    return place.structure, place.side


def test_the_users_transform_is_taken_at_its_word(stored, brought, tmp_path):
    _, scan, brain = brought
    transform = tmp_path / "sub-01_from-T1w_to-orig_mode-image_xfm.txt"
    transform.write_text(format_itk_affine(MOVED))
    given = load_segmentation(stored(), CLASSES)
    found = register_segmentation(*given, scan, brain, t1w=None, transform=transform)
    np.testing.assert_allclose(found.to_scan, MOVED, atol=1e-6)
    assert found.figures["Transform"] == transform.name
    transform.write_text(format_itk_affine(np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * 90))
    with pytest.raises(ValueError, match=r"a Dice of 0\.7 with the scan's, .*; found 0\."):
        register_segmentation(*given, scan, brain, t1w=None, transform=transform)


def test_without_a_t1w_image_there_is_no_way_to_the_scan(stored, brought):
    given = load_segmentation(stored(), CLASSES)
    with pytest.raises(ValueError, match="none of the participant was found"):
        register_segmentation(*given, *brought[1:], t1w=None)


@pytest.mark.usefixtures("few_samples")
def test_the_t1w_image_of_another_thing_is_not_believed(stored, brought, tmp_path, rng):
    """Noise: whatever the registration finds, the scan's brain is elsewhere."""
    _, scan, brain = brought
    t1w = tmp_path / "noise.nii.gz"
    save(Volume(rng.uniform(0, 1, (60, 70, 60)).astype(np.float32), np.diag([3.0, 3, 3, 1])), t1w)
    given = load_segmentation(stored(), CLASSES)
    with pytest.raises(ValueError, match=r"its brain must have a Dice of 0\.7"):
        register_segmentation(*given, scan, brain, t1w=t1w)


def test_freesurfers_own_format_is_read(known, stored, tmp_path):
    codes = known[0]
    path = tmp_path / "aparc+aseg.mgz"
    nib.save(nib.MGHImage(codes.data.astype(np.int32), codes.affine), path)
    found, _ = load_segmentation(path, CLASSES)
    same, _ = load_segmentation(stored(), CLASSES)
    assert (found.structures.data == same.structures.data).mean() > 0.999
    np.testing.assert_allclose(found.structures.affine, same.structures.affine, atol=1e-4)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"aparc\+aseg\.mgz: "):
        load_segmentation(path, CLASSES)
