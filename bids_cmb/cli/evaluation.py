"""The commands `evaluate` and `compare`."""

import argparse
import sys
from pathlib import Path

from bids_cmb.cli.parser import add_command

COMPARED_FIGURES = (  # figures that `compare` prints
    *("f1", "best_f1", "sensitivity_at_0.5_fp", "sensitivity_at_1_fp", "sensitivity_at_2_fp"),
    *("sensitivity_at_4_fp", "sensitivity_large_at_0.5_fp", "rank_mean", "rank_auc"),
)
FALSE_ALARM_RATES = ("0.5", "1", "2", "4")  # false alarms per scan whose sensitivity is printed
PRINTED_FIGURES = ("sensitivity", "precision", "f1", "fp_per_scan")


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    """Add the command `evaluate`."""
    command = add_command(
        commands,
        "evaluate",
        argument_default=argparse.SUPPRESS,  # the defaults are those of `EvaluationOptions`
    )
    _add_matching(command, "predictions")
    command.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="ignore predicted lesions of a lower probability; the FROC takes all (default: 0)",
    )
    command.add_argument(
        "--reviews",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder of reviews of the predictions, for the figures after review and the agreement "
        "of the readers",
    )


def _add_matching(command: argparse.ArgumentParser, results: str, **more: str) -> None:
    """Add the arguments of every comparison with the truth.

    Args:
        command: The parser of the command.
        results: Name of the argument for the results.
        **more: Names of further arguments, and their descriptions.
    """
    command.add_argument(
        results, type=Path, help="output folder of the app, folder of masks or tables, or one file"
    )
    for name, about in more.items():
        command.add_argument(name, type=Path, help=about)
    command.add_argument(
        "truth",
        type=Path,
        help="the same, a BIDS dataset with derivatives/truth, or one table of coordinates",
    )
    command.add_argument("folder", type=Path, help="output folder; must be empty")
    command.add_argument(
        "--match",
        choices=("valdo", "overlap", "one-to-one"),
        help="when a predicted and a true lesion match; valdo: the nearest within 5 mm; overlap: "
        "any overlap of the label maps; one-to-one: best pairs within 5 mm (default: valdo)",
    )
    command.add_argument(
        "--uncertain",
        choices=("ignore", "include"),
        help="true lesions marked possible, not visible or not included: ignore them (neither "
        "missed nor found), or include them like all others (default: ignore)",
    )
    command.add_argument("--seed", type=int, metavar="N", help="seed of the bootstrap (default: 0)")
    command.add_argument(
        "--bootstrap",
        type=int,
        dest="draws",
        metavar="N",
        help="bootstrap samples of the 95 %% intervals (default: 2000)",
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        default=False,
        help="replace the files of an earlier evaluation",
    )


def add_compare(commands: argparse._SubParsersAction) -> None:
    """Add the command `compare`."""
    command = add_command(
        commands,
        "compare",
        argument_default=argparse.SUPPRESS,  # the defaults are those of `EvaluationOptions`
    )
    _add_matching(command, "first", second="the same of another detector")
    command.add_argument(
        "--threshold",
        type=float,
        nargs="+",
        default=[0.0],
        metavar="P",
        help="ignore lesions of a lower probability, for both or for each detector; FROC and ranks "
        "take all (default: 0)",
    )


def run_compare(args: argparse.Namespace) -> int:
    """Compare two detectors, write, and print the main differences. Returns the exit code."""
    from bids_cmb.evaluation.comparison import compare_detectors
    from bids_cmb.evaluation.options import EvaluationOptions

    settings = {key: value for key, value in vars(args).items() if hasattr(EvaluationOptions, key)}
    thresholds = settings.pop("threshold")
    if len(thresholds) > 2:
        raise ValueError(
            "--threshold takes one probability for both detectors or one for each; found "
            f"{len(thresholds)}."
        )
    result = compare_detectors(
        args.first,
        args.second,
        args.truth,
        args.folder,
        options=EvaluationOptions(**settings),
        thresholds=(thresholds[0], thresholds[-1]),
        overwrite=args.overwrite,
    )
    for name in result.missing:
        sys.stderr.write(f"bids_cmb: {name}: not predicted by both; it is in no figure.\n")
    differing = result.scans["scan"][result.scans["differ"] == "yes"].tolist()
    sys.stdout.write(
        f"{args.folder}: {len(result.scans)} scans, {len(differing)} of which differ"
        f"{': ' * bool(differing)}{', '.join(differing)}.\n"
    )
    sys.stdout.write(f"{'':28}{'first':>9}{'second':>9}{'difference':>12}  95 % interval\n")
    for name in COMPARED_FIGURES:
        first, second, difference = result.figures[name]
        sys.stdout.write(
            f"{name:28}{first:9.3f}{second:9.3f}{difference.value:+12.3f}  "
            f"[{difference.low:+.3f}, {difference.high:+.3f}]\n"
        )
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    """Evaluate, write the results, and print the main figures. Returns the exit code."""
    from bids_cmb.evaluation.counts import find_rated_table
    from bids_cmb.evaluation.evaluate import evaluate
    from bids_cmb.evaluation.options import EvaluationOptions

    if table := find_rated_table(args.truth):
        return _compare_counts(args, table)
    options = EvaluationOptions(
        **{key: value for key, value in vars(args).items() if hasattr(EvaluationOptions, key)}
    )
    result = evaluate(
        args.predictions,
        args.truth,
        args.folder,
        options=options,
        overwrite=args.overwrite,
        reviews=args.reviews,
    )
    for name in result.missing:
        sys.stderr.write(
            f"bids_cmb: {name}: no prediction; it is in no figure but those of all scans.\n"
        )
    for name in result.without_truth:
        sys.stderr.write(f"bids_cmb: {name}: no truth; it is in no figure.\n")
    value = {name: figure.value for name, figure in result.figures.items()}
    figures = (f"{name} {value[name]:.3f}" for name in PRINTED_FIGURES)
    sys.stdout.write(f"{args.folder}: {len(result.scans)} scans, {', '.join(figures)}.\n")
    curve = ", ".join(f"{value[f'sensitivity_at_{rate}_fp']:.3f}" for rate in FALSE_ALARM_RATES)
    sys.stdout.write(
        f"Sensitivity {curve} at {', '.join(FALSE_ALARM_RATES)} false alarms per scan; best F1 "
        f"{value['best_f1']:.3f} at threshold {value['best_f1_threshold']:.3g}; median F1 of "
        f"subjects {value['subject_f1_median']:.3f}; median rank of true lesions "
        f"{value['rank_median']:g}, rank AUC {value['rank_auc']:.3f}.\n"
    )
    _score_identities(args)
    if result.missing:
        number = len(result.missing)
        scans = f"{number} scan{'s' * (number > 1)} without a prediction"
        sys.stdout.write(
            f"Counting {scans} as if nothing had been found there: sensitivity "
            f"{value['sensitivity_all_scans']:.3f}, f1 {value['f1_all_scans']:.3f}.\n"
        )
    return 0


def _score_identities(args: argparse.Namespace) -> None:
    """Score lesions over time where both sides have them, write ``identities.tsv``, and print."""
    from bids_cmb.bids.tables import write_table
    from bids_cmb.evaluation.identities import score_identities, summarize_identities
    from bids_cmb.evaluation.options import locate_reference

    rows = score_identities(args.predictions, locate_reference(args.truth))
    if not rows:
        return
    write_table(args.folder / "identities.tsv", rows[0], rows)
    total = summarize_identities(rows)
    sys.stdout.write(
        f"Over time, {total['pairs']} pairs of visits: {total['new_by_evidence']} of "
        f"{total['true_new']} new lesions called new ({total['true_new_detected']} detected), "
        f"{total['false_by_evidence']} false ones (by the threshold alone "
        f"{total['new_by_threshold']} and {total['false_by_threshold']}); identity right in "
        f"{total['identified']} of {total['in_both']} lesions found at both visits.\n"
    )


def _compare_counts(args: argparse.Namespace, table: Path) -> int:
    """Compare counts with a truth that has no positions. Returns the exit code."""
    from bids_cmb.evaluation.counts import compare_counts

    result = compare_counts(args.predictions, table, args.folder, overwrite=args.overwrite)
    for name in result.missing:
        sys.stderr.write(f"bids_cmb: {name}: no prediction; it is in no figure.\n")
    total = result.rows[0]
    figures = (f"{name} {total.get(name)}" for name in ("found", "rated", "count_icc", "count_mae"))
    sys.stdout.write(f"{args.folder}: {total['n_scans']} scans, {', '.join(figures)}.\n")
    return 0
