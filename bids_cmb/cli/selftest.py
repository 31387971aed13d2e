"""The app proves that it works where it stands: networks loaded, one synthetic scan counted."""

import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from bids_cmb.config import Config
from bids_cmb.evaluation.evaluate import compute_evaluation
from bids_cmb.evaluation.options import EvaluationOptions
from bids_cmb.networks.inference import (
    describe_device,
    find_device_problem,
    load_network,
    load_patch_model,
)
from bids_cmb.networks.model_cards import list_cards, load_card, locate_weights, select_members
from bids_cmb.provenance import machine, software
from bids_cmb.simulation.simulate import simulate_dataset
from bids_cmb.workflow.run import run

SEED = 11
PROTOCOL = "alfa-t2star"
LAW = "crowded"  # a scan with at least a dozen microbleeds
FEWEST_FOUND = 0.5  # of the scan's microbleeds; networks that are broken find none or everything
MOST_FALSE = 10
Say = Callable[[str], None]


def selftest(folder: Path, *, models: Path | None, asked_device: str, say: Say) -> list[str]:
    """Try everything once.

    Args:
        folder: For what is made on the way; empty.
        models: The user's folder of cards and weights.
        asked_device: ``gpu`` if there must be one.
        say: Told what was found and how long it took.

    Returns:
        What is off, in sentences; empty if all is well.
    """
    say(", ".join(f"{name} {version}" for name, version in software().items()))
    say(f"tensorflow {_tensorflow_version()}, {describe_device()}, {machine()['Cores']} cores")
    wrong = []
    if said := find_device_problem(asked_device):
        wrong.append(said)
    wrong += [said for name in list_cards(models=models) for said in _loaded(name, models, say)]
    return wrong or _counted(folder, models, say)


def _tensorflow_version() -> str:
    for name in ("tensorflow", "tensorflow-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "absent"


def _loaded(name: str, models: Path | None, say: Say) -> list[str]:
    """Load the networks of a card; what is wrong with them."""
    wrong = []
    said = load_card(name, models)
    loaded = load_patch_model if "design" in said else load_network
    for member in select_members(said):
        began = time.monotonic()
        try:
            loaded(member, locate_weights(name, member, models))
        except ValueError as error:
            wrong.append(str(error))
            continue
        took = time.monotonic() - began
        say(f"{name}, member {member['name']}: loaded and checked in {took:.1f} s")
    return wrong


def _counted(folder: Path, models: Path | None, say: Say) -> list[str]:
    """Simulate a scan, run the app on it as a user would, and compare with the truth."""
    raw, out = folder / "raw", folder / "out"
    began = time.monotonic()
    (true,) = simulate_dataset(raw, scans=1, seed=SEED, protocols=[PROTOCOL], priors=LAW)
    say(f"a scan with {true} microbleeds simulated in {time.monotonic() - began:.1f} s")
    began = time.monotonic()
    levels = ("participant", "group")
    config = Config(raw, out, levels, model_dir=models, n_cpus=1, verbosity=-1, validate="off")
    if code := run(config):
        return [f"the app must process the synthetic scan; it ended with exit code {code}."]
    found = compute_evaluation(
        out, raw / "derivatives" / "truth", EvaluationOptions(draws=10)
    ).figures
    sensitivity, false = found["sensitivity"].value, found["false_alarms"].value
    say(
        f"counted in {time.monotonic() - began:.1f} s: {sensitivity:.0%} of those that are sure "
        f"found, {false:.0f} false"
    )
    if sensitivity < FEWEST_FOUND or false > MOST_FALSE:
        return [
            f"at least {FEWEST_FOUND:.0%} of the microbleeds must be found with at most "
            f"{MOST_FALSE} false ones; found {sensitivity:.0%} and {false:.0f}."
        ]
    return []
