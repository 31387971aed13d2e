"""Test the installation: load the networks, and count the lesions of a synthetic scan."""

import time
from collections.abc import Callable
from pathlib import Path

from bids_cmb.config import Config
from bids_cmb.evaluation.evaluate import compute_evaluation
from bids_cmb.evaluation.options import EvaluationOptions
from bids_cmb.networks.backend import choose_engine, describe_device, find_device_problem
from bids_cmb.networks.loading import load_network, load_patch_model
from bids_cmb.networks.model_cards import list_cards, load_card, locate_weights, select_members
from bids_cmb.provenance import machine, software
from bids_cmb.simulation.dataset import DatasetPlan, simulate_dataset
from bids_cmb.workflow.run import run

SEED = 11
PROTOCOL = "alfa-t2star"
LESION_PRIORS = "crowded"  # give a scan with at least a dozen microbleeds
MIN_SENSITIVITY = 0.5  # broken networks find none of the microbleeds, or everything
MAX_FALSE_ALARMS = 10
Log = Callable[[str], None]


def run_tests(folder: Path, *, models: Path | None, device: str, log: Log) -> list[str]:
    """Test the networks and the app once.

    Args:
        folder: For temporary files; empty.
        models: The user's folder of cards and weights.
        device: ``gpu`` if there must be one.
        log: Called with a sentence on the progress.

    Returns:
        A sentence for each fault; empty if all is well.
    """
    log(", ".join(f"{name} {version}" for name, version in software().items()))
    log(f"networks on {describe_device()} by {choose_engine()}, {machine()['Cores']} cores")
    faults = []
    if fault := find_device_problem(device):
        faults.append(fault)
    faults += [
        fault for name in list_cards(models=models) for fault in _load_networks(name, models, log)
    ]
    return faults or _count_lesions(folder, models, log)


def _load_networks(name: str, models: Path | None, log: Log) -> list[str]:
    """Load the networks of a card; return their faults."""
    faults = []
    card = load_card(name, models)
    load = load_patch_model if "design" in card else load_network
    for member in select_members(card):
        began = time.monotonic()
        try:
            load(member, locate_weights(name, member, models))
        except ValueError as error:
            faults.append(str(error))
            continue
        took = time.monotonic() - began
        log(f"{name}, member {member['name']}: loaded and checked in {took:.1f} s")
    return faults


def _count_lesions(folder: Path, models: Path | None, log: Log) -> list[str]:
    """Simulate a scan, run the app on it as a user would, and compare with the truth."""
    raw, out = folder / "raw", folder / "out"
    began = time.monotonic()
    (true,) = simulate_dataset(
        raw, DatasetPlan(1, SEED, protocols=[PROTOCOL], priors=LESION_PRIORS)
    )
    log(f"a scan with {true} microbleeds simulated in {time.monotonic() - began:.1f} s")
    began = time.monotonic()
    levels = ("participant", "group")
    config = Config(raw, out, levels, model_dir=models, n_cpus=1, verbosity=-1, validate="off")
    if code := run(config):
        return [f"the app must process the synthetic scan; it ended with exit code {code}."]
    figures = compute_evaluation(
        out, raw / "derivatives" / "truth", EvaluationOptions(draws=10)
    ).figures
    sensitivity, false = figures["sensitivity"].value, figures["false_alarms"].value
    log(
        f"counted in {time.monotonic() - began:.1f} s: {sensitivity:.0%} of those that are sure "
        f"found, {false:.0f} false"
    )
    if sensitivity < MIN_SENSITIVITY or false > MAX_FALSE_ALARMS:
        return [
            f"at least {MIN_SENSITIVITY:.0%} of the microbleeds must be found with at most "
            f"{MAX_FALSE_ALARMS} false ones; found {sensitivity:.0%} and {false:.0f}."
        ]
    return []
