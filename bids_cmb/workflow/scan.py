"""One scan, from its files to its derivatives."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bids_cmb.anatomy.region_map import build_region_map
from bids_cmb.anatomy.scan_anatomy import (
    AnatomyResult,
    add_atlases,
    get_brain_mask,
    load_brain_mask,
    refine_anatomy,
    segment_anatomy,
)
from bids_cmb.bids.attempts import describe_open_attempt
from bids_cmb.bids.markers import is_whole, read_marker
from bids_cmb.bids.paths import Output
from bids_cmb.bids.scan import Scan
from bids_cmb.bids.tables import has_row, refresh_scans_table
from bids_cmb.config import Config
from bids_cmb.detection.ensemble import detect
from bids_cmb.imaging.loading import load_echoes, load_phase
from bids_cmb.imaging.nifti import LoadReport
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.candidates import Candidates, find_candidates
from bids_cmb.lesions.locations import locate_lesions
from bids_cmb.lesions.measure import Lesion, find_lesions
from bids_cmb.networks.backend import set_threads
from bids_cmb.networks.loading import prepare_engine
from bids_cmb.networks.model_cards import list_cards, load_card
from bids_cmb.quality.measures import Quality, assess_quality
from bids_cmb.report.figures import draw_figures, has_figures, load_shown
from bids_cmb.report.html import get_page_path, refresh_page, shows_result, write_page
from bids_cmb.workflow.inputs import (
    ScanInputs,
    check_images_of_result,
    check_unchanged,
    is_current,
    record_inputs,
    resolve_candidate_threshold,
    resolve_inputs,
    resolve_thresholds,
)
from bids_cmb.workflow.outputs import (
    choose_network_view,
    forget_attempts,
    list_sources,
    refresh_results,
    remove_half_written,
    write_outputs,
)
from bids_cmb.workflow.result import ScanResult

log = logging.getLogger(__name__)

RESULT, REPORT, NOTHING = "result", "report", ""  # what a scan may lack


@dataclass(frozen=True)
class ScanSummary:
    """Summary of a processed scan, for the log.

    Attributes:
        n_cmb: Number of counted microbleeds.
        n_definite: Number of definite ones.
        quality_flags: Of image quality.
        notes: Sentences on it.
        made: `RESULT`, only `REPORT`, or `NOTHING`.
    """

    n_cmb: int
    n_definite: int
    quality_flags: tuple[str, ...]
    notes: tuple[str, ...]
    made: str = RESULT


def process_scan(scan: Scan, config: Config) -> ScanSummary:
    """Detect the microbleeds of a scan and write its outputs.

    The completion marker is written after every image, table and figure. The scan's row in the
    table of its session and its participant's page are made from markers; if they are missing, a
    later run makes them.

    Args:
        scan: Its files and BIDS entities.
        config: Of the run.

    Raises:
        ValueError: If the scan cannot be used; the sentence names the file.
        OSError: If a file cannot be read or written.
    """
    inputs = resolve_inputs(scan, config)
    with _starting_networks(inputs, config.omp_nthreads or 1):
        record = record_inputs(inputs)
        result = analyze_scan(inputs, config)
    check_unchanged(inputs, record, config)
    output = Output(config.output_dir, scan)
    log.debug("writing the results and figures")
    row = write_outputs(output, result, inputs, record, report=config.report)
    _show_result(output, config.report)
    notes = (*scan.notes, *result.notes(scan.path.name))
    return ScanSummary(row["n_cmb"], row["n_definite"], result.quality.flags, notes)


def analyze_scan(inputs: ScanInputs, config: Config) -> ScanResult:
    """Load a scan, and compute all its results.

    Raises:
        ValueError: If the scan cannot be used; the sentence names the file.
        OSError: If a file cannot be read.
    """
    log.debug("loading the images")
    image, header = load_echoes(inputs.images)
    log.debug("segmenting the anatomy")
    anatomy = segment_anatomy(
        image,
        inputs.models,
        inputs.brain,
        segmentation=inputs.segmentation,
        network=config.anatomy == "network",
    )
    brain = get_brain_mask(image, inputs.brain, anatomy)
    phase = load_phase(inputs.phase, image, brain.mask, inputs.scan.path.name)
    log.debug("detecting")
    probability = detect(config.detector, image, brain.mask, inputs.models, phase.map, anatomy.head)
    log.debug("measuring lesions")
    thresholds = resolve_thresholds(config)
    detected = probability.as_map()
    labels, lesions = find_lesions(detected, image, brain.mask, thresholds, config.exclude_flags)
    lowest = resolve_candidate_threshold(config, thresholds)
    candidates = (
        None
        if lowest is None
        else find_candidates(
            detected, image, brain.mask, labels, threshold=lowest, min_volume=thresholds.min_volume
        )
    )
    log.debug("locating lesions")
    anatomy, regions = complete_anatomy(
        image,
        anatomy,
        inputs,
        config,
        has_lesions=bool(lesions or (candidates and candidates.lesions)),
    )
    lesions = place_lesions(lesions, anatomy, regions, inputs, config.exclude_flags)
    candidates = place_candidates(candidates, anatomy, regions, inputs)
    return ScanResult(
        image=image,
        header=header,
        brain=brain,
        anatomy=anatomy,
        phase=phase,
        probability=probability,
        thresholds=thresholds,
        regions=regions,
        labels=labels,
        lesions=lesions,
        quality=measure_quality(image, brain.mask, header, inputs.scan),
        candidates=candidates,
    )


def complete_anatomy(
    image: Volume, anatomy: AnatomyResult, inputs: ScanInputs, config: Config, *, has_lesions: bool
) -> tuple[AnatomyResult, Volume | None]:
    """Add lobes and capsule from atlases, refined structures if needed, and regions of MARS.

    The user's own structures are not refined.

    Returns:
        The anatomy, and its regions on its grid; None where nothing was segmented.
    """
    if anatomy.head is None:
        return anatomy, None
    if anatomy.segmentation is None and (has_lesions or config.output_level == "full"):
        anatomy = refine_anatomy(image, anatomy, inputs.models)
    anatomy = add_atlases(anatomy, inputs.atlases)
    regions = build_region_map(
        anatomy.head, anatomy.lobes, anatomy.capsule, deep_wm_distance_mm=config.deep_wm_distance_mm
    )
    return anatomy, regions


def place_lesions(
    lesions: list[Lesion],
    anatomy: AnatomyResult,
    regions: Volume | None,
    inputs: ScanInputs,
    exclude_flags: tuple[str, ...],
) -> list[Lesion]:
    """Locate each lesion in the anatomy, if there is one."""
    if regions is None:
        return lesions
    return locate_lesions(
        lesions,
        anatomy.head,
        regions,
        classes=inputs.anatomy_card["classes"],
        atlases=inputs.atlases,
        exclude_flags=exclude_flags,
    )


def place_candidates(
    candidates: Candidates | None,
    anatomy: AnatomyResult,
    regions: Volume | None,
    inputs: ScanInputs,
) -> Candidates | None:
    """Locate each candidate in the anatomy, if there is one; none of them is counted."""
    if candidates is None:
        return None
    located = place_lesions(candidates.lesions, anatomy, regions, inputs, exclude_flags=())
    return replace(candidates, lesions=[replace(lesion, included=False) for lesion in located])


def measure_quality(image: Volume, brain: Volume, header: LoadReport, scan: Scan) -> Quality:
    """Measure the image quality."""
    return assess_quality(
        image,
        brain,
        field_strength_t=scan.field_strength_t,
        echo_time_s=scan.echo_time_s,
        header_corrected=header.header_mended,
        nonfinite_voxels=header.nonfinite_voxels,
    )


@contextmanager
def _starting_networks(inputs: ScanInputs, threads: int) -> Iterator[None]:
    """Start what computes networks, if needed, in the background: that may take seconds."""
    set_threads(threads)
    with ThreadPoolExecutor(1) as background:
        if inputs.uses_networks:
            background.submit(prepare_engine)
        yield


def _show_result(output: Output, report: str) -> None:
    """Bring the table of the session and the page of the participant up to date."""
    forget_attempts(output)
    refresh_scans_table(output.participant_dir)
    subject = output.scan.subject
    if report != "none":
        write_page(output.folder, subject)
    elif get_page_path(output.folder, subject).is_file():
        refresh_page(output.folder, subject)


# --- Resume: what a scan lacks --------------------------------------------------------------------


def complete_scan(scan: Scan, config: Config) -> ScanSummary:
    """Make what a scan lacks: everything, or only its figures and its participant's page.

    Raises:
        ValueError: If the scan cannot be used; the sentence names the file.
        OSError: If a file cannot be read or written.
    """
    missing = RESULT if config.overwrite else find_missing(scan, config)
    if missing == RESULT:
        return process_scan(scan, config)
    mark_current(scan, config)
    if missing == REPORT:
        regenerate_report(scan, config)
    row = (read_marker(Output(config.output_dir, scan).mask(".json")) or {}).get("Microbleeds", {})
    return ScanSummary(row.get("n_cmb") or 0, row.get("n_definite") or 0, (), (), missing)


def find_missing(scan: Scan, config: Config) -> str:
    """Find what a scan lacks of the outputs of this run: `RESULT`, `REPORT` or `NOTHING`."""
    if not is_complete(scan, config):
        return RESULT
    output = Output(config.output_dir, scan)
    if config.report == "none" or (
        has_figures(output, interactive=config.report == "interactive") and shows_result(output)
    ):
        return NOTHING
    return REPORT if output.brain().is_file() else RESULT  # figures need the brain mask


def is_complete(scan: Scan, config: Config) -> bool:
    """Check whether all results on disk are whole and the same that this run would write."""
    marker_path = Output(config.output_dir, scan).mask(".json")
    marker = read_marker(marker_path)
    if marker is None or not is_whole(marker_path.parent, marker):
        return False
    return is_current(marker, resolve_inputs(scan, config))


def mark_current(scan: Scan, config: Config) -> None:
    """Record that the result of a scan is current, and check its row in the session's table."""
    output = Output(config.output_dir, scan)
    if any(describe_open_attempt(output.folder, source) for source in list_sources(output)):
        forget_attempts(output)
        refresh_results(output)
    if not has_row(output):
        remove_half_written(output)
        refresh_scans_table(output.participant_dir)


def regenerate_report(scan: Scan, config: Config) -> None:
    """Draw a scan's figures and write its participant's page again, from the derivatives.

    Raises:
        ValueError: If there is no result with a brain mask, it was made from another image, or the
            scan cannot be read.
        OSError: If a file cannot be read or written.
    """
    output = Output(config.output_dir, scan)
    marker = read_marker(output.mask(".json"))
    if marker is None or not output.brain().is_file():
        raise ValueError(
            f"{scan.path}: --reports-only needs its result with the brain mask (--output-level "
            "standard); found none."
        )
    check_images_of_result(scan, marker)
    image, _ = load_echoes((scan.path, *scan.more_echoes))
    brain = load_brain_mask(output.brain(), image)
    settings = marker.get("Provenance", {}).get("Settings", {})
    detectors = _load_known_cards(settings.get("detector", config.detector), config.model_dir)
    remove_half_written(output)
    draw_figures(
        output,
        image,
        brain,
        load_shown(output.labels()),
        load_shown(output.candidates()) if output.candidates(".tsv").is_file() else None,
        network_view=choose_network_view(detectors, tuple(settings.get("members", ()))),
        interactive=config.report == "interactive",
    )
    write_page(config.output_dir, scan.subject)


def _load_known_cards(names: list[str] | tuple[str, ...], models: Path | None) -> dict[str, dict]:
    """Load the model cards of detectors; an empty one for a card that is gone."""
    known = list_cards(models=models)
    return {name: load_card(name, models) if name in known else {} for name in names}
