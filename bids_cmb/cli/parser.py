"""The command line of the app: every flag, in groups."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from bids_cmb import __version__
from bids_cmb.config import DEFAULT_DETECTOR, OPERATING_POINTS, RESEARCH_DETECTORS, Config
from bids_cmb.errors import USAGE, ExitError

ALIASES = {
    "--session-id": "--session-label",
    "--nprocs": "--n-cpus",
    "--dask": "--dask-scheduler",
    "--nthreads": "--n-cpus",
    "--mem": "--mem-mb",
    "--min-size": "--min-volume",
}
COMMANDS = {
    "simulate": "simulate a BIDS dataset of scans with reference labels",
    "train": "train a network on scans with reference labels",
    "release": "simulate, train and evaluate: a new detector by a plan",
    "evaluate": "compare predicted with true microbleeds",
    "compare": "compare two detectors on the same scans",
    "reviews": "make reference labels from readers' reviews",
    "models": "add, create, list or verify models",
    "import-labels": "convert other groups' labels to BIDS",
    "selftest": "load every network and process a simulated scan",
}
COMMAND_LIST = "\n".join(f"  {name:<14} {about}" for name, about in COMMANDS.items())
EPILOG = f"""\
commands:
{COMMAND_LIST}

examples:
  bids-cmb DATA OUT participant group                     every scan, then the group
  bids-cmb DATA OUT participant --participant-label 01 --dry-run   what would be processed, and why
  bids-cmb DATA OUT participant --detector radial --anatomy none   without networks
  bids-cmb simulate SCANS --n-scans 3                     scans to try it on

Flags may be written with - or _. Exit codes: 0 all scans processed; 1 some failed; 16 not valid
BIDS; 17 unknown level; 18 nothing selected; 64 usage; 65 bad filter or config file; 66 no usable
input; 69 no GPU or no Dask cluster; 73 output cannot be written, or holds another dataset; 74
output cannot be written any more; 128 + N ended by signal N."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are an `ExitError`."""

    def error(self, message: str):
        """Raise an `ExitError`: the command line makes no sense."""
        raise ExitError(USAGE, f"{message}. See --help.")


def normalize_flag(word: str) -> str:
    """Write a flag with hyphens, and by its main name."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    flag = flag.replace("_", "-")
    return ALIASES.get(flag, flag) + equals + value


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the app: every flag, in groups, the most used first."""
    top = Parser(
        prog="bids-cmb",
        description="Find, measure and count cerebral microbleeds on SWI or T2* scans. "
        "For research only.",
        usage="%(prog)s bids_dir output_dir {participant,group} [flags]\n"
        "       %(prog)s COMMAND [--help]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    top.add_argument("bids_dir", nargs="?", type=Path, help="the BIDS dataset; never changed")
    top.add_argument("output_dir", nargs="?", type=Path, help="folder for the derivatives")
    top.add_argument(
        "analysis_level", nargs="*", help="participant, group, or both, one after the other"
    )

    add = top.add_argument_group("most used").add_argument
    labels = {"nargs": "+", "metavar": "LABEL"}
    add(
        "--participant-label",
        **labels,
        help="process only these participants, with or without sub-; quoted globs ('10*'); @FILE "
        "for a list (default: all)",
    )
    add(
        "--suffix",
        nargs="+",
        metavar="SUFFIX",
        help="suffixes of the scans to process, of T2starw swi MEGRE GRE veno SWImag "
        f"(default: {' '.join(Config.suffix)})",
    )
    add("--n-cpus", type=int, metavar="N", help="cores to use (default: all that are available)")
    add("--overwrite", action="store_true", help="reprocess scans that already have results")
    add(
        "--dry-run",
        action="store_true",
        help="list the scans that would be processed and those that would not, and why; then exit",
    )

    _add_selection_flags(top.add_argument_group("which scans").add_argument, labels)
    _add_detection_flags(top.add_argument_group("finding microbleeds").add_argument)
    _add_anatomy_flags(top.add_argument_group("brain and regions").add_argument)
    _add_output_flags(top.add_argument_group("output").add_argument)
    _add_running_flags(top.add_argument_group("running").add_argument)
    return top


def _add_selection_flags(add: Callable, labels: dict) -> None:
    add("--exclude-participant-label", **labels, help="do not process these participants")
    add(
        "--session-label",
        **labels,
        help="process only these sessions, with or without ses- (default: all)",
    )
    for entity in ("acq", "rec", "run"):
        add(
            f"--{entity}",
            nargs="+",
            metavar="LABEL",
            help=f"process only scans with one of these {entity}- labels (default: all)",
        )
    add(
        "--echo",
        nargs="+",
        metavar="N",
        help="echo to process, or `combined` for the root mean square of all (default: the echo "
        "whose product of field strength and echo time is nearest to 60 T ms)",
    )
    add(
        "--bids-filter-file",
        type=Path,
        metavar="JSON",
        help="file of pybids filters, by the suffix that they are for, such as "
        '{"T2starw": {"acquisition": "highres"}}',
    )
    add(
        "--bids-database-dir",
        type=Path,
        metavar="DIR",
        help="pybids database to use, or to make if there is none",
    )
    add("--reset-database", action="store_true", help="rebuild that database")
    add(
        "--shard",
        metavar="I/N",
        help="process the I-th of N parts of the participants, chosen by a hash of each label, so "
        "that nobody changes parts when others join; auto: from the Slurm array",
    )
    add(
        "--validate",
        choices=("off", "warn", "strict"),
        help="off: do not check the dataset; warn: report what looks wrong and go on; strict: run "
        f"bids-validator-deno and stop at errors (default: {Config.validate})",
    )
    add(
        "--skip-bids-validation",
        dest="validate",
        action="store_const",
        const="off",
        help="the same as --validate off",
    )


def _add_detection_flags(add: Callable) -> None:
    add(
        "--detector",
        nargs="+",
        metavar="NAME",
        help="detector, or several to average: two-stage; ensemble, in half the time; radial, "
        f"without networks; or a model card of --model-dir (default: {DEFAULT_DETECTOR}; for "
        f"research: {' '.join(RESEARCH_DETECTORS)})",
    )
    add(
        "--members",
        nargs="+",
        metavar="NAME",
        help="use only these members of an ensemble (default: all)",
    )
    add(
        "--model-dir",
        type=Path,
        metavar="DIR",
        help="folder of your own model cards and weights, which come before the bundled ones "
        "(default: $BIDS_CMB_MODEL_DIR)",
    )
    add(
        "--operating-point",
        choices=OPERATING_POINTS,
        help="threshold of the model card: sensitive finds more with more false alarms, balanced "
        "is the detector's own, specific raises fewer; the figures are on the card "
        f"(default: {Config.operating_point})",
    )
    add(
        "--threshold",
        type=float,
        metavar="P",
        help="voxels of at least this probability belong to a lesion (default: that of the "
        "detector; of several detectors 0.5, on their common scale)",
    )
    add(
        "--min-volume",
        type=float,
        metavar="MM3",
        help="drop lesions smaller than this, in mm3 (default: that of the detector)",
    )
    add(
        "--exclude-flags",
        nargs="*",
        metavar="FLAG",
        help="list lesions with one of these flags but exclude them from the counts, of large "
        "small edge vessel csf; without a flag, count all "
        f"(default: {' '.join(Config.exclude_flags)})",
    )


def _add_anatomy_flags(add: Callable) -> None:
    add(
        "--anatomy",
        choices=("network", "none"),
        help="network: segment the anatomy for brain mask and regions; none: brain mask by "
        f"intensity and shape, no regions (default: {Config.anatomy})",
    )
    add(
        "--deep-wm-distance-mm",
        type=float,
        metavar="MM",
        help="white matter this close to a lateral ventricle is deep, not lobar "
        f"(default: {Config.deep_wm_distance_mm:g})",
    )
    add(
        "--templateflow-fetch",
        action="store_true",
        help="download the lobe and nucleus atlases that are not in the TemplateFlow archive",
    )
    add(
        "--derivatives",
        "-d",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="derivative datasets with your own brain masks and segmentations, such as those of "
        "fMRIPrep or FreeSurfer",
    )
    add(
        "--mask-desc",
        metavar="DESC",
        help=f"desc- label of these brain masks (default: {Config.mask_desc})",
    )
    add(
        "--skip-brain-extraction",
        action="store_true",
        help="the scans are skull-stripped already",
    )


def _add_output_flags(add: Callable) -> None:
    add(
        "--output-level",
        choices=("minimal", "standard", "full"),
        help="minimal: lesions; standard: also probability and brain mask; full: also "
        "structures, regions and the preprocessed scan "
        f"(default: {Config.output_level})",
    )
    add(
        "--longitudinal",
        choices=("on", "off"),
        help="on: follow the lesions of participants with two or more scans over time; off: do not "
        f"(default: {Config.longitudinal})",
    )
    add(
        "--report",
        choices=("static", "interactive", "none"),
        help="static: an HTML page for each participant and one for the cohort; interactive: "
        f"also with the scan in a viewer; none: no pages (default: {Config.report})",
    )
    add(
        "--reports-only",
        action="store_true",
        help="regenerate HTML pages from existing derivatives",
    )
    add(
        "--reviews",
        type=Path,
        metavar="DIR",
        help="group level: folder of reviews saved from the pages, for the counts after review",
    )
    add("--boilerplate-only", action="store_true", help="print the methods section, then exit")


def _add_running_flags(add: Callable) -> None:
    add("--resume", action="store_true", help="skip scans that are already complete (default)")
    add(
        "--omp-nthreads",
        type=int,
        metavar="N",
        help="threads for each scan (default: cores divided by scans processed at a time)",
    )
    add(
        "--device",
        choices=("auto", "gpu", "cpu"),
        help="auto: a GPU if there is a usable one; gpu: stop without one; cpu: never use one "
        f"(default: {Config.device})",
    )
    add(
        "--engine",
        choices=("auto", "openvino", "tensorflow"),
        help="what computes the networks; auto: OpenVINO on the CPU where it is installed, else "
        "TensorFlow, which alone computes on a GPU, as it does SHIVA-CMB's networks "
        f"(default: {Config.engine})",
    )
    add("--gpu-id", metavar="N", help="GPU to use, numbered as by nvidia-smi (default: the first)")
    add(
        "--share-networks",
        choices=("auto", "on", "off"),
        help="on: one process has the networks, and those that read and write scans ask it; off: "
        "each has its own; auto: on for several scans at a time on a GPU "
        f"(default: {Config.share_networks})",
    )
    add(
        "--precision",
        choices=("auto", "full", "mixed"),
        help="precision of the networks; full: 32 bits; mixed: 16 bits where it costs little, for "
        "processors that support it; auto: full "
        f"(default: {Config.precision})",
    )
    add(
        "--dask-scheduler",
        metavar="ADDRESS",
        help="process the scans on a Dask cluster (tcp://host:8786), or `local`",
    )
    add(
        "--mem-mb",
        metavar="MB",
        help="memory to use in MB, or such as 8G (default: all that is available)",
    )
    add(
        "--scan-time-limit",
        type=float,
        metavar="MINUTES",
        help="give up a scan that takes longer, as a failed one, and go on with the others; the "
        "next run tries it again (default: no limit)",
    )
    add("--stop-on-first-crash", action="store_true", help="stop after the first failed scan")
    add(
        "--work-dir",
        "-w",
        type=Path,
        metavar="DIR",
        help="folder for temporary files (default: that of the system)",
    )
    add("--clean-workdir", action="store_true", help="remove the work folder at the end")
    add("--bids-exec-spec", action="store_true", help="print a Boutiques descriptor, then exit")
    add(
        "--config-file",
        type=Path,
        metavar="TOML",
        help="settings, as each run saves them in logs/; flags come before them",
    )
    add("--notrack", action="store_true", help="accepted without effect: nothing is tracked")
    add("-v", "--verbose", action="count", default=0, help="log more")
    add("-q", "--quiet", action="count", default=0, help="log only warnings and errors")
    add("--version", action="version", version=f"bids_cmb {__version__}")


def sentence_of(description: str) -> str:
    """Turn the description of a command into a sentence."""
    return f"{description[0].upper()}{description[1:]}."


def add_command(
    commands: argparse._SubParsersAction, name: str, **more: object
) -> argparse.ArgumentParser:
    """Add a command, with its description in the list of commands."""
    more = {"description": sentence_of(COMMANDS[name]), "allow_abbrev": False, **more}
    return commands.add_parser(name, help=COMMANDS[name], **more)


def log_message(message: str) -> None:
    """Write a message to standard error."""
    sys.stderr.write(f"bids_cmb: {message}\n")
