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
from bids_cmb.networks.model_cards import card, card_names, is_packaged, members_of, weights_file
from bids_cmb.provenance import fingerprint, sha256

MOST_BYTES = 2**30  # unpacked; ours have a hundredth of it
KINDS = (np.float16, np.float32)
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same arrays give the same bytes


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
    return _arrays(path)


def check_file(path: Path, digest: str | None = None) -> None:
    """Make sure that weights are there and are those of their card; they are not read otherwise.

    Args:
        path: A file, or the folder of a SavedModel.
        digest: SHA-256 it must have, as `digest_of` gives it; any without.

    Raises:
        ValueError: If it is missing or another one.
    """
    try:
        found = digest_of(path)
    except OSError as error:
        raise ValueError(
            f"{path}: the weights that a model card names must be there; "
            f"{(error.strerror or str(error)).lower()}."
        ) from error
    if digest is not None and found != digest:
        raise ValueError(
            f"{path}: weights must have the checksum of their model card, SHA-256 {digest[:12]}…; "
            f"found {found[:12]}…."
        )


def digest_of(path: Path) -> str:
    """SHA-256 of a file; of a folder, over the names and digests of its files.

    Raises:
        OSError: If something cannot be read.
    """
    if not path.is_dir():
        return sha256(path)
    files = sorted(one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file())
    return fingerprint(files={name: sha256(path / name) for name in files})


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as packed:
            size = sum(entry.file_size for entry in packed.infolist())
        if size > MOST_BYTES:
            raise ValueError(f"{size / 2**20:.0f} MB of them")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        odd = [name for name, array in arrays.items() if array.dtype not in KINDS]
        if odd:
            raise ValueError(f"{odd[0]} of {arrays[odd[0]].dtype}")
        odd = [name for name, array in arrays.items() if not np.isfinite(array).all()]
        if odd:
            raise ValueError(f"a number in {odd[0]} that is not finite")
    except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: weights must be a zip of float16 or float32 arrays, all finite, at most "
            f"{MOST_BYTES // 2**20} MB unpacked; found {error}."
        ) from error
    return {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}


def check_weights(name: str, said: Mapping, models: Path | None = None) -> list[dict]:
    """Make sure that the weights of every member of a card are there and are those of the card.

    Args:
        name: Of the card.
        said: The card.
        models: The user's folder of cards.

    Returns:
        For each member its name, its file's name and its SHA-256.

    Raises:
        ValueError: If a file is missing or is another one, or one of the user's holds something
            else than numbers.
    """
    members = members_of(said)
    with ThreadPoolExecutor(max_workers=2) as pool:  # a checksum is computed outside Python's lock
        files = [weights_file(name, member, models) for member in members]
        for _ in pool.map(check_file, files, [member["sha256"] for member in members]):
            pass
    if not is_packaged(name, models):  # what they hold is seen now, not once more with each scan
        for file in files:
            if file.suffix == ".npz":
                read_weights(file)
    return [{key: member[key] for key in ("name", "weights", "sha256")} for member in members]


def described(models: Path | None = None) -> str:
    """What is known of every model, in a few lines each; a wrong checksum is said.

    Args:
        models: The user's folder of cards.
    """
    return "\n".join(_described(name, models) for name in card_names(models=models))


def _described(name: str, models: Path | None) -> str:
    try:
        said = card(name, models)
    except ValueError as error:
        return f"{name}: {error}\n"
    lines = [f"{name} ({said['task']})", f"  {said['description']}"]
    for member in members_of(said):
        path = weights_file(name, member, models)
        try:
            check_file(path, member["sha256"])
            state = f"{_bytes(path) / 2**20:.1f} MB, checksum as on the card"
        except ValueError as error:
            state = str(error)
        spacing = member["grid"].get("spacing")
        lines.append(
            f"  member {member['name']}: {member['builder']}, voxels of {spacing} mm, {state}"
        )
    for key in ("threshold", "licence", "training", "metrics"):
        if key in said:
            lines.append(
                f"  {key}: {said[key] if isinstance(said[key], str) else json.dumps(said[key])}"
            )
    return "\n".join([*lines, ""])


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(one.stat().st_size for one in files if one.is_file())


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
            file.writestr(zipfile.ZipInfo(f"{name}.npy", EPOCH), stored.getvalue())
    return sha256(path)
