"""Release a detector: simulate, train, set operating points, write the card.

A plan (``resources/plans/<name>.json``) names the sets of scans, the networks in their order and
what the card says. What exists already is kept, so that a run which was stopped goes on.
"""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bids_cmb.files import load_object, write_json
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.resource_files import RESOURCES
from bids_cmb.simulation.dataset import DatasetPlan, simulate_dataset
from bids_cmb.simulation.head_model import list_head_models
from bids_cmb.training.inputs import TrainingData
from bids_cmb.training.operating_points import (
    convert_to_json,
    detect_in_dataset,
    detect_with_points,
    set_operating_points,
)
from bids_cmb.training.scan_loading import Loading
from bids_cmb.training.train import read_recipe, train

SET_KEYS = {"scans", "seed", "lesion_priors", "of"}
NETWORK_KEYS = {"recipe", "data", "validation", "share"}
OPTIONAL_SET_KEYS, OPTIONAL_NETWORK_KEYS = {"protocols"}, {"pretrained", "start", "member", "use"}
PLANS = RESOURCES / "plans"
Log = Callable[[str], None]


@dataclass(frozen=True)
class ReleaseOptions:
    """The resources and limits of a release.

    Attributes:
        anatomy: Folder of FreeSurfer-coded label maps; a plan names heads by their order in it.
        work: Folder for sets, trainings and the release.
        hours: Wall time of all trainings; None for the epochs of the recipes.
        workers: Processes that simulate.
        small: Scans of a set and steps of an epoch, at most, for a trial; as planned without.
        real: A BIDS dataset of real scans and a table of their microbleeds, for
            `detect_with_points`, to set the threshold on; without, it is set on the scans that the
            plan names.
    """

    anatomy: Path
    work: Path
    hours: float | None = None
    workers: int = 1
    small: tuple[int, int] | None = None
    real: tuple[Path, Path] | None = None


def read_plan(name: str) -> dict:
    """Read the plan of that name, or the one in a JSON file.

    Raises:
        ValueError: If there is no such plan, it is no JSON, or it lacks something or has too much.
        OSError: If the file cannot be read.
    """
    known = sorted(entry.name.removesuffix(".json") for entry in PLANS.iterdir())
    if name not in known and not name.endswith(".json"):
        raise ValueError(
            f"A plan must be a JSON file or one of {', '.join(known)}; found {name!r}."
        )
    source = Path(name) if name.endswith(".json") else PLANS / f"{name}.json"
    plan = load_object(source, "a plan")
    needed = ("name", "heads", "protocols", "sets", "networks", "judged", "aims", "card")
    if lacking := [key for key in needed if key not in plan]:
        raise ValueError(f"{source}: a plan must hold {', '.join(lacking)}; found none.")
    for kind, keys, optional, parts in (
        ("set", SET_KEYS, OPTIONAL_SET_KEYS, plan["sets"].values()),
        ("network", NETWORK_KEYS, OPTIONAL_NETWORK_KEYS, plan["networks"]),
    ):
        if unknown := sorted({key for part in parts for key in part} - keys - optional):
            raise ValueError(
                f"{source}: a {kind} of a plan has {', '.join(sorted(keys | optional))} only; "
                f"found {', '.join(unknown)}."
            )
        if lacking := sorted({key for part in parts for key in keys - set(part)}):
            raise ValueError(
                f"{source}: each {kind} of a plan must hold {', '.join(sorted(keys))}; "
                f"one lacks {', '.join(lacking)}."
            )
    for label, given in plan["sets"].items():
        given.setdefault("protocols", given["of"])
        for key, choice in (("heads", given["of"]), ("protocols", given["protocols"])):
            if choice not in plan[key]:
                raise ValueError(
                    f"{source}: the {key} of the set {label} must be one of "
                    f"{', '.join(plan[key])}; found {choice}."
                )
    if absent := [name for name in plan["judged"] if name not in plan["sets"]]:
        raise ValueError(
            f"{source}: `judged` must list sets of the plan; found {', '.join(absent)}."
        )
    return plan


def release(plan: Mapping, options: ReleaseOptions, *, log: Log = lambda _: None) -> dict:
    """Make a detector as planned; a run that was stopped goes on.

    Args:
        plan: As `read_plan` gives it.
        options: Resources and limits.
        log: Called with a sentence on the progress.

    Returns:
        The card. It lies in ``work/release`` with the weights of its members and
        ``judged.json``, every candidate of the scans that the operating points were set on.

    Raises:
        ValueError: If the budget is not above 0, a head is missing, or as in
            `simulate_dataset` and `train`.
        OSError: If something cannot be read or written.
    """
    if options.hours is not None and not 0 < options.hours < math.inf:
        raise ValueError(f"A budget must be more than 0 hours; found {options.hours:g}.")
    for name, given in plan["sets"].items():
        simulate_set(name, given, plan, options, log)
    trained = [(given, train_network(given, plan, options, log)) for given in plan["networks"]]
    entries = [
        (entry | given.get("use", {}), path)
        for given, (entry, path) in trained
        if given.get("member", True)
    ]
    out = options.work / "release"
    out.mkdir(parents=True, exist_ok=True)
    for entry, path in entries:
        shutil.copyfile(path.with_name(entry["weights"]), out / entry["weights"])
    card = {**plan["card"], "threshold": 0.5, "definite_threshold": 0.5}
    card["members"] = [entry for entry, _ in entries]
    write_json(out / f"{card['name']}.json", card)
    candidate_sets = [
        scan
        for name in plan["judged"]
        for scan in detect_in_dataset(card, ModelOptions(out), options.work / "sets" / name, log)
    ]
    card |= set_operating_points(candidate_sets, plan["aims"])
    if options.real:  # with the card as it is now, the second opinion is asked as the app asks it
        real = list(detect_with_points(card, ModelOptions(out), *options.real, log))
        card |= set_operating_points(candidate_sets, plan["aims"], real)
    write_json(out / f"{card['name']}.json", card)
    write_json(out / "judged.json", {"scans": [convert_to_json(scan) for scan in candidate_sets]})
    return card


def simulate_set(
    name: str, given: Mapping, plan: Mapping, options: ReleaseOptions, log: Log
) -> Path:
    """Simulate the scans of a set, unless they are there and whole."""
    folder, part = options.work / "sets" / name, options.work / "sets" / f"{name}.part"
    if (folder / "dataset_description.json").is_file():
        return folder
    heads = list_head_models(options.anatomy)
    wanted = plan["heads"][given["of"]]
    if max(wanted) > len(heads):
        raise ValueError(
            f"{options.anatomy}: the plan {plan['name']} needs {max(wanted)} label maps of heads; "
            f"found {len(heads)}."
        )
    protocols = locate_protocols(plan["protocols"][given["protocols"]])
    scans = min(given["scans"], options.small[0]) if options.small else given["scans"]
    with tempfile.TemporaryDirectory() as chosen:
        for number in wanted:
            path = heads[number - 1]
            (Path(chosen) / path.name).symlink_to(path.absolute())
        content = DatasetPlan(
            scans, given["seed"], Path(chosen), protocols, given["lesion_priors"]
        )  # fmt: skip
        simulate_dataset(
            part, content, workers=options.workers,
            progress=lambda done, of, _: log(f"{name}: {done} of {of} scans simulated"),
        )  # fmt: skip
    part.rename(folder)
    return folder


def locate_protocols(names: Sequence[str]) -> list[str]:
    """Resolve the protocols of a plan for `simulate_dataset`: files are those of the package."""
    return [str(PLANS.parent / name) if name.endswith(".json") else name for name in names]


def train_network(
    given: Mapping, plan: Mapping, options: ReleaseOptions, log: Log
) -> tuple[dict, Path]:
    """Train a network of a plan, unless that is done; return its entry and the entry's path."""
    recipe, sets = read_recipe(given["recipe"]), options.work / "sets"
    if options.small:
        recipe = replace(recipe, steps=min(recipe.steps, options.small[1]), epochs=2, settle=1)
    runs = options.work / "runs"
    out = runs / recipe.name
    path = out / f"{recipe.name}.json"
    if not path.is_file():
        roles = [(role, runs / role / f"{role}.json") for role in given.get("pretrained", ())]
        material = TrainingData(
            tuple(sets / name for name in given["data"]),
            validation=tuple(sets / name for name in given["validation"]),
            pretrained=tuple(roles),
            start=runs / start / f"{start}.npz" if (start := given.get("start")) else None,
            loading=Loading(options.workers, options.work / "cache"),
        )
        total = sum(network["share"] for network in plan["networks"])
        hours = None if options.hours is None else options.hours * given["share"] / total
        began = time.monotonic()
        log(f"{recipe.name}: training begins")
        train(recipe, material, out, hours=hours, log=lambda text: log(f"{recipe.name}: {text}"))
        log(f"{recipe.name}: trained in {(time.monotonic() - began) / 60:.1f} min")
    return json.loads(path.read_text(encoding="utf-8")), path
