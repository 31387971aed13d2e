"""The affine of a NIfTI header: sform or qform, in mm, refused where neither can be true."""

from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from bids_cmb.imaging.volume import Volume

# Cosine between two voxel axes, 2.9 degrees: beyond it a header is not believed
MAX_SHEAR_COSINE = 0.05
# Share by which the voxel sizes of an affine and of the header may differ
MAX_SIZE_DIFFERENCE = 0.01
MAX_DISAGREEMENT_VOXELS = 0.5  # voxels, at the corner where sform and qform lie furthest apart
UNITS_MM = {"meter": 1000.0, "micron": 0.001}  # of lengths in a header; all others are mm
VOXEL_SIZE_RANGE_MM = (0.01, 50.0)  # sizes that a voxel of a head can have


def choose_affine(
    path: Path, header: nib.Nifti1Header, shape: tuple[int, int, int]
) -> tuple[np.ndarray, str, list[str]]:
    """Choose the sform if it is coded and sound, else the qform, in mm; note what is odd."""
    sizes = _read_voxel_sizes(path, header)
    scale, unit_notes = _find_unit_scale(header, sizes)
    sizes = scale * sizes
    to_mm = np.diag([scale, scale, scale, 1.0])
    coded = {source: to_mm @ form for source, form in _list_coded_affines(path, header).items()}
    faults = {source: fault for source, form in coded.items() if (fault := find_affine_fault(form))}
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
            f"{VOXEL_SIZE_RANGE_MM[1]:g} mm; found {format_sizes(spacing)} mm in the {source}."
        )
    if not np.allclose(spacing, sizes, rtol=MAX_SIZE_DIFFERENCE):
        notes.append(
            f"voxels are {format_sizes(spacing)} mm in the {source}, "
            f"{format_sizes(sizes)} mm in pixdim"
        )
    if len(sound) == 2:
        sform, qform = (Volume(np.broadcast_to(0, shape), form) for form in coded.values())
        distance = sform.max_corner_distance(qform)
        if distance > MAX_DISAGREEMENT_VOXELS * spacing.min():
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
    return 1.0, [f"voxels of {format_sizes(sizes)} {unit}s are not plausible; read as mm"]


def _is_plausible(sizes: np.ndarray) -> bool:
    """Check whether a voxel of a head can have these sizes, mm."""
    return bool((sizes >= VOXEL_SIZE_RANGE_MM[0]).all() and (sizes <= VOXEL_SIZE_RANGE_MM[1]).all())


def _read_voxel_sizes(path: Path, header: nib.Nifti1Header) -> np.ndarray:
    sizes = header["pixdim"][1:4].astype(float)
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError(
            f"{path}: voxel sizes must be above 0 mm; the header says {format_sizes(sizes)} mm."
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


def find_affine_fault(affine: np.ndarray) -> str:
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


def format_sizes(sizes: Iterable[float]) -> str:
    """Format sizes along the axes: ``1 × 1 × 2``."""
    return " × ".join(f"{size:g}" for size in sizes)
