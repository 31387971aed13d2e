"""List the image files of a BIDS dataset, by pybids or from a pybids database."""

import json
import os
import re
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from importlib import resources
from itertools import chain
from pathlib import Path

from bids_cmb.bids.filters import Query
from bids_cmb.bids.metadata import describe_read_error
from bids_cmb.bids.scan import DATATYPES, ScanDecision, exclude

# Control characters, and bytes that are not UTF-8: no table and no database holds them.
INVALID_CHARACTERS = r"\x00-\x1f\x7f\ud800-\udfff"


def list_labels(folder: Path, prefix: str) -> list[str]:
    """List the labels of the folders in a folder that begin with a prefix, sorted.

    Raises:
        OSError: If it cannot be listed.
    """
    # pybids takes as long for its list of subjects as for the whole index
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.startswith(prefix) and _is_folder(e)]
    odd = re.compile(f"[{INVALID_CHARACTERS}]")
    return sorted(n.removeprefix(prefix) for n in names if n != prefix and not odd.search(n))


def make_path_pattern(subjects: list[str] | None, words: str) -> re.Pattern:
    """Make a pattern of the folders to enter, and of image files (the group ``file``).

    It matches ``/`` and the path relative to the dataset.

    Args:
        subjects: Labels; None for all.
        words: A pattern of suffixes, in any letter case.
    """
    char = f"[^/{INVALID_CHARACTERS}]"
    who = f"{char}+" if subjects is None else "|".join(map(re.escape, subjects))
    file = rf"(?:{char}*_)?(?:mod-)?(?i:{words})(?:_{char}*)?\.nii(?:\.gz)?"
    return re.compile(
        rf"/sub-(?:{who})(?:/ses-{char}+)?(?:/(?:{'|'.join(DATATYPES)})(?:/(?P<file>{file}))?)?"
    )


def make_indexer(bids_dir: Path, query: Query) -> Callable[[list[str], re.Pattern], list[Path]]:
    """Make a function from subjects and the pattern of paths to the paths of their images."""
    if query.database_dir is None:
        return lambda _, pattern: _index_with_pybids(bids_dir, pattern)

    by_subject = defaultdict(list)
    for path in _read_database(bids_dir, Path(query.database_dir), anew=query.reset_database):
        by_subject[path.relative_to(bids_dir).parts[0].removeprefix("sub-")].append(path)

    def list_stored(subjects: list[str], pattern: re.Pattern) -> list[Path]:
        paths = chain.from_iterable(by_subject[subject] for subject in subjects)
        return [p for p in paths if pattern.fullmatch(f"/{_get_relative_path(p, bids_dir)}")]

    return list_stored


def _index_with_pybids(
    bids_dir: Path, pattern: re.Pattern, database_dir: Path | None = None
) -> list[Path]:
    """List the files that match the pattern, by pybids."""
    layouts = _import_pybids()
    indexer = layouts.BIDSLayoutIndexer(
        validate=False,
        index_metadata=False,
        ignore=[re.compile(rf"^(?!{pattern.pattern}\Z)")],
        config_filename=".none",  # a `layout_config.json` in the data is not used
    )
    try:
        # Validation would drop `swi` silently.
        layout = layouts.BIDSLayout(
            bids_dir,
            validate=False,
            config=_pybids_config(),
            database_path=database_dir,
            indexer=indexer,
        )
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{bids_dir / 'dataset_description.json'}: must be an object as BIDS describes it; "
            f"pybids cannot read it ({error})."
        ) from error
    return _list_files(layout)


def _import_pybids():
    """Import pybids, only where it is needed: it takes half a second."""
    import bids.layout  # noqa: PLC0415

    return bids.layout


def _list_files(layout) -> list[Path]:
    try:
        return [Path(path) for path in layout.get_files()]
    finally:
        layout.session.close()
        layout.connection_manager.engine.dispose()


def _pybids_config() -> dict:
    """Read the configuration of pybids, and add ``swi`` to the datatypes.

    The app takes the datatype from the path; this is for other users of the database.
    """
    packaged = resources.files("bids.layout") / "config" / "bids.json"
    config = json.loads(packaged.read_text(encoding="utf-8"))
    [datatype] = [entity for entity in config["entities"] if entity["name"] == "datatype"]
    datatype["pattern"] = datatype["pattern"].replace("(anat|", "(anat|swi|")
    return config


def _read_database(bids_dir: Path, database_dir: Path, *, anew: bool) -> list[Path]:
    """Read the paths in a pybids database, which is made if there is none, or ``anew``.

    Raises:
        ValueError: If it is no pybids database, or of another dataset.
    """
    database = database_dir / "layout_index.sqlite"
    if anew or not database.exists():
        database_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=database_dir) as making:
            _index_with_pybids(bids_dir, make_path_pattern(None, r"[a-z0-9]+"), Path(making))
            (Path(making) / database.name).replace(database)  # whole or not there
    root = _read_root(database)
    if not (root.exists() and root.samefile(bids_dir)):
        raise ValueError(f"{database}: must have been made from {bids_dir}; it is of {root}.")
    files = _list_files(_import_pybids().BIDSLayout(database_path=database_dir, validate=False))
    return [bids_dir / path.relative_to(root) for path in files if path.is_relative_to(root)]


def _read_root(database: Path) -> Path:
    try:
        with closing(sqlite3.connect(database)) as connection:
            [root] = connection.execute("SELECT root FROM layout_info").fetchone()
    except (sqlite3.Error, TypeError) as error:
        raise ValueError(f"{database}: must be a pybids database; {error}.") from error
    return Path(root)


def walk(
    bids_dir: Path, subjects: list[str], pattern: re.Pattern
) -> tuple[list[Path], list[ScanDecision]]:
    """Walk through the folders of subjects; find files, and what pybids skips silently.

    Returns:
        files: Every path that may be an image.
        odd: Folders that cannot be read, folders named like images, names that no table can hold.
    """
    files, odd, folders = [], [], [bids_dir / f"sub-{subject}" for subject in subjects]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as opened:
                entries = list(opened)
        except OSError as error:
            odd.append(
                exclude(
                    _get_relative_path(folder, bids_dir), describe_read_error(error), unusable=True
                )
            )
            continue
        for entry in entries:
            relative = _get_relative_path(Path(entry.path), bids_dir)
            place = pattern.fullmatch("/" + re.sub(f"[{INVALID_CHARACTERS}]", "?", relative))
            if place and re.search(f"[{INVALID_CHARACTERS}]", relative):
                escaped = relative.encode("unicode_escape").decode()
                odd.append(exclude(escaped, "has characters in its name that no table can hold"))
            elif place and not _is_folder(entry):
                files += [Path(entry.path)] if place["file"] else []
            elif place and place["file"]:
                odd.append(exclude(relative, "is a folder, not an image"))
            elif (extension := _find_capital_extension(relative)) and pattern.fullmatch(
                f"/{relative.removesuffix(extension)}{extension.lower()}"
            ):
                why = f"has the extension {extension}; BIDS knows only {extension.lower()}"
                odd.append(exclude(relative, why))
            elif place:
                folders.append(Path(entry.path))
    return files, odd


def _find_capital_extension(relative: str) -> str:
    """Find the extension of an image if it has capital letters; empty if not."""
    match = re.search(r"\.nii(?:\.gz)?\Z", relative, re.IGNORECASE)
    return match[0] if match and match[0] != match[0].lower() else ""


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link, or one into a folder that may not be read
        return False


def _get_relative_path(path: Path, bids_dir: Path) -> str:
    return path.relative_to(bids_dir).as_posix()
