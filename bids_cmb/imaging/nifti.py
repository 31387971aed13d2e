"""Images from files and to files; the only module that opens images."""

import gzip
import logging
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from scipy import ndimage

from bids_cmb.files import replacing
from bids_cmb.imaging.header_affine import choose_affine, find_affine_fault, format_sizes
from bids_cmb.imaging.volume import Volume

# nibabel says on stderr what it mends in a header; `load` says it in a sentence, or refuses.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)
MIN_SLICES = 3
MAX_VOXELS = 2**30  # 4 GB as float32; a head in voxels of 0.2 mm has 0.7 of it
MAX_ABSOLUTE_VALUE = 1e15  # what is beyond is no measurement, and its square no float32
MAX_DEFLATE_RATIO = 1032  # no gzipped file unpacks to more than this times its size
UNREADABLE = (  # what nibabel raises over broken files
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    EOFError,
    zlib.error,
    ValueError,
    OSError,
)


@dataclass(frozen=True)
class LoadReport:
    """What was noticed while an image was loaded.

    Attributes:
        affine_source: ``sform`` or ``qform``.
        nonfinite_voxels: NaN, infinite and absurdly large voxels, which were replaced.
        notes: A sentence for each thing that was corrected or preferred; empty when all was well.
        header_mended: Whether one of them is about the header.
    """

    affine_source: str
    nonfinite_voxels: int = 0
    notes: tuple[str, ...] = ()
    header_mended: bool = False


def load(path: Path) -> tuple[Volume, LoadReport]:
    """Load a NIfTI image, or say in one sentence why it cannot be used.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file with one volume.

    Returns:
        volume: float32, scaled as the header says, every voxel finite, on the grid of the file, mm
            whatever unit the header has. Voxels without a number that others surround take the
            value of the nearest other voxel, lest they look like lesions; the rest of them are 0.
        report: What was corrected or preferred.

    Raises:
        ValueError: If the file is no NIfTI image, ends early, has several volumes, fewer than
            three slices, more than `MAX_VOXELS`, complex or coloured voxels, one value only,
            sizes that no voxel of a head has, or an affine that is absent, singular or sheared.
            The sentence names the file, the rule and what was found.
        OSError: If the file cannot be read at all.
    """
    image, header = _open(path)
    shape = _check_shape(path, image.shape)
    affine, affine_source, notes = choose_affine(path, header, shape)
    data = _read_voxels(path, image).reshape(shape)

    header_mended, nonfinite, lost = bool(notes), 0, ""
    low, high = data.min(), data.max()
    if not (low >= -MAX_ABSOLUTE_VALUE and high <= MAX_ABSOLUTE_VALUE):  # also NaN
        nonfinite, kind, became = _correct_invalid(data, voxel_sizes(affine))
        notes.append(f"{path.name}: {nonfinite} voxels are {kind}; {became}.")
        lost = f" ({nonfinite} were {kind})"
        low, high = data.min(), data.max()
    if low == high:
        raise ValueError(
            f"{path}: an image needs voxels that differ; found {low:g} in every one of them{lost}."
        )
    return Volume(data, affine), LoadReport(affine_source, nonfinite, tuple(notes), header_mended)


def _correct_invalid(data: np.ndarray, spacing: np.ndarray) -> tuple[int, str, str]:
    """Replace voxels without a number in place; return how many, of which kind, and by what."""
    invalid = ~(np.abs(data) <= MAX_ABSOLUTE_VALUE)
    count, huge = int(invalid.sum()), np.isfinite(data[invalid]).any()
    kind = f"NaN, infinite or beyond {MAX_ABSOLUTE_VALUE:g}" if huge else "NaN or infinite"
    filled = _fill_invalid(data, invalid, spacing)
    parts = [f"{count - filled} became 0"] if count > filled else []
    parts += [f"{filled} took the value of the nearest other voxel"] if filled else []
    return count, kind, ", ".join(parts)


def _fill_invalid(data: np.ndarray, invalid: np.ndarray, spacing: np.ndarray) -> int:
    """Replace voxels in place: by the nearest other where others surround them, else by 0.

    Args:
        data: The image, (X, Y, Z).
        invalid: Which voxels to replace, likewise.
        spacing: Voxel size in mm along each axis.

    Returns:
        How many have the value of another.
    """
    pieces, _ = ndimage.label(invalid, np.ones((3, 3, 3)))
    faces = [np.moveaxis(pieces, axis, 0)[end] for axis in range(3) for end in (0, -1)]
    outside = set(np.unique(np.concatenate([face.ravel() for face in faces]))) - {0}
    data[np.isin(pieces, list(outside))] = 0
    filled = 0
    for piece, box in enumerate(ndimage.find_objects(pieces), start=1):
        if piece in outside:
            continue
        surround = tuple(slice(side.start - 1, side.stop + 1) for side in box)
        nearest = ndimage.distance_transform_edt(
            invalid[surround], sampling=spacing, return_distances=False, return_indices=True
        )
        hole = pieces[surround] == piece
        data[surround][hole] = data[surround][tuple(nearest)][hole]
        filled += int(hole.sum())
    return filled


def load_labels(path: Path) -> Volume:
    """Load a mask or label map; unlike a scan it may hold one value only: an empty mask.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file with one volume, or FreeSurfer's ``.mgz`` or ``.mgh``.

    Returns:
        float32 as in the file, on its grid; NaN and infinite voxels are 0.

    Raises:
        ValueError: As `load`, but for the voxels that must differ.
        OSError: If the file cannot be read at all.
    """
    if path.suffix in (".mgz", ".mgh"):
        image, affine = _open_freesurfer(path)
        shape = _check_shape(path, image.shape)
    else:
        image, header = _open(path)
        shape = _check_shape(path, image.shape)
        affine, _, _ = choose_affine(path, header, shape)
    data = _read_voxels(path, image).reshape(shape)
    return Volume(np.where(np.isfinite(data), data, np.float32(0)), affine)


def _open(path: Path) -> tuple[nib.Nifti1Image, nib.Nifti1Header]:
    """Open an image, its voxels not yet read, with its header exactly as it stands in the file."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: a NIfTI image was expected; found an empty file (0 bytes).")
    try:
        image = nib.load(path)
        if isinstance(image, nib.Nifti1Image):  # NIfTI-2 counts as one
            with image.file_map["image"].get_prepare_fileobj("rb") as stored:
                return image, image.header_class.from_fileobj(stored, check=False)
    except PermissionError:
        raise
    except UNREADABLE as error:
        raise ValueError(
            f"{path}: a NIfTI image was expected; its header cannot be read "
            f"({_shorten_error(path, error)})."
        ) from error
    kind = type(image).__name__.removesuffix("Image")
    raise ValueError(f"{path}: a NIfTI image was expected; found {kind}.")


def _open_freesurfer(path: Path) -> tuple[nib.MGHImage, np.ndarray]:
    """Open an image, its voxels not yet read, with its affine, which must be one."""
    try:
        image = nib.MGHImage.from_filename(path)
    except PermissionError:
        raise
    except (*UNREADABLE, TypeError) as error:
        raise ValueError(
            f"{path}: a FreeSurfer image was expected; its header cannot be read "
            f"({_shorten_error(path, error)})."
        ) from error
    affine = np.asarray(image.affine, float)
    if fault := find_affine_fault(affine):
        raise ValueError(
            f"{path}: the affine must give three axes at right angles to each other; it {fault}."
        )
    return image, affine


def _check_shape(path: Path, stored: tuple[int, ...]) -> tuple[int, int, int]:
    shape = stored[:3] + tuple(n for n in stored[3:] if n != 1)
    found_shape = format_sizes(stored)
    if len(shape) > 3:
        raise ValueError(
            f"{path}: one volume per file is expected; found {int(np.prod(shape[3:]))} "
            f"({found_shape} voxels). Split the file, one echo or repetition each."
        )
    if len(shape) < 3 or min(shape) < MIN_SLICES:
        raise ValueError(
            f"{path}: a three-dimensional image of at least {MIN_SLICES} slices is expected; "
            f"found {found_shape} voxels."
        )
    return shape


def _read_voxels(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    kind = image.get_data_dtype()
    if kind.fields or kind.kind not in "iuf":
        kind_name = "colours" if kind.fields else kind
        raise ValueError(f"{path}: real voxel values are expected; found {kind_name}.")
    size = format_sizes(image.shape)
    if (voxels := math.prod(image.shape)) > MAX_VOXELS:
        raise ValueError(
            f"{path}: an image of at most {MAX_VOXELS:,} voxels is expected; the header announces "
            f"{voxels:,} ({size})."
        )
    start = int(image.dataobj.offset)
    try:
        _check_length(path, f"{size} voxels", start, start + voxels * kind.itemsize)
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and counted as such
            return image.get_fdata(dtype=np.float32, caching="unchanged")
    except PermissionError:
        raise
    except UNREADABLE as error:
        raise ValueError(
            f"{path}: the file must hold all voxels that its header announces; "
            f"it is truncated or damaged ({_shorten_error(path, error)})."
        ) from error


def _check_length(path: Path, what: str, start: int, end: int) -> None:
    """Refuse a file that cannot hold what its header announces, before memory is taken for it.

    A gzipped file is read to its end, where its check sum stands; nibabel stops before it.
    """
    held, at_most = path.stat().st_size, ""
    if path.suffix in (".gz", ".mgz"):
        if end > MAX_DEFLATE_RATIO * held:
            held, at_most = MAX_DEFLATE_RATIO * held, "at most "
        else:
            held = _measure_unpacked_size(path)
    if held < end:
        raise ValueError(
            f"{what} need the bytes {start:,} to {end:,}, the file has {at_most}{held:,}"
        )


def _measure_unpacked_size(path: Path) -> int:
    size = 0
    try:
        with gzip.open(path) as packed:
            while part := packed.read(2**20):
                size += len(part)
    except gzip.BadGzipFile as error:
        if "Not a gzipped file" in str(error):  # the image itself is: its header was read
            raise ValueError("other bytes follow the compressed image") from error
        raise
    return size


def _shorten_error(path: Path, error: Exception) -> str:
    """Shorten an error to its first line, without folders that the sentence has named."""
    message = str(error).strip().split("\n")[0].rstrip(".").replace(str(path), path.name)
    return message[:120] or type(error).__name__


def save(volume: Volume, path: Path, *, dtype: type = np.float32) -> None:
    """Write a NIfTI image, whole or not at all; the same volume gives the same bytes.

    Args:
        volume: What to write.
        path: Ends in ``.nii.gz``.
        dtype: Of the voxels in the file; no scaling is stored.
    """
    image = nib.Nifti1Image(np.asarray(volume.data, dtype), volume.affine)
    image.set_sform(volume.affine, code=1)
    image.set_qform(volume.affine, code=1)
    image.header.set_xyzt_units("mm")
    with (
        replacing(path) as beside,
        beside.open("wb") as raw,
        # No name and no date in the gzip header: they would make equal images differ.
        gzip.GzipFile("", "wb", compresslevel=4, fileobj=raw, mtime=0) as packed,
    ):
        packed.write(image.to_bytes())
