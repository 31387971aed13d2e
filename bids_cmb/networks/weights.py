"""Weights of networks on disk: plain arrays in a zip file, checked before they are used.

Nothing in such a file is run: it holds numbers, and anything else is refused.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bids_cmb.files import replacing
from bids_cmb.networks.model_cards import (
    check_model_dir,
    is_packaged,
    list_cards,
    load_card,
    locate_weights,
    select_members,
)
from bids_cmb.provenance import fingerprint, sha256

MAX_UNPACKED_BYTES = 2**30  # unpacked; ours have a hundredth of it
DTYPES = (np.float16, np.float32)
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same arrays give the same bytes


def read_weights(path: Path, digest: str | None = None) -> dict[str, np.ndarray]:
    """Read arrays by name.

    Args:
        path: ``.npz``.
        digest: SHA-256 that the file must have; any without.

    Returns:
        float32.

    Raises:
        ValueError: If the file is missing, is another one, or holds something else than numbers.
    """
    check_file(path, digest)
    return _load_arrays(path)


def check_file(path: Path, digest: str | None = None) -> None:
    """Check that weights are there and are those of their card; they are not read otherwise.

    Args:
        path: A file, or the folder of a SavedModel.
        digest: SHA-256 it must have, as `compute_digest` gives it; any without.

    Raises:
        ValueError: If it is missing or another one.
    """
    try:
        actual = compute_digest(path)
    except OSError as error:
        raise ValueError(
            f"{path}: the weights that a model card names must be there; "
            f"{(error.strerror or str(error)).lower()}."
        ) from error
    if digest is not None and actual != digest:
        raise ValueError(
            f"{path}: weights must have the checksum of their model card, SHA-256 {digest[:12]}…; "
            f"found {actual[:12]}…."
        )


def compute_digest(path: Path) -> str:
    """Compute the SHA-256 of a file; of a folder, over the names and digests of its files.

    Raises:
        OSError: If something cannot be read.
    """
    if not path.is_dir():
        return sha256(path)
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return fingerprint(files={name: sha256(path / name) for name in files})


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as packed:
            size = sum(entry.file_size for entry in packed.infolist())
        if size > MAX_UNPACKED_BYTES:
            raise ValueError(f"{size / 2**20:.0f} MB of them")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        invalid = [name for name, array in arrays.items() if array.dtype not in DTYPES]
        if invalid:
            raise ValueError(f"{invalid[0]} of {arrays[invalid[0]].dtype}")
        invalid = [name for name, array in arrays.items() if not np.isfinite(array).all()]
        if invalid:
            raise ValueError(f"a number in {invalid[0]} that is not finite")
    except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: weights must be a zip of float16 or float32 arrays, all finite, at most "
            f"{MAX_UNPACKED_BYTES // 2**20} MB unpacked; found {error}."
        ) from error
    return {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}


def check_weights(name: str, card: Mapping, models: Path | None = None) -> list[dict]:
    """Check that the weights of every member of a card are there and are those of the card.

    Args:
        name: Of the card.
        card: The card.
        models: The user's folder of cards.

    Returns:
        For each member its name, its file's name and its SHA-256.

    Raises:
        ValueError: If a file is missing or is another one, or one of the user's holds something
            else than numbers.
    """
    members = select_members(card)
    with ThreadPoolExecutor(max_workers=2) as pool:  # a checksum is computed outside Python's lock
        files = [locate_weights(name, member, models) for member in members]
        for _ in pool.map(check_file, files, [member["sha256"] for member in members]):
            pass
    if not is_packaged(name, models):  # what they hold is seen now, not once more with each scan
        for file in files:
            if file.suffix == ".npz":
                read_weights(file)
    return [{key: member[key] for key in ("name", "weights", "sha256")} for member in members]


def describe_models(models: Path | None = None) -> str:
    """Describe every model in a few lines, wrong checksums included.

    Args:
        models: The user's folder of cards.

    Raises:
        ValueError: If there is no such folder.
    """
    if models:
        check_model_dir(models)
    return "\n".join(_describe_model(name, models) for name in list_cards(models=models))


def _describe_model(name: str, models: Path | None) -> str:
    try:
        card = load_card(name, models)
    except ValueError as error:
        return f"{name}: {error}\n"
    lines = [f"{name} ({card['task']})", f"  {card['description']}"]
    for member in select_members(card):
        path = locate_weights(name, member, models)
        try:
            check_file(path, member["sha256"])
            state = f"{_count_bytes(path) / 2**20:.1f} MB, checksum as on the card"
        except ValueError as error:
            state = str(error)
        spacing = member["grid"].get("spacing")
        lines.append(
            f"  member {member['name']}: {member['builder']}, voxels of {spacing} mm, {state}"
        )
    for key in ("threshold", "licence", "training", "metrics"):
        if key in card:
            lines.append(
                f"  {key}: {card[key] if isinstance(card[key], str) else json.dumps(card[key])}"
            )
    return "\n".join([*lines, ""])


def _count_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def write_weights(path: Path, arrays: Mapping[str, np.ndarray], *, dtype: type = np.float16) -> str:
    """Write arrays under their names, the same bytes for the same numbers.

    Args:
        path: ``.npz``.
        arrays: By name.
        dtype: float16 or float32.

    Returns:
        SHA-256 of the file.

    Raises:
        ValueError: If a number does not fit ``dtype``.
    """
    with replacing(path) as beside, zipfile.ZipFile(beside, "w") as file:
        for name in sorted(arrays):
            with np.errstate(over="ignore"):
                array = np.ascontiguousarray(arrays[name], dtype)
            if not np.isfinite(array).all():
                raise ValueError(f"Weights must be finite as {np.dtype(dtype)}; {name} is not.")
            stored = io.BytesIO()
            np.lib.format.write_array(stored, array, allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy", ZIP_DATE), stored.getvalue())
    return sha256(path)
