"""Check that the app still writes what it wrote: record digests of its results and compare them.

    python -m benchmarks.golden record BEFORE.json DATASET... --work DIR --detectors radial ensemble
    python -m benchmarks.golden compare BEFORE.json AFTER.json [--renamed NAMES.json]

``record`` runs the app (participant and group level) on BIDS datasets, once for each detector
(``radial+ensemble`` for two together), and notes what every table, image, picture and JSON file
holds. Options of the app go behind ``--``, such as ``-- --anatomy none --participant-label 311``.
Times, versions, paths, sizes of packed files and fingerprints are left out.

``compare`` lists what differs and ends with 1 if anything does. Names that changed on purpose
stand in a JSON file: ``{"files": {"_old.tsv": "_new.tsv"}, "names": {"old_column": "new_column"},
"ignored": ["column:a_new_one"]}``, the first by part of a path, the second whole names of columns
and of keys, the last parts of files, after renaming.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
VOLATILE = {  # keys of JSON files that describe the run, not the result
    *("Fingerprint", "Software", "CodeSHA256", "CardSHA256", "Machine", "Finished", "Seconds"),
    *("Modified", "Changed", "Size", "SHA256", "GeneratedBy", "DatasetLinks", "SourceDatasets"),
}
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
DIGITS = 16  # of a SHA-256, enough to tell contents apart


def main() -> int:
    """Record or compare; return the exit status."""
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, app_options = make_parser().parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    if options.command == "compare":
        return compare_records(options)
    record = {}
    for dataset in options.datasets:
        for detector in options.detectors:
            output = options.work / f"{dataset.name}-{detector}"
            run_app(dataset, output, ["--detector", *detector.split("+"), *app_options])
            texts = {str(output.resolve()): "OUTPUT", str(dataset.resolve()): "DATASET"}
            for name, parts in describe_folder(output, texts).items():
                record[f"{dataset.name}/{detector}/{name}"] = parts
    options.result.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")
    print(f"{len(record)} files: {options.result}")
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line; the options of the app come behind ``--``."""
    top = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = top.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record", help="run the app and note what it wrote")
    record.add_argument("result", type=Path, metavar="JSON")
    record.add_argument("datasets", type=Path, nargs="+", metavar="DATASET")
    record.add_argument("--work", type=Path, required=True, help="where the outputs go; kept")
    record.add_argument("--detectors", nargs="+", default=["radial"], metavar="NAME[+NAME]")
    compare = commands.add_parser("compare", help="list what differs between two records")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    compare.add_argument("--renamed", type=Path, metavar="JSON", help="names changed on purpose")
    return top


def run_app(dataset: Path, output: Path, options: Sequence[str]) -> None:
    """Run the app of this working tree with one thread.

    Raises:
        SystemExit: If the app fails.
    """
    command = [sys.executable, str(ROOT / "run.py"), str(dataset), str(output)]
    command += ["participant", "group", "--overwrite", "--n-cpus", "1", *options]
    environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONPATH": str(ROOT)}
    if subprocess.run(command, env=environment, check=False).returncode:
        raise SystemExit(f"{dataset}: the app failed.")


def describe_folder(folder: Path, texts: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """Describe every result below a folder but its logs.

    Args:
        folder: An output folder of the app.
        texts: Paths, and what stands for them in texts.

    Returns:
        Path relative to the folder → part → digest or number.
    """
    readers = {
        ".gz": _describe_image,
        ".nii": _describe_image,
        ".tsv": _describe_table,
        ".json": _describe_json,
        ".png": _describe_picture,
        ".webp": _describe_picture,
    }
    record = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        reader = _describe_text if path.name.endswith("_xfm.txt") else readers.get(path.suffix)
        if reader and path.is_file() and not name.startswith("logs/"):
            record[name] = reader(path, texts)
    return record


def _compute_digest(content: bytes | str) -> str:
    content = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def _describe_image(path: Path, _: Mapping) -> dict[str, object]:
    image = nib.load(path)
    data = np.asarray(image.dataobj)
    return {
        "data": _compute_digest(np.ascontiguousarray(data).tobytes()),
        "affine": _compute_digest(np.ascontiguousarray(image.affine).tobytes()),
        "shape": list(data.shape),
        "dtype": str(image.get_data_dtype()),
    }


def _describe_picture(path: Path, _: Mapping) -> dict[str, object]:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGBA"))
    return {"data": _compute_digest(pixels.tobytes()), "shape": list(pixels.shape)}


def _describe_text(path: Path, texts: Mapping) -> dict[str, object]:
    return {"text": _compute_digest(_replace_paths(path.read_text("utf-8"), texts))}


def _describe_table(path: Path, texts: Mapping) -> dict[str, object]:
    text = _replace_paths(path.read_text("utf-8"), texts)
    names, *rows = list(csv.reader(text.splitlines(), delimiter="\t")) or [[]]
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    cells = {
        f"column:{name}": _compute_digest("\n".join(column))
        for name, column in zip(names, columns, strict=True)
    }
    return {"columns": names, "rows": len(rows), **cells}


def _describe_json(path: Path, texts: Mapping) -> dict[str, object]:
    content = json.loads(_replace_paths(path.read_text("utf-8"), texts))
    return {key: _compute_digest(json.dumps(value)) for key, value in _walk_leaves(content)}


def _walk_leaves(content: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Walk the values of a JSON document with the keys that lead to them, but `VOLATILE` ones."""
    if isinstance(content, dict) and content:
        for name, value in content.items():
            if name not in VOLATILE:
                yield from _walk_leaves(value, f"{key}/{name}")
    elif isinstance(content, list) and content:
        for number, value in enumerate(content):
            yield from _walk_leaves(value, f"{key}/{number}")
    else:
        yield key, content


def _replace_paths(text: str, texts: Mapping[str, str]) -> str:
    for path, name in texts.items():
        text = text.replace(path, name)
    return text


def compare_records(options: argparse.Namespace) -> int:
    """Print what differs between two records; return 1 if anything does."""
    before, after = (
        json.loads(path.read_text("utf-8")) for path in (options.before, options.after)
    )
    renamed = json.loads(options.renamed.read_text("utf-8")) if options.renamed else {}
    lines = list_differences(before, after, renamed)
    print("\n".join(lines) or f"No difference in {len(after)} files.")
    return 1 if lines else 0


def list_differences(before: Mapping, after: Mapping, renamed: Mapping | None = None) -> list[str]:
    """List what differs between two records.

    Args:
        before: File → part → digest.
        after: The same.
        renamed: ``files``, ``names`` and ``ignored``, as the module describes them.

    Returns:
        A line for each file or part that is missing, new or different.
    """
    renamed = renamed or {}
    before = rename_record(before, renamed.get("files", {}), renamed.get("names", {}))
    ignored = set(renamed.get("ignored", ()))
    lines = [f"missing\t{name}" for name in sorted(before.keys() - after.keys())]
    lines += [f"new\t{name}" for name in sorted(after.keys() - before.keys())]
    for name in sorted(before.keys() & after.keys()):
        old, new = before[name], after[name]
        parts = (old.keys() | new.keys()) - ignored
        lines += [
            f"{_describe_difference(part, old, new)}\t{name}\t{part}"
            for part in sorted(parts)
            if old.get(part) != new.get(part)
        ]
    return lines


def _describe_difference(part: str, old: Mapping, new: Mapping) -> str:
    if part not in new:
        return "missing"
    return "different" if part in old else "new"


def rename_record(record: Mapping, files: Mapping[str, str], names: Mapping[str, str]) -> dict:
    """Give the files, columns and keys of a record their new names."""
    renamed = {}
    for name, parts in record.items():
        for old, new in files.items():
            name = name.replace(old, new)  # noqa: PLW2901
        renamed[name] = {_rename_part(part, names): value for part, value in parts.items()}
        if "columns" in parts:
            renamed[name]["columns"] = [names.get(column, column) for column in parts["columns"]]
    return renamed


def _rename_part(part: str, names: Mapping[str, str]) -> str:
    kind, colon, column = part.partition(":")
    if colon and kind == "column":
        return f"column:{names.get(column, column)}"
    return "/".join(names.get(key, key) for key in part.split("/"))


if __name__ == "__main__":
    sys.exit(main())
