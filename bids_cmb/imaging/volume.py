"""Three-dimensional images in world coordinates; the only module that opens images."""

import gzip
import logging
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from scipy import ndimage

from bids_cmb.files import replacing

# nibabel says on stderr what it mends in a header; `load` says it in a sentence, or refuses.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)

MIN_SLICES = 3
MAX_SHEAR_COSINE = (
    0.05  # cosine between two voxel axes, 2.9 degrees: beyond it a header is not believed
)
MAX_SIZE_DIFFERENCE = (
    0.01  # share by which the voxel sizes of an affine and of the header may differ
)
MAX_DISAGREEMENT_VOXELS = 0.5  # voxels, at the corner where sform and qform lie furthest apart
UNITS_MM = {"meter": 1000.0, "micron": 0.001}  # of lengths in a header; all others are mm
VOXEL_SIZE_RANGE_MM = (0.01, 50.0)  # sizes that a voxel of a head can have
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


@dataclass(frozen=True, eq=False)
class Volume:
    """An image on a regular grid.

    Attributes:
        data: Voxel values, shape (X, Y, Z).
        affine: Voxel index to world position in mm, RAS+, shape (4, 4).
    """

    data: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        return self.data.shape

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size in mm along each axis, shape (3,)."""
        return voxel_sizes(self.affine)

    @property
    def voxel_volume(self) -> float:
        """mm³ of one voxel, right for sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def slice_axis(self) -> int:
        """The axis with the largest voxels, along which slices are stacked; the last of equals."""
        return int(np.flatnonzero(self.spacing >= self.spacing.max() * 0.999)[-1])

    def world(self, index: np.ndarray) -> np.ndarray:
        """Convert voxel ``index`` to world mm, both (N, 3) or (3,)."""
        return apply_affine(self.affine, index)

    def index(self, world: np.ndarray) -> np.ndarray:
        """Convert world mm to a voxel index, not rounded, both (N, 3) or (3,)."""
        return apply_affine(np.linalg.inv(self.affine), world)

    def shares_grid(self, other: "Volume", *, tolerance: float = 1e-3) -> bool:
        """Check whether shape and affine are those of ``other``, up to ``tolerance`` in mm."""
        return self.shape == other.shape and np.allclose(self.affine, other.affine, atol=tolerance)


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
    affine, affine_source, notes = _choose_affine(path, header, shape)
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
        affine, _, _ = _choose_affine(path, header, shape)
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
    if fault := _find_fault(affine):
        raise ValueError(
            f"{path}: the affine must give three axes at right angles to each other; it {fault}."
        )
    return image, affine


def _check_shape(path: Path, stored: tuple[int, ...]) -> tuple[int, int, int]:
    shape = stored[:3] + tuple(n for n in stored[3:] if n != 1)
    found_shape = _format_sizes(stored)
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


def _choose_affine(
    path: Path, header: nib.Nifti1Header, shape: tuple[int, int, int]
) -> tuple[np.ndarray, str, list[str]]:
    """Choose the sform if it is coded and sound, else the qform, in mm; note what is odd."""
    sizes = _read_voxel_sizes(path, header)
    scale, unit_notes = _find_unit_scale(header, sizes)
    sizes = scale * sizes
    to_mm = np.diag([scale, scale, scale, 1.0])
    coded = {source: to_mm @ form for source, form in _list_coded_affines(path, header).items()}
    faults = {source: fault for source, form in coded.items() if (fault := _find_fault(form))}
    sound = [source for source in coded if source not in faults]
    if not sound:
        faults_text = " and ".join(f"the {source} {fault}" for source, fault in faults.items())
        raise ValueError(
            f"{path}: the affine must give three axes at right angles to each other; {faults_text}."
        )
    source = sound[0]
    notes = [f"the {other} {fault}" for other, fault in faults.items()]
    spacing = voxel_sizes(coded[source])
    if not _is_plausible(spacing):
        raise ValueError(
            f"{path}: voxels must measure {VOXEL_SIZE_RANGE_MM[0]:g} to "
            f"{VOXEL_SIZE_RANGE_MM[1]:g} mm; found {_format_sizes(spacing)} mm in the {source}."
        )
    if not np.allclose(spacing, sizes, rtol=MAX_SIZE_DIFFERENCE):
        notes.append(
            f"voxels are {_format_sizes(spacing)} mm in the {source}, "
            f"{_format_sizes(sizes)} mm in pixdim"
        )
    if (
        len(sound) == 2
        and (distance := _max_corner_distance(coded, shape))
        > MAX_DISAGREEMENT_VOXELS * spacing.min()
    ):
        notes.append(f"sform and qform lie up to {distance:.1f} mm apart")
    notes = [f"{note}; the {source} was used" for note in notes]
    return coded[source], source, [f"{path.name}: {note}." for note in unit_notes + notes]


def _find_unit_scale(header: nib.Nifti1Header, sizes: np.ndarray) -> tuple[float, list[str]]:
    """Find how many mm the unit of length of a header has; note what is odd about it."""
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:  # a code that NIfTI does not know
        return 1.0, []
    scale = UNITS_MM.get(unit, 1.0)
    if scale == 1 or _is_plausible(scale * sizes) or not _is_plausible(sizes):
        return scale, []
    return 1.0, [f"voxels of {_format_sizes(sizes)} {unit}s are not plausible; read as mm"]


def _is_plausible(sizes: np.ndarray) -> bool:
    """Check whether a voxel of a head can have these sizes, mm."""
    return bool((sizes >= VOXEL_SIZE_RANGE_MM[0]).all() and (sizes <= VOXEL_SIZE_RANGE_MM[1]).all())


def _read_voxel_sizes(path: Path, header: nib.Nifti1Header) -> np.ndarray:
    sizes = header["pixdim"][1:4].astype(float)
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError(
            f"{path}: voxel sizes must be above 0 mm; the header says {_format_sizes(sizes)} mm."
        )
    return sizes


def _list_coded_affines(path: Path, header: nib.Nifti1Header) -> dict[str, np.ndarray]:
    """List the affines that the header vouches for, the sform first."""
    coded = {}
    if header["sform_code"] > 0:
        coded["sform"] = header.get_sform().astype(float)
    if header["qform_code"] > 0:
        coded["qform"] = _read_qform(header)
    if not coded:
        raise ValueError(
            f"{path}: sform or qform must be coded, else left and right cannot be told apart; "
            f"found sform_code {header['sform_code']} and qform_code {header['qform_code']}."
        )
    return coded


def _read_qform(header: nib.Nifti1Header) -> np.ndarray:
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1  # what NIfTI says 0 means, and many write
    try:
        return header.get_qform().astype(float)
    except ValueError:  # a quaternion longer than 1 is no rotation
        return np.full((4, 4), np.nan)


def _max_corner_distance(coded: dict[str, np.ndarray], shape: tuple[int, int, int]) -> float:
    """Measure the distance in mm between sform and qform where corners differ most."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1).T
    offsets = apply_affine(coded["sform"], corners) - apply_affine(coded["qform"], corners)
    return float(np.linalg.norm(offsets, axis=1).max())


def _find_fault(affine: np.ndarray) -> str:
    """Find what makes an affine unusable, as the end of a sentence; empty if nothing does."""
    if not np.isfinite(affine).all():
        return "has entries that are no numbers"
    axes = affine[:3, :3]
    sizes = np.linalg.norm(axes, axis=0)
    if sizes.min() <= 0 or abs(np.linalg.det(axes / sizes)) < 1e-3:
        return "is singular"
    cosines = np.abs((axes / sizes).T @ (axes / sizes) - np.eye(3))
    if cosines.max() > MAX_SHEAR_COSINE:
        angle = np.degrees(np.arccos(cosines.max()))
        return f"is sheared (two axes meet at {angle:.1f} degrees)"
    return ""


def _read_voxels(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    kind = image.get_data_dtype()
    if kind.fields or kind.kind not in "iuf":
        kind_name = "colours" if kind.fields else kind
        raise ValueError(f"{path}: real voxel values are expected; found {kind_name}.")
    size = _format_sizes(image.shape)
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


def _format_sizes(sizes: Iterable[float]) -> str:
    return " × ".join(f"{size:g}" for size in sizes)


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


def resample(
    volume: Volume, affine: np.ndarray, shape: tuple[int, int, int], *, order: int = 1
) -> Volume:
    """Resample a volume to another grid; 0 where that grid leaves it.

    At the edge, order 0 reaches to the end of the outermost voxels, order 1 fades to 0 within one
    voxel, order 3 stops at the outermost centres.

    Args:
        volume: What to resample.
        affine: Of the new grid, voxel index to world mm, (4, 4).
        shape: Of the new grid.
        order: Of the spline: 0 nearest voxel, 1 linear, 3 cubic.

    Returns:
        A volume on the new grid, float32 (order 0: the type that came).
    """
    to_source = np.linalg.inv(volume.affine) @ affine
    # Voxels have extent: a thick slice reaches half its thickness beyond its centre. And a grid
    # that ends exactly on the outermost centres must not lose them to rounding.
    mode = "grid-constant" if order < 2 else "constant"
    data = volume.data if order == 0 else volume.data.astype(np.float32, copy=False)
    if data.dtype == bool:
        data = data.astype(np.uint8)
    moved = ndimage.affine_transform(
        data, to_source[:3, :3], to_source[:3, 3], output_shape=shape, order=order, mode=mode
    )
    return Volume(moved.astype(volume.data.dtype if order == 0 else np.float32), affine)


def crop(volume: Volume, first: np.ndarray, end: np.ndarray) -> Volume:
    """Crop to the voxels from ``first`` to before ``end``, each (3,); not copied."""
    affine = volume.affine @ from_matvec(np.eye(3), first)
    return Volume(volume.data[tuple(map(slice, first, end))], affine)


def transfer_labels(labels: Volume, like: Volume) -> np.ndarray:
    """Transfer labels to the grid of ``like``, (X, Y, Z), each labelled voxel to the nearest one.

    None is lost where that grid is coarser; where it is finer there are holes.
    """
    order = "F" if labels.data.flags.f_contiguous else "C"
    flat = labels.data.ravel(order)
    labelled = np.flatnonzero(flat > 0)
    voxels = np.stack(np.unravel_index(labelled, labels.shape, order), axis=1)
    index = np.rint(like.index(labels.world(voxels))).astype(int)
    inside = ((index >= 0) & (index < like.shape)).all(axis=1)
    transferred = np.zeros(like.shape, np.int32)
    transferred[tuple(index[inside].T)] = np.rint(flat[labelled[inside]])
    return transferred


def resample_like(volume: Volume, like: Volume, *, order: int = 1) -> Volume:
    """Resample ``volume`` to the grid of ``like``; untouched if they share it."""
    if volume.shares_grid(like, tolerance=1e-4):
        return volume
    return resample(volume, like.affine, like.shape, order=order)
