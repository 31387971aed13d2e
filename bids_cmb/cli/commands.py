"""The commands beside the app: simulate, train, evaluate and what else `cli.main` lists."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bids_cmb.cli.main import COMMANDS, sentence_of
from bids_cmb.config import THREADS
from bids_cmb.errors import ExitError, guard_standard_output

COMPARED = (  # figures that `compare` prints
    *("f1", "best_f1", "sensitivity_at_0.5_fp", "sensitivity_at_1_fp", "sensitivity_at_2_fp"),
    *("sensitivity_at_4_fp", "sensitivity_large_at_0.5_fp", "rank_mean", "rank_auc"),
)
RATES = ("0.5", "1", "2", "4")  # false alarms per scan, of which the line tells
OVERRIDES = {  # settings of a recipe that `train` can change
    "seed": "seed of the random numbers",
    "epochs": "epochs",
    "steps": "steps of an epoch",
}
SAID = ("sensitivity", "precision", "f1", "fp_per_scan")


def main(argv: Sequence[str] | None = None) -> int:
    """Make something. Returns the exit code."""
    top = argparse.ArgumentParser(prog="bids-cmb", allow_abbrev=False)
    makers = top.add_subparsers(dest="maker", required=True)
    _add_simulate(makers)
    _add_train(makers)
    _add_release(makers)
    _add_evaluate(makers)
    _add_compare(makers)
    _add_reviewed(makers)
    _add_models(makers)
    _add_import(makers)
    try:
        with guard_standard_output():
            return _make(top.parse_args(argv))
    except ExitError as end:
        sys.stderr.write(f"bids_cmb: {end}\n")
        return end.code


def _make(given: argparse.Namespace) -> int:
    """Do what a maker's command line asks for. Returns the exit code."""
    for (
        name
    ) in THREADS:  # processes share the cores: with threads of their own they take twice as long
        os.environ.setdefault(name, "1")
    doors = {
        "simulate": _simulate,
        "train": _train,
        "release": _release,
        "evaluate": _evaluate,
        "compare": _compare,
        "reviews": _reviewed,
        "models": _models,
        "import-labels": _import,
    }
    return doors[given.maker](given)


def _add_command(
    makers: argparse._SubParsersAction, name: str, **more: object
) -> argparse.ArgumentParser:
    """Add a command, described as the list of all commands describes it."""
    more = {"description": sentence_of(COMMANDS[name]), "allow_abbrev": False, **more}
    return makers.add_parser(name, help=COMMANDS[name], **more)


def _add_simulate(makers: argparse._SubParsersAction) -> None:
    maker = _add_command(makers, "simulate")
    maker.add_argument("folder", type=Path, help="folder for the dataset; must be empty")
    maker.add_argument(
        "--n-scans", type=int, default=3, metavar="N", help="scans to simulate (default: 3)"
    )
    maker.add_argument(
        "--seed", type=int, default=1, metavar="N",
        help="seed of the random numbers (default: 1)",
    )  # fmt: skip
    maker.add_argument(
        "--anatomy",
        type=Path,
        metavar="DIR",
        help="folder of label maps with FreeSurfer's codes, used in turn (default: synthetic head "
        "models)",
    )
    maker.add_argument(
        "--protocol",
        nargs="+",
        default=[],
        metavar="NAME",
        help="acquisition protocols, used in turn: presets of resources/simulation/protocols.json, "
        "JSON files like it, or random (default: random)",
    )
    maker.add_argument(
        "--lesion-priors",
        default="default",
        metavar="NAME",
        help="priors of lesions and mimics, by their name in "
        "resources/simulation/lesion_priors.json (default: default)",
    )
    maker.add_argument("--phase", action="store_true", help="also write phase images")
    maker.add_argument(
        "--workers", type=int, default=1, metavar="N", help="parallel processes (default: 1)"
    )


def _simulate(given: argparse.Namespace) -> int:
    """Make a dataset, and say on the way how long it will take. Returns the exit code."""
    from bids_cmb.parallel.processes import describe_error
    from bids_cmb.simulation.simulate import simulate_dataset

    try:
        numbers = simulate_dataset(
            given.folder,
            scans=given.n_scans,
            seed=given.seed,
            anatomy=given.anatomy,
            protocols=given.protocol,
            priors=given.lesion_priors,
            with_phase=given.phase,
            workers=given.workers,
            progress=_say,
        )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"bids_cmb: {describe_error(error)}\n")
        return 1
    sys.stdout.write(f"{given.folder}: {len(numbers)} scans, {sum(numbers)} microbleeds.\n")
    return 0


def _say(done: int, scans: int, seconds: float) -> None:
    left = seconds / done * (scans - done)
    about = f"about {left / 60:.0f} min" if left >= 90 else f"about {left:.0f} s"
    sys.stderr.write(f"bids_cmb: {done} of {scans} scans, {about} to go.\n")


def _add_train(makers: argparse._SubParsersAction) -> None:
    maker = _add_command(makers, "train")
    maker.add_argument(
        "recipe", help="name of a recipe in resources/recipes, or a JSON file like it"
    )
    maker.add_argument(
        "data",
        type=Path,
        nargs="+",
        help="BIDS datasets with reference labels; for anatomy also label maps",
    )
    maker.add_argument(
        "out", type=Path, help="output folder; a training that was stopped there resumes"
    )
    maker.add_argument(
        "--validation",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="BIDS datasets to validate on (default: none)",
    )
    maker.add_argument(
        "--truth",
        type=Path,
        metavar="DIR",
        help="derivative dataset with the reference labels (default: derivatives/truth of the "
        "data)",
    )
    maker.add_argument(
        "--reviews",
        type=Path,
        metavar="DIR",
        help="folder of reviews of the app's results in --truth, to train on the reviewed lesions",
    )
    maker.add_argument(
        "--fine-tune",
        type=Path,
        metavar="NPZ",
        help="initial weights, trained further at a lower learning rate (default: random weights)",
    )
    maker.add_argument(
        "--pretrained",
        nargs="+",
        default=[],
        metavar="ROLE=JSON",
        help="trained networks that this one builds on, such as teacher=OUT/x.json",
    )
    maker.add_argument(
        "--folds", type=int, metavar="K", help="cross-validate with K folds, split by subject"
    )
    for name, about in OVERRIDES.items():
        maker.add_argument(
            f"--{name}", type=int, metavar="N", help=f"{about} (default: that of the recipe)"
        )
    maker.add_argument(
        "--hours",
        type=float,
        metavar="H",
        help="wall-clock time for the training, of each fold; the learning rate decays by then "
        "(default: no limit, the recipe's epochs)",
    )
    maker.add_argument(
        "--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)"
    )
    maker.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder to keep the scans in as the network sees them, about 20 MB each, so that the "
        "next training loads them in seconds (default: none)",
    )


def _train(given: argparse.Namespace) -> int:
    """Train, and say on the way how it goes. Returns the exit code."""
    from bids_cmb.networks.inference import set_threads
    from bids_cmb.parallel.processes import describe_error

    set_threads(given.threads)
    from bids_cmb.training.data import Loading
    from bids_cmb.training.train import TrainingData, cross_validate, read_recipe, train

    others = {name: getattr(given, name) for name in OVERRIDES if getattr(given, name) is not None}
    try:
        truth = _reviewed_truth(given) if given.reviews else given.truth
        material = TrainingData(
            tuple(given.data), tuple(given.validation), truth, given.fine_tune,
            pretrained=tuple(map(_role, given.pretrained)),
            loading=Loading(given.threads, given.cache),
        )  # fmt: skip
        recipe = replace(read_recipe(given.recipe), **others)
        if given.folds:
            cross_validate(
                recipe, material, given.out, folds=given.folds, hours=given.hours, log=_tell
            )
        else:
            train(recipe, material, given.out, hours=given.hours, log=_tell)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"bids_cmb: {describe_error(error)}\n")
        return 1
    return 0


def _reviewed_truth(given: argparse.Namespace) -> Path:
    """The truth that readers left, written into the folder of the training.

    Raises:
        ValueError: If the results that were reviewed are not named, or there are several datasets.
    """
    from bids_cmb.review.reference import write_reference

    if given.truth is None or len(given.data) != 1 or given.validation:
        raise ValueError(
            "--reviews needs one dataset, no --validation (use --folds), and --truth with the "
            "app's results of it."
        )
    folder = given.out / "reviewed"
    write_reference(given.truth, given.data[0], given.reviews, folder, log=_tell)
    return folder


def _add_reviewed(makers: argparse._SubParsersAction) -> None:
    maker = _add_command(makers, "reviews")
    maker.add_argument("found", type=Path, help="output folder of the app that was reviewed")
    maker.add_argument(
        "reviews", type=Path, help="folder of the review tables saved from the pages"
    )
    maker.add_argument("data", type=Path, help="BIDS dataset that the output was made from")
    maker.add_argument("out", type=Path, help="folder for the reference, a derivative dataset")


def _reviewed(given: argparse.Namespace) -> int:
    """Write the truth and say how many scans it has. Returns the exit code."""
    from bids_cmb.review.reference import write_reference

    try:
        scans = write_reference(given.found, given.data, given.reviews, given.out, log=_tell)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"bids_cmb: {error}\n")
        return 1
    sys.stdout.write(f"{given.out}: {scans} scans.\n")
    return 0


def _role(said: str) -> tuple[str, Path]:
    role, found, path = said.partition("=")
    if not found:
        raise ValueError(f"--pretrained takes ROLE=JSON; found {said!r}.")
    return role, Path(path)


def _tell(said: str) -> None:
    sys.stderr.write(f"bids_cmb: {said}\n")


def _add_release(makers: argparse._SubParsersAction) -> None:
    maker = _add_command(makers, "release")
    maker.add_argument("plan", help="name of a plan in resources/plans, or a JSON file like it")
    maker.add_argument(
        "anatomy", type=Path, help="folder of label maps of whole heads with FreeSurfer's codes"
    )
    maker.add_argument(
        "work", type=Path, help="output folder; a run that was stopped there resumes"
    )
    maker.add_argument(
        "--hours",
        type=float,
        metavar="H",
        help="wall-clock time for all trainings together (default: no limit)",
    )
    maker.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="parallel processes for the simulation (default: 1)",
    )
    maker.add_argument(
        "--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)"
    )
    maker.add_argument(
        "--small", type=int, nargs=2, metavar=("SCANS", "STEPS"),
        help="trial run: at most so many scans per set and steps per epoch, and two epochs",
    )  # fmt: skip
    maker.add_argument(
        "--real", type=Path, nargs=2, metavar=("DIR", "TABLE"),
        help="real scans (a BIDS dataset) and a table of their microbleeds (subject, x_mm, y_mm, "
        "z_mm), by which the threshold is set; nothing else is",
    )  # fmt: skip


def _release(given: argparse.Namespace) -> int:
    """Make a detector by a plan, and say on the way how it goes. Returns the exit code."""
    from bids_cmb.networks.inference import set_threads
    from bids_cmb.parallel.processes import describe_error

    set_threads(given.threads)
    from bids_cmb.training.release import Means, read_plan, release

    small = tuple(given.small) if given.small else None
    real = tuple(given.real) if given.real else None
    means = Means(given.anatomy, given.work, given.hours, given.workers, small, real)
    try:
        card = release(
            read_plan(given.plan), means, say=lambda text: sys.stderr.write(f"bids_cmb: {text}\n")
        )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"bids_cmb: {describe_error(error)}\n")
        return 1
    for point in card["operating_points"]:
        sys.stdout.write(
            f"{point['name']}: threshold {point['threshold']:g}, sensitivity "
            f"{point['sensitivity']:.2f} at {point['false_per_scan']:.2f} false per scan\n"
        )
    sys.stdout.write(
        f"{given.work / 'release'}: use it with --model-dir and --detector {card['name']}.\n"
    )
    return 0


def _add_evaluate(makers: argparse._SubParsersAction) -> None:
    maker = _add_command(
        makers,
        "evaluate",
        argument_default=argparse.SUPPRESS,  # the defaults are those of `EvaluationOptions`
    )
    _add_matching(maker, "predictions")
    maker.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="ignore predicted lesions of a lower probability; the FROC takes all (default: 0)",
    )
    maker.add_argument(
        "--reviews",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder of reviews of the predictions, for the figures after review and the agreement "
        "of the readers",
    )


def _add_matching(maker: argparse.ArgumentParser, results: str, **more: str) -> None:
    """Add what every comparison with the truth takes: results, more of them, truth, folder, rules.

    Args:
        maker: Of the command.
        results: What to call the first results.
        more: Names of further ones, and what they are.
    """
    maker.add_argument(
        results, type=Path, help="output folder of the app, folder of masks or tables, or one file"
    )
    for name, about in more.items():
        maker.add_argument(name, type=Path, help=about)
    maker.add_argument("truth", type=Path, help="the same, or one table of coordinates")
    maker.add_argument("folder", type=Path, help="output folder; must be empty")
    maker.add_argument(
        "--match",
        choices=("valdo", "overlap", "one-to-one"),
        help="when a predicted and a true lesion match; valdo: the nearest within 5 mm; overlap: "
        "any overlap of the label maps; one-to-one: best pairs within 5 mm (default: valdo)",
    )
    maker.add_argument(
        "--uncertain",
        choices=("ignore", "include"),
        help="true lesions marked possible, not visible or not included: ignore them (neither "
        "missed nor found), or include them like all others (default: ignore)",
    )
    maker.add_argument("--seed", type=int, metavar="N", help="seed of the bootstrap (default: 0)")
    maker.add_argument(
        "--bootstrap",
        type=int,
        dest="draws",
        metavar="N",
        help="bootstrap samples of the 95 %% intervals (default: 2000)",
    )
    maker.add_argument(
        "--overwrite",
        action="store_true",
        default=False,
        help="replace the files of an earlier evaluation",
    )


def _add_compare(makers: argparse._SubParsersAction) -> None:
    maker = _add_command(
        makers,
        "compare",
        argument_default=argparse.SUPPRESS,  # the defaults are those of `EvaluationOptions`
    )
    _add_matching(maker, "first", second="the same of another detector")
    maker.add_argument(
        "--threshold",
        type=float,
        nargs="+",
        default=[0.0],
        metavar="P",
        help="ignore lesions of a lower probability, for both or for each detector; FROC and ranks "
        "take all (default: 0)",
    )


def _compare(given: argparse.Namespace) -> int:
    """Compare two detectors, write, and print the main differences. Returns the exit code."""
    from bids_cmb.evaluation.comparison import compare_detectors
    from bids_cmb.evaluation.options import EvaluationOptions

    settings = {key: value for key, value in vars(given).items() if hasattr(EvaluationOptions, key)}
    thresholds = settings.pop("threshold")
    if len(thresholds) > 2:
        sys.stderr.write(
            "bids_cmb: --threshold takes one probability for both detectors or one for each; "
            f"found {len(thresholds)}.\n"
        )
        return 1
    try:
        result = compare_detectors(
            given.first,
            given.second,
            given.truth,
            given.folder,
            options=EvaluationOptions(**settings),
            thresholds=(thresholds[0], thresholds[-1]),
            overwrite=given.overwrite,
        )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"bids_cmb: {error}\n")
        return 1
    for name in result.missing:
        sys.stderr.write(f"bids_cmb: {name}: not predicted by both; it is in no figure.\n")
    differing = result.scans["scan"][result.scans["differ"] == "yes"].tolist()
    sys.stdout.write(
        f"{given.folder}: {len(result.scans)} scans, {len(differing)} of which differ"
        f"{': ' * bool(differing)}{', '.join(differing)}.\n"
    )
    sys.stdout.write(f"{'':28}{'first':>9}{'second':>9}{'difference':>12}  95 % interval\n")
    for name in COMPARED:
        one, other, more = result.figures[name]
        sys.stdout.write(
            f"{name:28}{one:9.3f}{other:9.3f}{more.value:+12.3f}  "
            f"[{more.low:+.3f}, {more.high:+.3f}]\n"
        )
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    """Compare, write, and say the figures in a line. Returns the exit code."""
    from bids_cmb.evaluation.counts import find_rated_table
    from bids_cmb.evaluation.evaluate import evaluate
    from bids_cmb.evaluation.options import EvaluationOptions

    if table := find_rated_table(given.truth):
        return _compare_counts(given, table)
    options = EvaluationOptions(
        **{key: value for key, value in vars(given).items() if hasattr(EvaluationOptions, key)}
    )
    try:
        result = evaluate(
            given.predictions,
            given.truth,
            given.folder,
            options=options,
            overwrite=given.overwrite,
            reviews=given.reviews,
        )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"bids_cmb: {error}\n")
        return 1
    for name in result.missing:
        sys.stderr.write(
            f"bids_cmb: {name}: no prediction; it is in no figure but those of all scans.\n"
        )
    for name in result.without_truth:
        sys.stderr.write(f"bids_cmb: {name}: no truth; it is in no figure.\n")
    value = {name: figure.value for name, figure in result.figures.items()}
    said = (f"{name} {value[name]:.3f}" for name in SAID)
    sys.stdout.write(f"{given.folder}: {len(result.scans)} scans, {', '.join(said)}.\n")
    curve = ", ".join(f"{value[f'sensitivity_at_{rate}_fp']:.3f}" for rate in RATES)
    sys.stdout.write(
        f"Sensitivity {curve} at {', '.join(RATES)} false alarms per scan; best F1 "
        f"{value['best_f1']:.3f} at threshold {value['best_f1_threshold']:.3g}; median F1 of "
        f"subjects {value['subject_f1_median']:.3f}; median rank of true lesions "
        f"{value['rank_median']:g}, rank AUC {value['rank_auc']:.3f}.\n"
    )
    if result.missing:
        number = len(result.missing)
        scans = f"{number} scan{'s' * (number > 1)} without a prediction"
        sys.stdout.write(
            f"Counting {scans} as if nothing had been found there: sensitivity "
            f"{value['sensitivity_all_scans']:.3f}, f1 {value['f1_all_scans']:.3f}.\n"
        )
    return 0


def _compare_counts(given: argparse.Namespace, table: Path) -> int:
    """A truth without positions: compare counts. Returns the exit code."""
    from bids_cmb.evaluation.counts import compare_counts

    try:
        result = compare_counts(given.predictions, table, given.folder, overwrite=given.overwrite)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"bids_cmb: {error}\n")
        return 1
    for name in result.missing:
        sys.stderr.write(f"bids_cmb: {name}: no prediction; it is in no figure.\n")
    total = result.rows[0]
    said = (f"{name} {total.get(name)}" for name in ("found", "rated", "count_icc", "count_mae"))
    sys.stdout.write(f"{given.folder}: {total['n_scans']} scans, {', '.join(said)}.\n")
    return 0


def _add_models(makers: argparse._SubParsersAction) -> None:
    maker = _add_command(makers, "models")
    verbs = maker.add_subparsers(dest="verb", required=True)
    about = {
        "add": "install SHIVA-CMB's published networks, or others with its model_info.json",
        "create": "create a detector from networks that `train` wrote",
        "list": "list the models, their checksums and figures",
        "verify": "check that the weights of each model in the folder are there and unaltered",
    }
    for verb, said in about.items():
        one = verbs.add_parser(verb, help=said, description=sentence_of(said), allow_abbrev=False)
        if verb == "add":
            one.add_argument(
                "source", type=Path, nargs="+", help="a zip, a folder, or the network files"
            )
        if verb == "create":
            one.add_argument("name", help="name of the new detector")
            one.add_argument(
                "entry",
                nargs="+",
                metavar="[PART=]JSON",
                help="entries that training wrote, such as OUT/ensemble-c.json; for detectors of "
                "several stages with the name of the part, such as boxes=OUT/cascade-boxes.json",
            )
            one.add_argument(
                "--like",
                default="ensemble",
                metavar="DETECTOR",
                help="detector to take thresholds, rules and other parts from (default: ensemble)",
            )
            one.add_argument(
                "--threshold",
                type=float,
                metavar="P",
                help="threshold of the detector (default: that of --like)",
            )
        one.add_argument(
            "--model-dir",
            type=Path,
            default=os.environ.get("BIDS_CMB_MODEL_DIR"),
            metavar="DIR",
            help="folder of model cards and weights (default: $BIDS_CMB_MODEL_DIR)",
        )


def _models(given: argparse.Namespace) -> int:
    """Add, list or verify. Returns the exit code."""
    folder = Path(given.model_dir) if given.model_dir else None
    if given.verb == "list":
        from bids_cmb.networks.weights import describe_models

        sys.stdout.write(describe_models(folder))
        return 0
    if folder is None:
        sys.stderr.write(
            "bids_cmb: a folder of models is needed: --model-dir DIR, or BIDS_CMB_MODEL_DIR.\n"
        )
        return 64
    if given.verb == "create":
        return _make_card(given, folder)
    from bids_cmb.networks.external.shiva import install_models, verify_models

    if given.verb == "add":
        try:
            names = install_models(given.source, folder, _tell)
        except (ValueError, OSError) as error:
            sys.stderr.write(f"bids_cmb: {error}\n")
            return 1
        sys.stdout.write(f"{folder}: --detector {names[0]}, or {names[1]}\n")
        return 0
    found = verify_models(folder)
    for name, wrong in found.items():
        sys.stdout.write(f"{name}: {wrong or 'as on its card'}\n")
    return 1 if any(found.values()) else 0


def _part(said: str) -> tuple[str, Path]:
    part, found, path = said.partition("=")
    return (part, Path(path)) if found and not Path(said).exists() else ("", Path(said))


def _make_card(given: argparse.Namespace, folder: Path) -> int:
    """Make a detector of the user's networks. Returns the exit code."""
    from bids_cmb.networks.user_models import make_card

    entries = [_part(one) for one in given.entry]
    try:
        make_card(given.name, entries, folder, like=given.like, threshold=given.threshold)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"bids_cmb: {error}\n")
        return 1
    sys.stdout.write(f"{folder}: --model-dir {folder} --detector {given.name}\n")
    return 0


def _add_import(makers: argparse._SubParsersAction) -> None:
    maker = _add_command(makers, "import-labels")
    maker.add_argument(
        "format",
        choices=("valdo", "momeni", "dou", "almasni", "csv", "mars"),
        help="format of the labels: of the dataset of VALDO, Momeni, Dou or Al-masni; csv: a table "
        "of points; mars: MARS rating sheets; see docs/howto/import.md",
    )
    maker.add_argument("source", type=Path, help="folder of the labels; never changed")
    maker.add_argument(
        "folder", type=Path, help="output folder; must be empty, and not in the source"
    )
    maker.add_argument(
        "--index-base",
        type=int,
        choices=(0, 1),
        dest="base",
        help="index of the first voxel (default: that of the source, else inferred from the "
        "darkness of the points)",
    )
    maker.add_argument(
        "--flips",
        metavar="AXES",
        help="axes counted from the far end: none, or of x, y, z, such as xz (default: as for "
        "--index-base)",
    )
    maker.add_argument(
        "--order",
        metavar="AXES",
        help="axes of the three indices, such as yxz (default: as for --index-base)",
    )
    maker.add_argument(
        "--suffix",
        choices=("T2starw", "swi"),
        help="BIDS suffix of the scans (default: that of the source, else T2starw)",
    )
    maker.add_argument(
        "--skip-invalid",
        action="store_true",
        help="skip scans that cannot be used (default: import nothing if there is one)",
    )


def _import(given: argparse.Namespace) -> int:
    """Import, and say what came of it. Returns the exit code."""
    from bids_cmb.datasets.convert import ImportOptions, import_labels
    from bids_cmb.parallel.processes import describe_error

    flips = "" if given.flips == "none" else given.flips
    options = ImportOptions(given.base, flips, given.order, given.suffix, given.skip_invalid)
    try:
        made = import_labels(given.format, given.source, given.folder, options=options, log=_tell)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"bids_cmb: {describe_error(error)}\n")
        return 1
    lesions = "counts, no positions" if made.lesions is None else f"{made.lesions} microbleeds"
    balls = f", {made.balls} of them balls" if made.balls else ""
    out = f", {len(made.skipped)} skipped" if made.skipped else ""
    sys.stdout.write(f"{given.folder}: {made.scans} scans, {lesions}{balls}{out}.\n")
    return 0
