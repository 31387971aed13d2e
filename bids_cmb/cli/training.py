"""The commands `train` and `release`."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from bids_cmb.cli.parser import add_command, log_message

OVERRIDES = {  # settings of a recipe that `train` can change
    "seed": "seed of the random numbers",
    "epochs": "epochs",
    "steps": "steps of an epoch",
}


class _ListRecipes(argparse.Action):
    """Lists the recipes and ends, as ``--help`` does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print, and exit."""
        from bids_cmb.training.catalogue import describe_recipes

        sys.stdout.write(describe_recipes())
        parser.exit()


def add_train(commands: argparse._SubParsersAction) -> None:
    """Add the command `train`."""
    command = add_command(commands, "train")
    command.add_argument(
        "--list", action=_ListRecipes, nargs=0,
        help="list the recipes, what they need, their size and cost, and exit",
    )  # fmt: skip
    command.add_argument(
        "recipe", help="name of a recipe in resources/recipes, or a JSON file like it"
    )
    command.add_argument(
        "data", type=Path, nargs="+",
        help="BIDS datasets with reference labels; for anatomy also label maps",
    )  # fmt: skip
    command.add_argument(
        "out", type=Path, help="output folder; a training that was stopped there resumes"
    )
    _add_material(command.add_argument_group("what is learnt from"))
    _add_course(command.add_argument_group("how long, and with what"))


def _add_material(group: argparse._ArgumentGroup) -> None:
    """Add the options for scans, their truth, and networks to begin with."""
    group.add_argument(
        "--validation", type=Path, nargs="+", default=[], metavar="DIR",
        help="BIDS datasets to validate on (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--truth", type=Path, metavar="DIR",
        help="derivative dataset with the reference labels (default: derivatives/truth of the "
        "data)",
    )  # fmt: skip
    group.add_argument(
        "--reviews", type=Path, metavar="DIR",
        help="folder of reviews of the app's results in --truth, to train on the reviewed lesions",
    )  # fmt: skip
    group.add_argument(
        "--fine-tune", type=Path, metavar="NPZ",
        help="initial weights, trained further at a lower learning rate (default: random weights)",
    )  # fmt: skip
    group.add_argument(
        "--pretrained", nargs="+", default=[], metavar="ROLE=JSON",
        help="trained networks that this one builds on, such as teacher=OUT/x.json",
    )  # fmt: skip
    group.add_argument(
        "--folds", type=int, metavar="K", help="cross-validate with K folds, split by subject"
    )


def _add_course(group: argparse._ArgumentGroup) -> None:
    """Add the options for the course of a training."""
    for name, about in OVERRIDES.items():
        group.add_argument(
            f"--{name}", type=int, metavar="N", help=f"{about} (default: that of the recipe)"
        )
    group.add_argument(
        "--hours", type=float, metavar="H",
        help="wall-clock time for the training, of each fold; the learning rate decays by then "
        "(default: no limit, the recipe's epochs)",
    )  # fmt: skip
    group.add_argument(
        "--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)"
    )
    group.add_argument(
        "--cache", type=Path, metavar="DIR",
        help="folder to keep the scans in as the network sees them, about 20 MB each, so that the "
        "next training loads them in seconds (default: none)",
    )  # fmt: skip


def run_train(args: argparse.Namespace) -> int:
    """Train, and log the progress. Returns the exit code."""
    from bids_cmb.networks.backend import set_threads

    set_threads(args.threads)
    from bids_cmb.training.catalogue import list_next_commands
    from bids_cmb.training.cross_validation import cross_validate
    from bids_cmb.training.inputs import TrainingData
    from bids_cmb.training.scan_loading import Loading
    from bids_cmb.training.train import read_recipe, train

    others = {name: getattr(args, name) for name in OVERRIDES if getattr(args, name) is not None}
    truth = _write_reviewed_truth(args) if args.reviews else args.truth
    material = TrainingData(
        tuple(args.data), tuple(args.validation), truth, args.fine_tune,
        pretrained=tuple(map(_parse_role, args.pretrained)),
        loading=Loading(args.threads, args.cache),
    )  # fmt: skip
    recipe = replace(read_recipe(args.recipe), **others)
    if args.folds:
        cross_validate(
            recipe, material, args.out, folds=args.folds, hours=args.hours, log=log_message
        )
    else:
        train(recipe, material, args.out, hours=args.hours, log=log_message)
        sys.stdout.write(f"Trained. Open in a browser: {args.out / 'report.html'}\n")
        if commands := list_next_commands(recipe.name, args.out / f"{recipe.name}.json"):
            sys.stdout.write("\n".join(["Next:", *commands, ""]))
    return 0


def _write_reviewed_truth(args: argparse.Namespace) -> Path:
    """Write the truth by reviews into the folder of the training.

    Raises:
        ValueError: If the results that were reviewed are not named, or there are several datasets.
    """
    from bids_cmb.review.reference import write_reference

    if args.truth is None or len(args.data) != 1 or args.validation:
        raise ValueError(
            "--reviews needs one dataset, no --validation (use --folds), and --truth with the "
            "app's results of it."
        )
    folder = args.out / "reviewed"
    write_reference(args.truth, args.data[0], args.reviews, folder, log=log_message)
    return folder


def _parse_role(text: str) -> tuple[str, Path]:
    role, separator, path = text.partition("=")
    if not separator:
        raise ValueError(f"--pretrained takes ROLE=JSON; found {text!r}.")
    return role, Path(path)


def add_release(commands: argparse._SubParsersAction) -> None:
    """Add the command `release`."""
    command = add_command(commands, "release")
    command.add_argument("plan", help="name of a plan in resources/plans, or a JSON file like it")
    command.add_argument(
        "anatomy", type=Path, help="folder of label maps of whole heads with FreeSurfer's codes"
    )
    command.add_argument(
        "work", type=Path, help="output folder; a run that was stopped there resumes"
    )
    command.add_argument(
        "--hours",
        type=float,
        metavar="H",
        help="wall-clock time for all trainings together (default: no limit)",
    )
    command.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="parallel processes for the simulation (default: 1)",
    )
    command.add_argument(
        "--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)"
    )
    command.add_argument(
        "--small", type=int, nargs=2, metavar=("SCANS", "STEPS"),
        help="trial run: at most so many scans per set and steps per epoch, and two epochs",
    )  # fmt: skip
    command.add_argument(
        "--real", type=Path, nargs=2, metavar=("DIR", "TABLE"),
        help="real scans (a BIDS dataset) and a table of their microbleeds (subject, x_mm, y_mm, "
        "z_mm), by which the threshold is set; nothing else is",
    )  # fmt: skip


def run_release(args: argparse.Namespace) -> int:
    """Make a detector by a plan, and log the progress. Returns the exit code."""
    from bids_cmb.networks.backend import set_threads

    set_threads(args.threads)
    from bids_cmb.training.release import ReleaseOptions, read_plan, release

    small = tuple(args.small) if args.small else None
    real = tuple(args.real) if args.real else None
    means = ReleaseOptions(args.anatomy, args.work, args.hours, args.workers, small, real)
    card = release(read_plan(args.plan), means, log=log_message)
    for point in card["operating_points"]:
        sys.stdout.write(
            f"{point['name']}: threshold {point['threshold']:g}, sensitivity "
            f"{point['sensitivity']:.2f} at {point['false_per_scan']:.2f} false per scan\n"
        )
    sys.stdout.write(
        f"{args.work / 'release'}: use it with --model-dir and --detector {card['name']}.\n"
    )
    return 0
