"""What a network is trained on and validated on; what must not change when training resumes."""

import json
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

from bids_cmb.files import read_json
from bids_cmb.provenance import fingerprint, sha256
from bids_cmb.training.recipe import Recipe, Sources
from bids_cmb.training.scan_files import find_training_scans
from bids_cmb.training.scan_loading import Loading


@dataclass(frozen=True)
class TrainingData:
    """What a network is trained on.

    Attributes:
        data: BIDS datasets with reference labels; for anatomy also folders of label maps.
        validation: The same, for choosing among epochs; without any, the last epoch is kept.
        truth: Derivative dataset with the reference of all data, where it does not lie in
            ``derivatives/truth`` of each.
        start: Weights to begin with, ``.npz``; random without.
        left_out: Subjects of ``data`` that are validated on instead of trained on.
        pretrained: Networks that this one builds on, see `training.recipe.Sources`.
        loading: How the scans are loaded; makes no difference to what is trained.
    """

    data: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    truth: Path | None = None
    start: Path | None = None
    left_out: tuple[str, ...] = ()
    pretrained: tuple[tuple[str, Path], ...] = ()
    loading: Loading = field(default_factory=Loading)


def check_output_dir(out: Path, inputs: dict[str, dict]) -> None:
    """Check that a folder is not that of another training, and no dataset.

    Raises:
        ValueError: If it is.
    """
    if (out / "dataset_description.json").exists():
        raise ValueError(f"{out}: a network is trained in a folder of its own; found a dataset.")
    for name, content in inputs.items():
        stored, wanted = read_json(out / name), json.loads(json.dumps(content))
        if stored is None:
            if (out / name).exists():
                raise ValueError(f"{out / name}: a training goes on by this file; found no JSON.")
            continue
        if name == "recipe.json":  # fields that came after it was written have their defaults
            stored = {key: stored.get(key, was) for key, was in _defaults().items()} | stored
        if stored != wanted:
            other = [key for key in {**wanted, **stored} if stored.get(key) != wanted.get(key)]
            what = name.removesuffix(".json")
            raise ValueError(
                f"{out / name}: training goes on with the {what} that it began with; found another "
                f"one ({', '.join(other)})."
            )


def _defaults() -> dict:
    """List the defaults of the recipe fields that may be left out, as JSON has them."""
    known = {item.name: item.default for item in fields(Recipe) if item.default is not MISSING}
    return json.loads(json.dumps(known))


def describe_inputs(
    data: TrainingData, sources: Sources, validation_sources: Sources | None
) -> dict:
    """Describe what a network is trained on, wherever it lies: what must not change on resuming."""
    return {
        "data": _digest(sources),
        "validation": _digest(validation_sources) if validation_sources else None,
        "start": sha256(data.start) if data.start else None,
        "given": {
            role: sha256(Path(path)) if Path(path).is_file() else None
            for role, path in data.pretrained
        },
        "left_out": list(data.left_out),
    }


def _digest(sources: Sources) -> dict:
    """Count scans and heads, and checksum them: references by content, images by name and size."""
    scans = [
        [paths.name, sha256(paths.lesions)]
        + [
            (path.name, path.stat().st_size)
            for path in vars(paths).values()
            if isinstance(path, Path)
        ]
        for paths in sources.scans
    ]
    heads = [
        (head.name, head.stat().st_size)
        for folder in sources.label_maps
        for head in sorted(folder.glob("*.nii*"))
    ]
    return {"scans": len(scans), "heads": len(heads), "sha256": fingerprint(of=[scans, heads])}


def find_sources(recipe: Recipe, material: TrainingData, *, learn: bool) -> Sources | None:
    """Find what is sampled from, to train or to validate; None without a validation."""
    data = material.data if learn or material.left_out else material.validation
    if not data:
        return None
    label_maps = [folder for folder in data if not (folder / "dataset_description.json").is_file()]
    for folder in label_maps:
        if any(path.is_dir() for path in folder.glob("sub-*")):
            raise ValueError(
                f"{folder}: a BIDS dataset must have a dataset_description.json; found none beside "
                "its participants. A simulation that was interrupted goes on with the same command."
            )
    scans = [
        scan
        for folder in data
        if folder not in label_maps
        for scan in find_training_scans(folder, material.truth)
        if not material.left_out or (scan.subject in material.left_out) != learn
    ]
    if not scans and not label_maps:
        what = "learns from" if learn else "is validated on"
        raise ValueError(
            f"{recipe.name} {what} scans with a truth; found none in "
            f"{', '.join(map(str, data))} but those left out."
        )
    return Sources(scans, label_maps, dict(material.pretrained), material.loading)
