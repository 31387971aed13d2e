"""An image is opened with its place in the world, or refused in a sentence that says why."""

import gzip
import io

import nibabel as nib
import numpy as np
import pytest
from grids import oblique

from bids_cmb.imaging.nifti import LoadReport, load, save
from bids_cmb.imaging.volume import Volume

SHAPE = (14, 12, 6)


AFFINE = oblique()  # flipped and anisotropic too


@pytest.fixture
def data(rng):
    return rng.uniform(-5, 300, SHAPE).astype(np.float32)


def stored(path, data, *, sform=AFFINE, qform=AFFINE, kind=nib.Nifti1Image, codes=(1, 1), **header):
    """A file with these forms and header fields, written past nibabel's own checks."""
    image = kind(data, None)
    image.header.set_data_dtype(data.dtype)
    if sform is not None:
        image.header.set_sform(sform, codes[0])
    if qform is not None:
        image.header.set_qform(qform, codes[1], strip_shears=True)
    raw = bytearray(image.to_bytes())
    fields = image.header_class.from_fileobj(io.BytesIO(bytes(raw)), check=False)
    for name, value in header.items():
        fields[name] = value
    raw[: len(fields.binaryblock)] = fields.binaryblock
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else bytes(raw))
    return path


def refused(path, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        load(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert said.count(str(path)) == 1
    assert "\n" not in said
    assert len(said) < len(str(path)) + 260


# What is accepted


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_sound_image_is_read_as_it_is(tmp_path, data, name, kind):
    volume, intake = load(stored(tmp_path / name, data, kind=kind))
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert volume.data.dtype == np.float32
    assert volume.affine.dtype == np.float64
    assert intake == LoadReport("sform")


def test_big_endian_is_read(tmp_path, data):
    header = nib.Nifti1Header(endianness=">")
    image = nib.Nifti1Image(data, AFFINE, header)
    nib.save(image, tmp_path / "a.nii.gz")
    volume, _ = load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.data, data)
    assert volume.data.dtype.isnative


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float64])
def test_every_real_type_is_read_as_float32(tmp_path, rng, kind):
    data = rng.integers(0, 200, SHAPE).astype(kind)
    volume, _ = load(stored(tmp_path / "a.nii.gz", data))
    np.testing.assert_array_equal(volume.data, data)
    assert volume.data.dtype == np.float32


@pytest.mark.parametrize("kind", [np.uint8, np.int16])
def test_the_scaling_of_integers_is_honoured(tmp_path, rng, kind):
    data = rng.integers(0, 120, SHAPE).astype(kind)
    volume, _ = load(stored(tmp_path / "a.nii", data, scl_slope=0.25, scl_inter=-8))
    np.testing.assert_allclose(volume.data, data * 0.25 - 8)


def test_one_volume_in_four_dimensions_is_one_volume(tmp_path, data):
    volume, _ = load(stored(tmp_path / "a.nii.gz", data[..., None, None]))
    assert volume.shape == SHAPE
    np.testing.assert_array_equal(volume.data, data)


def test_nan_and_infinite_voxels_at_the_border_become_0_and_are_counted(tmp_path, data):
    """As in the background of scans that other programs masked."""
    data[0, :3, 0] = np.nan
    data[1, 1, 1] = -np.inf
    volume, intake = load(stored(tmp_path / "a.nii.gz", data))
    assert intake.nonfinite_voxels == 4
    assert intake.notes == ("a.nii.gz: 4 voxels are NaN or infinite; 4 became 0.",)
    assert not intake.header_mended
    expected = np.where(np.isfinite(data), data, 0)
    np.testing.assert_array_equal(volume.data, expected)


def test_holes_within_the_image_are_filled_from_beside_them(tmp_path, data):
    """In mm, not in voxels: slices are five times as far apart as columns."""
    hole = (slice(5, 8), slice(4, 7), slice(2, 4))
    data[0], data[hole] = np.nan, np.nan
    volume, intake = load(stored(tmp_path / "a.nii.gz", data))
    assert intake.nonfinite_voxels == 12 * 6 + 3 * 3 * 2
    assert intake.notes == (
        "a.nii.gz: 90 voxels are NaN or infinite; 72 became 0, 18 took the value of the nearest "
        "other voxel.",
    )
    assert not volume.data[0].any()
    assert (volume.data[5, 5, 2], volume.data[7, 5, 3]) == (data[4, 5, 2], data[8, 5, 3])
    assert np.isin(volume.data[hole], data[4:9, 3:8, 2:4][np.isfinite(data[4:9, 3:8, 2:4])]).all()


@pytest.mark.parametrize("value", [1e300, 1e30, -1e30])
def test_a_number_that_is_no_measurement_counts_as_infinite(tmp_path, data, value):
    """Nor has its square a place among float32."""
    data = data.astype(float)
    data[2, 2, 2] = value
    volume, intake = load(stored(tmp_path / "a.nii.gz", data))
    assert intake.nonfinite_voxels == 1
    assert np.abs(volume.data).max() <= 300
    assert np.isfinite(np.square(volume.data).sum())


# Affines


def test_without_sform_the_qform_says_where_the_image_lies(tmp_path, data):
    volume, intake = load(stored(tmp_path / "a.nii.gz", data, sform=None))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)
    assert intake == LoadReport("qform")


def test_without_qform_the_sform_does(tmp_path, data):
    path = stored(tmp_path / "a.nii.gz", data, qform=None, pixdim=[1, 0.5, 0.6, 3, 1, 1, 1, 1])
    volume, intake = load(path)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert intake == LoadReport("sform")


def test_a_form_whose_code_is_0_is_not_believed(tmp_path, data):
    path = stored(tmp_path / "a.nii.gz", data, sform=oblique(degrees=70), sform_code=0)
    volume, intake = load(path)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)
    assert intake.affine_source == "qform"


def test_a_qfac_of_0_means_1(tmp_path, data):
    right = oblique((0.5, 0.6, 3.0))  # qfac 1
    path = stored(tmp_path / "a.nii.gz", data, sform=None, qform=right)
    pixdim = nib.load(path).header["pixdim"].copy()
    pixdim[0] = 0
    path = stored(tmp_path / "a.nii.gz", data, sform=None, qform=right, pixdim=pixdim)
    volume, _ = load(path)
    np.testing.assert_allclose(volume.affine, right, atol=1e-4)


def test_forms_that_disagree_are_told_and_the_sform_wins(tmp_path, data):
    other = AFFINE.copy()
    other[0, 3] += 7.5
    volume, intake = load(stored(tmp_path / "a.nii.gz", data, qform=other))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert intake.notes == (
        "a.nii.gz: sform and qform lie up to 7.5 mm apart; the sform was used.",
    )


def test_left_and_right_exchanged_is_a_disagreement(tmp_path, data):
    _, intake = load(stored(tmp_path / "a.nii.gz", data, qform=oblique((0.5, 0.6, 3.0))))
    assert "sform and qform lie up to 13.0 mm apart; the sform was used." in intake.notes[0]


def test_forms_that_disagree_by_less_than_half_a_voxel_are_one(tmp_path, data):
    other = AFFINE.copy()
    other[0, 3] += 0.2
    _, intake = load(stored(tmp_path / "a.nii.gz", data, qform=other))
    assert intake.notes == ()


def test_voxel_sizes_that_differ_between_sform_and_header_are_told(tmp_path, data):
    path = stored(tmp_path / "a.nii.gz", data, qform=None, pixdim=[1, 1, 1, 2, 1, 1, 1, 1])
    volume, intake = load(path)
    assert intake.notes == (
        "a.nii.gz: voxels are 0.5 × 0.6 × 3 mm in the sform, 1 × 1 × 2 mm in pixdim; "
        "the sform was used.",
    )
    np.testing.assert_allclose(volume.spacing, (0.5, 0.6, 3), rtol=1e-5)


def sheared(degrees=10.0):
    shear = np.eye(4)
    shear[1, 2] = np.tan(np.radians(degrees))
    return shear @ np.diag([0.5, 0.5, 2.0, 1.0])


def test_a_sheared_sform_gives_way_to_a_sound_qform(tmp_path, data):
    volume, intake = load(stored(tmp_path / "a.nii.gz", data, sform=sheared()))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)
    assert intake.affine_source == "qform"
    assert intake.notes == (
        "a.nii.gz: the sform is sheared (two axes meet at 80.0 degrees); the qform was used.",
    )


def test_a_sheared_affine_alone_is_refused(tmp_path, data):
    path = stored(
        tmp_path / "a.nii.gz",
        data,
        sform=sheared(),
        qform=None,
        pixdim=[1, 0.5, 0.5, 2.03, 1, 1, 1, 1],
    )
    refused(path, r"three axes at right angles .*; the sform is sheared .* 80\.0 degrees\)\.$")


def test_a_slightly_sheared_sform_is_kept_as_it_is(tmp_path, data):
    volume, intake = load(stored(tmp_path / "a.nii.gz", data, sform=sheared(2.0), qform=None))
    np.testing.assert_allclose(volume.affine, sheared(2.0), atol=1e-6)
    assert volume.voxel_volume == pytest.approx(0.5)
    assert intake.affine_source == "sform"


@pytest.mark.parametrize(
    ("sform", "fault"),
    [
        (np.diag([0.5, 0.0, 2.0, 1.0]), "is singular"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "is singular"),
        (np.diag([0.5, np.nan, 2.0, 1.0]), "has entries that are no numbers"),
        (np.zeros((4, 4)), "is singular"),
    ],
)
def test_a_singular_affine_is_refused_unless_the_qform_is_sound(tmp_path, data, sform, fault):
    path = stored(tmp_path / "a.nii.gz", data, sform=sform)
    volume, intake = load(path)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)
    assert intake.notes == (f"a.nii.gz: the sform {fault}; the qform was used.",)
    refused(stored(path, data, sform=sform, qform_code=0), rf"the sform {fault}\.$")


def test_a_quaternion_that_is_no_rotation_gives_way_to_the_sform(tmp_path, data):
    path = stored(tmp_path / "a.nii.gz", data, quatern_b=0.9, quatern_c=0.9, quatern_d=0.9)
    volume, intake = load(path)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert intake.notes == (
        "a.nii.gz: the qform has entries that are no numbers; the sform was used.",
    )


def test_a_quaternion_that_is_no_rotation_alone_is_refused(tmp_path, data):
    path = stored(tmp_path / "a.nii.gz", data, sform=None, quatern_b=0.9, quatern_c=0.9)
    refused(path, "a NIfTI image was expected; its header cannot be read")


def test_two_broken_affines_are_both_named(tmp_path, data):
    path = stored(tmp_path / "a.nii.gz", data, sform=sheared(), quatern_b=np.nan)
    refused(path, "; the sform is sheared .* and the qform has entries that are no numbers")


def test_no_coded_affine_is_refused(tmp_path, data):
    path = stored(tmp_path / "a.nii.gz", data, sform_code=-1, qform_code=0)
    refused(path, "must be coded, .*left and right.*; found sform_code -1 and qform_code 0")


MM, METRES, MICRONS = 2, 1, 3  # codes of NIfTI; 8 is seconds


@pytest.mark.parametrize(("unit", "mm"), [(METRES, 1000), (METRES + 8, 1000), (MICRONS, 0.001)])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_metres_and_microns_are_turned_into_mm(tmp_path, data, unit, mm, form):
    affine = np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ AFFINE
    other = {"sform": "qform", "qform": "sform"}[form]
    stored_forms = {form: affine, other: None}
    sizes = np.array([0.5, 0.6, 3.0]) / mm
    pixdim = [-1, *sizes, 1, 1, 1, 1]
    path = stored(tmp_path / "a.nii.gz", data, xyzt_units=unit, pixdim=pixdim, **stored_forms)
    volume, intake = load(path)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)
    assert intake == LoadReport(form)


def test_a_unit_that_cannot_be_is_read_as_mm_aloud(tmp_path, data):
    volume, intake = load(stored(tmp_path / "a.nii.gz", data, xyzt_units=METRES))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert intake.notes == (
        "a.nii.gz: voxels of 0.5 × 0.6 × 3 meters are not plausible; read as mm.",
    )
    assert intake.header_mended


@pytest.mark.parametrize("mm", [1000, 0.001])
def test_sizes_that_no_voxel_of_a_head_has_are_refused(tmp_path, data, mm):
    affine = np.diag([mm, mm, mm, 1]) @ AFFINE
    path = stored(tmp_path / "a.nii.gz", data, sform=affine, qform=affine, xyzt_units=MM)
    refused(path, r"voxels must measure 0.01 to 50 mm; found .* × .* × .* mm in the sform\.$")


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((0.5, 0.0, 3.0), r"0\.5 × 0 × 3 mm"),
        ((0.5, 0.6, -3.0), r"0\.5 × 0\.6 × -3 mm"),
        ((-0.0, 0.6, 3.0), r"0 × 0\.6 × 3 mm"),
        ((0.5, np.nan, 3.0), r"0\.5 × nan × 3 mm"),
    ],
)
def test_voxel_sizes_of_0_or_less_are_refused(tmp_path, data, sizes, said):
    path = stored(tmp_path / "a.nii.gz", data, pixdim=[1, *sizes, 1, 1, 1, 1])
    refused(path, rf"voxel sizes must be above 0 mm; the header says -?{said}\.$")


# Dimensions and voxels


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((*SHAPE, 5), r"one volume per file .*; found 5 \(14 × 12 × 6 × 5 voxels\)\. Split"),
        ((*SHAPE, 1, 3), r"one volume per file .*; found 3 \("),
        ((14, 12, 1, 7), r"one volume per file .*; found 7 \("),
        ((14, 12), "three-dimensional image of at least 3 slices .*; found 14 × 12 voxels"),
        ((14, 12, 1), "at least 3 slices is expected; found 14 × 12 × 1 voxels"),
        ((14, 12, 2), "at least 3 slices is expected; found 14 × 12 × 2 voxels"),
    ],
)
def test_several_volumes_and_too_few_slices_are_refused(tmp_path, rng, shape, sentence):
    data = rng.normal(size=shape).astype(np.float32)
    refused(stored(tmp_path / "a.nii.gz", data), sentence)


def test_a_flat_image_that_calls_itself_three_dimensional_is_refused(tmp_path, rng):
    data = rng.normal(size=(14, 12, 1)).astype(np.float32)
    path = stored(tmp_path / "a.nii", data, dim=[3, 14, 12, 1, 1, 1, 1, 1])
    refused(path, "found 14 × 12 × 1 voxels")


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "found 0 in every one of them"), (7.5, "found 7.5 in every"), (np.nan, "1008 were NaN")],
)
def test_an_image_of_one_value_is_refused(tmp_path, value, said):
    path = stored(tmp_path / "a.nii.gz", np.full(SHAPE, value, np.float32))
    refused(path, f"needs voxels that differ; .*{said}")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (np.complex64, "complex64"),
        (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), "colours"),
        (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")]), "colours"),
    ],
)
def test_complex_and_coloured_voxels_are_refused(tmp_path, kind, said):
    path = stored(tmp_path / "a.nii.gz", np.ones(SHAPE, kind))
    refused(path, f"real voxel values are expected; found {said}")


# Files


def test_an_empty_file_is_refused(tmp_path):
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).touch()
        refused(tmp_path / name, r"NIfTI image was expected; found an empty file \(0 bytes\)")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("content", [b"x", b"\0" * 400, b"\x1f\x8b", b"random" * 500])
def test_a_file_that_is_no_image_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, "NIfTI image was expected; its header cannot be read")


def test_a_gzipped_file_that_is_no_image_is_refused(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(b"<html>404</html>" * 50))
    refused(path, "NIfTI image was expected; its header cannot be read")


def test_another_format_is_refused_under_its_own_name(tmp_path, data):
    nib.save(nib.MGHImage(data, AFFINE), tmp_path / "a.mgz")
    refused(tmp_path / "a.mgz", "NIfTI image was expected; found MGH")
    nib.save(nib.Nifti1Pair(data, AFFINE), tmp_path / "a.img")
    refused(tmp_path / "a.img", "NIfTI image was expected; found Nifti1Pair")


def test_another_format_is_refused_under_a_borrowed_name(tmp_path, data):
    nib.save(nib.MGHImage(data, AFFINE), tmp_path / "a.mgz")
    (tmp_path / "a.mgz").rename(tmp_path / "a.nii.gz")
    refused(tmp_path / "a.nii.gz", "NIfTI image was expected; its header cannot be read")


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_truncated_file_is_refused(tmp_path, data, name, share):
    path = stored(tmp_path / name, data)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "must hold all voxels .* truncated or damaged|its header cannot be read")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((4000, 4000, 4000), "at most 1,073,741,824 voxels .* 64,000,000,000 .4000 × 4000 × 4000"),
        ((32767,) * 3, "at most 1,073,741,824 voxels is expected; .*32767 × 32767 × 32767"),
        ((900, 900, 900), "900 × 900 × 900 voxels need the bytes 352 to 2,916,000,352, the file"),
    ],
)
def test_a_header_that_announces_too_much_is_refused_in_its_own_words(
    tmp_path, data, name, shape, sentence
):
    """Before memory is taken for it, which would run out."""
    path = stored(tmp_path / name, data, dim=[3, *shape, 1, 1, 1, 1])
    refused(path, sentence)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_voxels_that_begin_beyond_the_end_are_refused(tmp_path, data, name):
    path = stored(tmp_path / name, data, vox_offset=1e6)
    refused(path, r"\(14 × 12 × 6 voxels need the bytes 1,000,000 to 1,004,032, the file has 4,384")


def test_what_follows_a_compressed_image_is_named(tmp_path, data):
    path = stored(tmp_path / "a.nii.gz", data)
    path.write_bytes(path.read_bytes() + b"garbage")
    refused(path, r"damaged \(other bytes follow the compressed image\)")
    stored(path, data)
    path.write_bytes(path.read_bytes() + bytes(512))  # as tapes and some archives pad files
    np.testing.assert_array_equal(load(path)[0].data, data)


def test_a_header_of_an_unknown_type_is_refused(tmp_path, data):
    path = stored(tmp_path / "a.nii.gz", data, datatype=999)
    refused(path, "its header cannot be read")


def test_a_damaged_gzip_stream_is_refused(tmp_path, rng):
    path = stored(tmp_path / "a.nii.gz", rng.normal(size=(30, 30, 30)).astype(np.float32))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 200] = b"\xff" * 200
    path.write_bytes(bytes(raw))
    refused(path, "truncated or damaged|its header cannot be read")


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        load(tmp_path / "missing.nii.gz")


@pytest.mark.parametrize("place", ["nibabel.load", "nibabel.Nifti1Image.get_fdata"])
def test_a_file_that_may_not_be_read_is_an_os_error(tmp_path, data, monkeypatch, place):
    path = stored(tmp_path / "a.nii.gz", data)

    def locked(*_args, **_keywords):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(place, locked)  # the tests may run as root, who reads everything
    with pytest.raises(PermissionError, match=r"Permission denied: .*a\.nii\.gz"):
        load(path)


# Saving


def test_the_same_volume_gives_the_same_bytes(tmp_path, data):
    volume = Volume(data, AFFINE)
    save(volume, tmp_path / "a.nii.gz")
    save(Volume(data.copy(order="F"), AFFINE.copy()), tmp_path / "other" / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "other/b.nii.gz").read_bytes()


def test_what_is_saved_is_what_another_reader_finds(tmp_path, data):
    save(Volume(data, AFFINE), tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(), data)
    for form, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        np.testing.assert_allclose(form, AFFINE, atol=1e-4)
        assert code == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    again, intake = load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(again.data, data)
    assert intake == LoadReport("sform")


def test_labels_keep_their_numbers_and_masks_are_0_and_1(tmp_path):
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    save(Volume(labels, AFFINE), tmp_path / "a.nii.gz", dtype=np.int32)
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == np.int32
    np.testing.assert_array_equal(np.asarray(image.dataobj), labels)
    save(Volume(labels > 500, AFFINE), tmp_path / "b.nii.gz", dtype=np.uint8)
    np.testing.assert_array_equal(nib.load(tmp_path / "b.nii.gz").dataobj, labels > 500)
