"""Methods section of a run."""

from dataclasses import asdict
from pathlib import Path

from bids_cmb.config import Config, result_settings
from bids_cmb.files import write_text
from bids_cmb.networks.model_cards import ANATOMY, load_card
from bids_cmb.report.methods import describe_methods
from bids_cmb.workflow.inputs import resolve_thresholds


def write_methods(config: Config, logs: Path) -> str:
    """Write the methods section of this run to its log folder and to ``logs/CITATION.md``."""
    text = describe_run(config)
    write_text(logs / "CITATION.md", text)
    write_text(logs.parent / "CITATION.md", text)
    return text


def describe_run(config: Config) -> str:
    """Describe a run as a methods section, Markdown."""
    anatomy = load_card(ANATOMY, config.model_dir) if config.anatomy == "network" else None
    outlined = "outlined by the anatomy network" if anatomy else "outlined by intensity and shape"
    if config.skip_brain_extraction:
        brain = "The scans were skull-stripped; their non-zero voxels, filled, are the brain."
    elif config.derivatives:
        brain = (
            "Brain masks were given where the user's derivatives had one; elsewhere the brain was "
            f"{outlined}."
        )
    else:
        brain = f"The brain was {outlined}."
    return describe_methods(
        [load_card(name, config.model_dir) for name in config.detector],
        result_settings(config),
        thresholds=asdict(resolve_thresholds(config)),
        brain=brain,
        anatomy=anatomy,
    )
