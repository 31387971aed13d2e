"""The commands beside the app, as `cli.parser` lists them: simulate, reviews, models, import."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bids_cmb.cli.evaluation import add_compare, add_evaluate, run_compare, run_evaluate
from bids_cmb.cli.parser import add_command, log_message, sentence_of
from bids_cmb.cli.training import add_release, add_train, run_release, run_train
from bids_cmb.config import THREADS
from bids_cmb.errors import ExitError, guard_standard_output


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code."""
    top = argparse.ArgumentParser(prog="bids-cmb", allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True)
    _add_simulate(commands)
    add_train(commands)
    add_release(commands)
    add_evaluate(commands)
    add_compare(commands)
    _add_reviews(commands)
    _add_models(commands)
    _add_import(commands)
    try:
        with guard_standard_output():
            return _run_command(top.parse_args(argv))
    except ExitError as end:
        sys.stderr.write(f"bids_cmb: {end}\n")
        return end.code


def _run_command(args: argparse.Namespace) -> int:
    """Run the command of a command line; an error is one sentence. Returns the exit code."""
    for name in THREADS:  # processes share the cores: with more threads they take twice as long
        os.environ.setdefault(name, "1")
    runners = {
        "simulate": _run_simulate,
        "train": run_train,
        "release": run_release,
        "evaluate": run_evaluate,
        "compare": run_compare,
        "reviews": _run_reviews,
        "models": _run_models,
        "import-labels": _run_import,
    }
    try:
        return runners[args.command](args)
    except BrokenPipeError:  # of the reader of standard output
        raise
    except (ValueError, OSError) as error:
        from bids_cmb.parallel.processes import describe_error

        sys.stderr.write(f"bids_cmb: {describe_error(error)}\n")
        return 1


def _add_simulate(commands: argparse._SubParsersAction) -> None:
    command = add_command(commands, "simulate")
    command.add_argument(
        "folder",
        type=Path,
        help="folder for the dataset: an empty one, or one of the same simulation, interrupted",
    )
    command.add_argument(
        "--n-scans", type=int, default=3, metavar="N", help="scans to simulate (default: 3)"
    )
    command.add_argument(
        "--seed", type=int, default=1, metavar="N",
        help="seed of the random numbers (default: 1)",
    )  # fmt: skip
    command.add_argument(
        "--anatomy",
        type=Path,
        metavar="DIR",
        help="folder of label maps with FreeSurfer's codes, used in turn (default: synthetic head "
        "models)",
    )
    command.add_argument(
        "--protocol",
        nargs="+",
        default=[],
        metavar="NAME",
        help="acquisition protocols, used in turn: presets of resources/simulation/protocols.json, "
        "JSON files like it, or random (default: random)",
    )
    command.add_argument(
        "--lesion-priors",
        default="default",
        metavar="NAME",
        help="priors of lesions and mimics, by their name in "
        "resources/simulation/lesion_priors.json (default: default)",
    )
    command.add_argument(
        "--sessions",
        type=int,
        default=1,
        metavar="N",
        help="sessions of each participant: the head moved, microbleeds that stay, come and fade, "
        "and another protocol for every second participant (default: 1)",
    )
    command.add_argument("--phase", action="store_true", help="also write phase images")
    command.add_argument(
        "--workers", type=int, default=1, metavar="N", help="parallel processes (default: 1)"
    )


def _run_simulate(args: argparse.Namespace) -> int:
    """Simulate a dataset, and log the time left. Returns the exit code."""
    from bids_cmb.simulation.dataset import DatasetPlan, simulate_dataset
    from bids_cmb.workflow.status import format_count

    plan = DatasetPlan(
        scans=args.n_scans,
        seed=args.seed,
        anatomy=args.anatomy,
        protocols=args.protocol,
        priors=args.lesion_priors,
        with_phase=args.phase,
        sessions=args.sessions,
    )
    report = partial(_log_progress, args.workers)
    numbers = simulate_dataset(args.folder, plan, workers=args.workers, progress=report)
    scans, lesions = format_count(len(numbers), "scan"), format_count(sum(numbers), "microbleed")
    sys.stdout.write(f"{args.folder}: {scans}, {lesions}.\n")
    return 0


def _log_progress(workers: int, done: int, scans: int, seconds: float) -> None:
    """Log the time left; the other scans that are being simulated are half done, on average."""
    from bids_cmb.workflow.status import format_duration

    begun = min(workers - 1, scans - done) / 2
    left = seconds / (done + begun) * (scans - done - begun)
    remaining = f"; {format_duration(left)} left" if left else ""
    sys.stderr.write(f"bids_cmb: {done} of {scans} scans done{remaining}.\n")


def _add_reviews(commands: argparse._SubParsersAction) -> None:
    command = add_command(commands, "reviews")
    command.add_argument("found", type=Path, help="output folder of the app that was reviewed")
    command.add_argument(
        "reviews", type=Path, help="folder of the review tables saved from the pages"
    )
    command.add_argument("data", type=Path, help="BIDS dataset that the output was made from")
    command.add_argument("out", type=Path, help="folder for the reference, a derivative dataset")


def _run_reviews(args: argparse.Namespace) -> int:
    """Write the truth, and print the number of scans. Returns the exit code."""
    from bids_cmb.review.reference import write_reference
    from bids_cmb.workflow.status import format_count

    scans = write_reference(args.found, args.data, args.reviews, args.out, log=log_message)
    sys.stdout.write(f"{args.out}: {format_count(scans, 'scan')}.\n")
    return 0


def _add_models(commands: argparse._SubParsersAction) -> None:
    verbs = add_command(commands, "models").add_subparsers(dest="verb", required=True)
    about = {
        "add": "install SHIVA-CMB's published networks, or others with its model_info.json",
        "create": "create a detector from networks that `train` wrote",
        "list": "list the models, their checksums and figures",
        "verify": "check that the weights of each model in the folder are there and unaltered",
    }
    for verb, description in about.items():
        command = verbs.add_parser(
            verb, help=description, description=sentence_of(description), allow_abbrev=False
        )
        if verb == "add":
            command.add_argument(
                "source", type=Path, nargs="+", help="a zip, a folder, or the network files"
            )
        if verb == "create":
            command.add_argument("name", help="name of the new detector")
            command.add_argument(
                "entry",
                nargs="+",
                metavar="[PART=]JSON",
                help="entries that training wrote, such as OUT/ensemble-c.json; for detectors of "
                "several stages with the name of the part, such as boxes=OUT/cascade-boxes.json",
            )
            command.add_argument(
                "--like",
                default="ensemble",
                metavar="DETECTOR",
                help="detector to take thresholds, rules and other parts from (default: ensemble)",
            )
            command.add_argument(
                "--threshold",
                type=float,
                metavar="P",
                help="threshold of the detector (default: that of --like)",
            )
        command.add_argument(
            "--model-dir",
            type=Path,
            default=os.environ.get("BIDS_CMB_MODEL_DIR"),
            metavar="DIR",
            help="folder of model cards and weights (default: $BIDS_CMB_MODEL_DIR)",
        )


def _run_models(args: argparse.Namespace) -> int:
    """Add, create, list or verify models. Returns the exit code."""
    folder = Path(args.model_dir) if args.model_dir else None
    if args.verb == "list":
        from bids_cmb.networks.weights import describe_models

        sys.stdout.write(describe_models(folder))
        return 0
    if folder is None:
        sys.stderr.write(
            "bids_cmb: a folder of models is needed: --model-dir DIR, or BIDS_CMB_MODEL_DIR.\n"
        )
        return 64
    if args.verb == "create":
        return _make_card(args, folder)
    from bids_cmb.networks.external.shiva import install_models, verify_models

    if args.verb == "add":
        names = install_models(args.source, folder, log_message)
        sys.stdout.write(
            f"Installed; use them with --model-dir {folder} --detector {names[0]}, or {names[1]}.\n"
        )
        return 0
    faults_by_model = verify_models(folder)
    for name, fault in faults_by_model.items():
        sys.stdout.write(f"{name}: {fault or 'as on its card'}\n")
    return 1 if any(faults_by_model.values()) else 0


def _parse_part(text: str) -> tuple[str, Path]:
    part, separator, path = text.partition("=")
    return (part, Path(path)) if separator and not Path(text).exists() else ("", Path(text))


def _make_card(args: argparse.Namespace, folder: Path) -> int:
    """Make the card of a detector of the user's networks. Returns the exit code."""
    from bids_cmb.networks.user_models import make_card

    entries = [_parse_part(entry) for entry in args.entry]
    make_card(args.name, entries, folder, like=args.like, threshold=args.threshold)
    sys.stdout.write(f"Card written; use it with --model-dir {folder} --detector {args.name}.\n")
    return 0


def _add_import(commands: argparse._SubParsersAction) -> None:
    command = add_command(commands, "import-labels")
    command.add_argument(
        "format",
        choices=("valdo", "momeni", "dou", "almasni", "csv", "mars"),
        help="format of the labels: of the dataset of VALDO, Momeni, Dou or Al-masni; csv: a table "
        "of points; mars: MARS rating sheets; see docs/howto/import.md",
    )
    command.add_argument("source", type=Path, help="folder of the labels; never changed")
    command.add_argument(
        "folder", type=Path, help="output folder; must be empty, and not in the source"
    )
    command.add_argument(
        "--index-base",
        type=int,
        choices=(0, 1),
        dest="base",
        help="index of the first voxel (default: that of the source, else inferred from the "
        "darkness of the points)",
    )
    command.add_argument(
        "--flips",
        metavar="AXES",
        help="axes counted from the far end: none, or of x, y, z, such as xz (default: as for "
        "--index-base)",
    )
    command.add_argument(
        "--order",
        metavar="AXES",
        help="axes of the three indices, such as yxz (default: as for --index-base)",
    )
    command.add_argument(
        "--suffix",
        choices=("T2starw", "swi"),
        help="BIDS suffix of the scans (default: that of the source, else T2starw)",
    )
    command.add_argument(
        "--skip-invalid",
        action="store_true",
        help="skip scans that cannot be used (default: import nothing if there is one)",
    )


def _run_import(args: argparse.Namespace) -> int:
    """Import labels, and print a summary. Returns the exit code."""
    from bids_cmb.datasets.convert import ImportOptions, import_labels
    from bids_cmb.workflow.status import format_count

    flips = "" if args.flips == "none" else args.flips
    options = ImportOptions(args.base, flips, args.order, args.suffix, args.skip_invalid)
    made = import_labels(args.format, args.source, args.folder, options=options, log=log_message)
    lesions = (
        "counts, no positions" if made.lesions is None else format_count(made.lesions, "microbleed")
    )
    balls = f", {made.balls} of them balls" if made.balls else ""
    out = f", {len(made.skipped)} skipped" if made.skipped else ""
    scans = format_count(made.scans, "scan")
    sys.stdout.write(f"{args.folder}: {scans}, {lesions}{balls}{out}.\n")
    return 0
