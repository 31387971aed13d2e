"""The corridor: one scan, from its files to its derivatives."""

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from bids_cmb import __version__
from bids_cmb.anatomy import (
    POOR_FIT_MM,
    Anatomy,
    Place,
    brain_of,
    find_anatomy,
    itk_affine,
    places,
)
from bids_cmb.attempts import forget_attempt, open_attempt
from bids_cmb.brain import PLAUSIBLE_ML, find_brain, stripped_brain, volume_ml
from bids_cmb.cards import ANATOMY, card, card_names, members_of
from bids_cmb.config import Config, result_settings
from bids_cmb.derivatives import (
    EVIDENCE,
    Output,
    columns,
    counts,
    evidence_rows,
    has_row,
    lesion_row,
    read_table,
    refresh_scans_table,
    write_table,
)
from bids_cmb.detectors import Probability, detect, takes_phase
from bids_cmb.discovery import Scan
from bids_cmb.files import read_json, remove_leftovers, write_json, write_text
from bids_cmb.given import Segmentation, find_mask, find_segmentation
from bids_cmb.lesions import Lesion, find_lesions
from bids_cmb.markers import (
    digest,
    is_whole,
    names_in,
    read_marker,
    stamp_input,
    stamp_outputs,
)
from bids_cmb.mars import label_rows
from bids_cmb.networks import Models, device, set_threads
from bids_cmb.phase import Partner, find_phase, read_phase, units_of
from bids_cmb.pictures import are_drawn, draw, remove_pictures
from bids_cmb.preprocessing import Grid, preprocess
from bids_cmb.provenance import engines, fingerprint, machine, package_digest, sha256, software
from bids_cmb.quality import Quality, quality
from bids_cmb.regions import Region, locate, region_map
from bids_cmb.report import page_of, refresh_page, shows_result, write_page
from bids_cmb.segmentations import Carried, carry, read_segmentation
from bids_cmb.sidecars import unreadable
from bids_cmb.templates import capsule_of, find_atlases, lobes_of, parcel_at
from bids_cmb.tissue import MEMBER as TISSUE
from bids_cmb.tissue import finer
from bids_cmb.volume import Intake, Volume, load, load_labels, resample_like, save

PROTOCOL = ("EchoTime", "MagneticFieldStrength", "Manufacturer", "ManufacturersModelName")
LABELS = "Lesions, each voxel with the index that its lesion has in the table of the same name."
PROBABILITY = "Probability of cerebral microbleed, the mean of the detectors."
BRAIN = "Brain, within which lesions were sought."
STRUCTURES = "Structures of the brain, FreeSurfer's codes, by {}."
NETWORK = "the anatomy network"
REGIONS = (
    "Regions of MARS, left, and 20 more on the right; 14 and 34 are lobar, of a lobe not known."
)
BEHIND = {
    "boxes": "Boxes of a detector's candidates, kept or not; the page draws those of the lesions.",
    "gate": "How far a detector's gate opens in each slice; the page draws it.",
}
RESULT, REPORT, NOTHING = "result", "report", ""  # what a scan may lack
PREPROCESSED = "The scan, divided by its median in the brain."


@dataclass(frozen=True)
class Cut:
    """Where a probability map is cut into lesions.

    Attributes:
        threshold: Probability from which a voxel is lesion.
        definite: Highest probability from which a lesion is definite.
        min_volume: mm³ of the smallest lesion.
    """

    threshold: float
    definite: float
    min_volume: float


@dataclass(frozen=True, eq=False)
class Inside:
    """What lies where in a head, who said so, and the lobes if they were told apart.

    Attributes:
        anatomy: None if nobody looked, or nothing was recognised.
        lobes: Labels on the grid of the anatomy; None where lobes are not told apart.
        source: In words.
        notes: For the log.
        capsule: The internal capsule by an atlas, bool on that grid; None without.
        carried: How the user's segmentation came from a T1w image; None if it did not.
        given: The user's segmentation where that was used; None where a network was asked.
        refined: Whether the finer network drew the structures.
    """

    anatomy: Anatomy | None = None
    lobes: np.ndarray | None = None
    source: str | None = None
    notes: tuple[str, ...] = ()
    capsule: np.ndarray | None = None
    carried: Carried | None = None
    given: Path | None = None
    refined: bool = False


@dataclass(frozen=True, eq=False)
class Brain:
    """The brain mask of a scan, and in words where it came from."""

    mask: Volume
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Phase:
    """The phase of a scan, for networks that take it.

    Attributes:
        map: As `phase.read_phase` gives it; None where there is none that can be used.
        path: Where it came from; None likewise.
        notes: For the log.
    """

    map: Volume | None = None
    path: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Findings:
    """All that was made of one scan.

    Attributes:
        image: The scan.
        intake: What was noticed while it was opened.
        brain: Its brain mask.
        inside: What lies where, and who said so.
        phase: What was shown of it.
        probability: Of microbleed, on the scan's grid.
        regions: Of MARS, on the grid of the anatomy; None without one.
        labels: Each lesion's index in its voxels.
        lesions: The surest first.
        quality: What may make the counts doubtful.
    """

    image: Volume
    intake: Intake
    brain: Brain
    inside: Inside
    phase: Phase
    probability: Probability
    regions: Volume | None
    labels: Volume
    lesions: list[Lesion]
    quality: Quality

    @property
    def anatomy(self) -> Anatomy | None:
        """What lies where; None if nobody looked, or nothing was recognised."""
        return self.inside.anatomy


@dataclass(frozen=True)
class Summary:
    """What the log says of a scan.

    Attributes:
        n_cmb: Microbleeds counted.
        n_definite: Of them definite.
        quality_flags: What may make the counts doubtful.
        notes: Sentences on it.
        lacked: What was made: `RESULT`, only `REPORT`, or nothing.
    """

    n_cmb: int
    n_definite: int
    quality_flags: tuple[str, ...]
    notes: tuple[str, ...]
    lacked: str = RESULT


@dataclass(frozen=True)
class Inputs:
    """The files that decide a result, as they were before any was read.

    Attributes:
        files: Each with its role.
        stamps: Of each: role, name, size, times and SHA-256.
        fingerprint: Of them, the settings and the software.
    """

    files: tuple[tuple[str, Path], ...]
    stamps: tuple[dict[str, object], ...]
    fingerprint: str


def complete(scan: Scan, config: Config) -> Summary:
    """Make what a scan lacks: everything, or only its pictures and its participant's page.

    Raises:
        ValueError: If the scan cannot be used; the sentence names the file.
        OSError: If a file cannot be read or written.
    """
    missing = RESULT if config.overwrite else lacking(scan, config)
    if missing == RESULT:
        return process(scan, config)
    settle(scan, config)
    if missing == REPORT:
        report_again(scan, config)
    row = (read_marker(Output(config.output_dir, scan).mask(".json")) or {}).get("Microbleeds", {})
    return Summary(row.get("n_cmb") or 0, row.get("n_definite") or 0, (), (), missing)


def process(scan: Scan, config: Config) -> Summary:
    """Find the microbleeds of one scan and write down what was found.

    The marker that the result is complete is written after every image, table and picture. The
    scan's row in the table of its session and its participant's page are made from markers; a later
    run makes what lacks of them.

    Args:
        scan: Where its files lie, and its BIDS entities.
        config: What the run was asked to do.

    Raises:
        ValueError: If the scan cannot be used; the sentence names the file.
        OSError: If a file cannot be read or written.
    """
    began = time.monotonic()
    with ThreadPoolExecutor(1) as aside:  # TensorFlow takes seconds; meanwhile the scan is read
        if asks_networks(config):
            aside.submit(set_threads, config.omp_nthreads or 1)
        inputs = take_inputs(scan, config)
        found = examine(scan, config)
    check_unchanged(scan, config, inputs)
    output = Output(config.output_dir, scan)
    sweep(output)
    retract(output)
    files = write_images(output, found, config)
    rows = [lesion_row(lesion) for lesion in found.lesions]
    write_table(output.labels(".tsv"), columns("lesion"), rows)
    if config.report != "none":
        draw(
            output,
            found.image,
            found.brain.mask,
            found.labels,
            rows,
            evidence=evidence_rows(found.probability.evidence),
            look=looked_through(config.detector, config.folds, config.models),
            interactive=config.report == "interactive",
        )
    row = scan_row(scan, found, config)
    told = (found.intake, found.brain, found.inside, found.phase)
    notes = (*scan.notes, *(note for one in told for note in one.notes))
    said = marker(output, found, config, files, inputs)
    said["Provenance"]["Seconds"] = round(time.monotonic() - began, 1)
    write_json(output.mask(".json"), {**said, "Microbleeds": row, "Notes": list(notes)})
    forget_attempts(output)
    refresh_scans_table(output.home)
    if config.report != "none":
        write_page(config.output_dir, scan.subject)
    elif page_of(config.output_dir, scan.subject).is_file():
        refresh_page(config.output_dir, scan.subject)
    return Summary(row["n_cmb"], row["n_definite"], found.quality.flags, notes)


def report_again(scan: Scan, config: Config) -> None:
    """Draw a scan's pictures and its participant's page anew, from what lies in the derivatives.

    Raises:
        ValueError: If there is no result of it with a brain mask, or the scan cannot be read.
        OSError: If a file cannot be read or written.
    """
    output = Output(config.output_dir, scan)
    made = read_marker(output.mask(".json"))
    if made is None or not output.brain().is_file():
        raise ValueError(
            f"{scan.path}: --reports-only needs its result with the brain mask (--output-level "
            "standard); found none."
        )
    image, _ = read(scan)
    brain = given_brain(output.brain(), image)
    settings = made.get("Provenance", {}).get("Settings", {})
    sweep(output)
    draw(
        output,
        image,
        brain,
        load_labels(output.labels()),
        read_table(output.labels(".tsv")),
        look=looked_through(
            settings.get("detector", config.detector), settings.get("folds", ()), config.models
        ),
        evidence={
            kind: read_table(output.evidence(kind))
            for kind in EVIDENCE
            if output.evidence(kind).is_file()
        },
        interactive=config.report == "interactive",
    )
    write_page(config.output_dir, scan.subject)


def examine(scan: Scan, config: Config) -> Findings:
    """Everything between reading a scan and writing its results.

    Raises:
        ValueError: If the scan cannot be used; the sentence names the file.
        OSError: If a file cannot be read.
    """
    image, intake = read(scan)
    inside = look_inside(scan, image, config)
    brain = outline(scan, image, config, inside)
    phase = look_at_phase(scan, image, brain.mask, config)
    probability = detect(config.detector, image, brain.mask, models_of(config), phase.map)
    labels, lesions = find_lesions(
        probability.mean,
        image,
        brain.mask,
        **asdict(cut_for(config)),
        uncounted=config.uncounted,
        spread=probability.spread,
    )
    regions = None
    if inside.anatomy is not None:
        inside = look_closer(scan, image, inside, config, lesions)
        regions = region_map(
            inside.anatomy, inside.lobes, inside.capsule, deep_white_mm=config.deep_white_mm
        )
        lesions = placed(lesions, inside.anatomy, regions, config)
    measured = quality(
        image,
        brain.mask,
        field_strength_t=scan.field_strength_t,
        echo_time_s=scan.echo_time_s,
        header_mended=bool(intake.notes),
        nonfinite_voxels=intake.nonfinite_voxels,
    )
    return Findings(
        image, intake, brain, inside, phase, probability, regions, labels, lesions, measured
    )


def looked_through(
    detectors: Iterable[str], folds: Iterable[str], models: Path | None
) -> tuple[str, Grid]:
    """The first network of the detectors and its grid; the scan's own where there is none.

    Args:
        detectors: Names of cards; those of cards that are gone are passed over.
        folds: Members that were asked for; empty for all.
        models: The user's folder of cards.
    """
    for name in detectors:
        said = card(name, models) if name in card_names(models=models) else {}
        for member in members_of(said, tuple(folds)):
            return f"{name}, network {member['name']}", Grid.from_card(member["grid"])
    return ", ".join(detectors), Grid()


def asks_networks(config: Config) -> bool:
    """Whether any network is needed for a run."""
    cards = [card(name, config.models) for name in config.detector]
    return config.anatomy == "network" or any("members" in said for said in cards)


def models_of(config: Config) -> Models:
    """Which networks are asked in a run, and how."""
    return Models(config.models, config.folds, config.precision)


def look_inside(scan: Scan, image: Volume, config: Config) -> Inside:
    """What lies where in the head: the user's own segmentation, or what the network sees.

    A segmentation in the scan's space comes first, then one that can be brought from a T1w image to
    the scan; if it cannot, a note says why, and the network is asked.

    Raises:
        ValueError: If the user's segmentation cannot be read; the file is named.
    """
    given = segmentation_for(scan, config)
    if given is None:
        return by_network(scan, image, config)
    said = card(ANATOMY, config.models)
    anatomy, lobes = read_segmentation(given.path, said["classes"], said["mni_centroids"])
    if not given.on_t1w:
        return Inside(anatomy, lobes, str(given.path), given=given.path)
    seen = by_network(scan, image, config)
    brain = outline(scan, image, config, seen).mask
    try:
        carried = carry(anatomy, lobes, image, brain, t1w=given.t1w, transform=given.transform)
    except ValueError as error:
        note = f"{scan.path.name}: the segmentation {given.path} was not used: {error}."
        return replace(seen, notes=(*seen.notes, note))
    return Inside(carried.anatomy, lobes, str(given.path), carried=carried, given=given.path)


def segmentation_for(scan: Scan, config: Config) -> Segmentation | None:
    """The user's segmentation of a scan."""
    return find_segmentation(config.derivatives, scan, config.bids_dir)


def by_network(scan: Scan, image: Volume, config: Config) -> Inside:
    """What the network sees, if it is to be asked; a note if it sees nothing."""
    if config.anatomy != "network":
        return Inside()
    try:
        return Inside(find_anatomy(image, models_of(config)), None, NETWORK)
    except ValueError as error:
        return Inside(notes=(f"{scan.path.name}: no regions: {error}",))


def look_closer(
    scan: Scan, image: Volume, inside: Inside, config: Config, lesions: list[Lesion]
) -> Inside:
    """The same, its structures on finer voxels if anybody will ask for them, and with atlases.

    Structures that the user gave stay as they are.
    """
    if inside.given is None and (lesions or config.output_level == "full"):
        anatomy, why = finer(image, inside.anatomy, models_of(config))
        notes = () if why is None else (f"{scan.path.name}: structures on 2 mm voxels: {why}.",)
        refined = anatomy is not inside.anatomy
        inside = replace(inside, anatomy=anatomy, notes=(*inside.notes, *notes), refined=refined)
    return with_atlases(scan, inside)


def with_atlases(scan: Scan, inside: Inside) -> Inside:
    """The same with what atlases add, and a note on a poor fit to MNI."""
    anatomy = inside.anatomy
    atlases = find_atlases()
    if inside.lobes is None and atlases.lobes:
        inside = replace(inside, lobes=lobes_of(anatomy, atlases.lobes))
    if atlases.nuclei:
        inside = replace(inside, capsule=capsule_of(anatomy, atlases.nuclei))
    if anatomy.fit_mm is None or anatomy.fit_mm <= POOR_FIT_MM:
        return inside
    off = f"structures lie {anatomy.fit_mm:.1f} mm off the template after the fit"
    note = f"{scan.path.name}: MNI positions are a guess; {off}."
    return replace(inside, notes=(*inside.notes, note))


def placed(
    lesions: list[Lesion], anatomy: Anatomy, regions: Volume, config: Config
) -> list[Lesion]:
    """The lesions, each with where it lies."""
    classes = card(ANATOMY, config.models)["classes"]
    centres = [lesion.centre for lesion in lesions]
    found = places(anatomy, centres, classes)
    where = [locate(regions, centre, anatomy.midline) for centre in centres]
    rows = []
    for lesion, place, region in zip(lesions, found, where, strict=True):
        parcel = parcel_at(place.mni, region.territory, region.name, find_atlases())
        rows.append(replace(_at(lesion, place, region, config.uncounted), parcel=parcel))
    return rows


def _at(lesion: Lesion, place: Place, region: Region, uncounted: tuple[str, ...]) -> Lesion:
    flags = lesion.flags if region.away == 0 else (*lesion.flags, "csf")
    return replace(
        lesion,
        flags=flags,
        counted=not set(flags) & set(uncounted),
        region=place.structure,
        side=place.side,
        mni=place.mni,
        territory=region.territory,
        mars=region.name,
        next_mars=region.next_name,
        next_mars_mm=region.next_away,
        left=region.left,
    )


def look_at_phase(scan: Scan, image: Volume, brain: Volume, config: Config) -> Phase:
    """The scan's phase, if a network asks for it; a note says what was used, or why nothing."""
    partner = partner_of(scan, config)
    if partner is None:
        return Phase()
    if partner.path is None:
        why = partner.note or f"{scan.path.name}: no phase image lies beside it."
        return Phase(notes=(f"{why} Networks that take phase did without.",))
    try:
        seen = read_phase(partner.path, image, brain)
    except OSError as error:
        why = f"{partner.path} {unreadable(error)}."
    except ValueError as error:
        why = f"{str(error).rstrip('.')}."
    else:
        note = f"{scan.path.name}: networks that take phase were shown {partner.path.name}."
        return Phase(seen, partner.path, (note,))
    return Phase(notes=(f"{why} Networks that take phase did without.",))


def partner_of(scan: Scan, config: Config) -> Partner | None:
    """The phase image of a scan; None where no network asks for one, and no folder is read."""
    if not takes_phase(config.detector, models_of(config)):
        return None
    if scan.more_echoes:
        return Partner(note=f"{scan.path.name}: combined echoes have no phase in common.")
    return find_phase(scan.path)


def read(scan: Scan) -> tuple[Volume, Intake]:
    """The scan's image; several echoes as the root of their mean square.

    Raises:
        ValueError: If an echo cannot be used or does not lie on the grid of the first.
    """
    image, intake = load(scan.path)
    if not scan.more_echoes:
        return image, intake
    squares = image.data**2
    for path in scan.more_echoes:
        echo, more = load(path)
        if echo.shape != image.shape or not np.allclose(echo.affine, image.affine, atol=1e-3):
            raise ValueError(
                f"{path}: echoes to be combined must share one grid; found {echo.shape} voxels "
                f"here and {image.shape} in {scan.path.name}, or another affine."
            )
        squares += echo.data**2
        intake = replace(
            intake,
            nonfinite_voxels=intake.nonfinite_voxels + more.nonfinite_voxels,
            notes=intake.notes + more.notes,
        )
    mean = squares / (1 + len(scan.more_echoes))
    return Volume(np.sqrt(mean), image.affine), intake


def outline(scan: Scan, image: Volume, config: Config, inside: Inside | None = None) -> Brain:
    """The brain mask: the user's own, the scan's non-zero voxels if it is stripped, or found.

    What was seen inside is taken if it could be a whole brain; else the one by intensity and shape.

    Raises:
        ValueError: If no brain is found, or the user's mask holds none; the file is named.
    """
    given = find_mask(config.derivatives, scan, config.mask_desc)
    try:
        if config.skip_brain_extraction:
            return Brain(stripped_brain(image), "the scan's own non-zero voxels")
        if given:
            return Brain(given_brain(given, image), str(given))
        brain = seen_brain(image, inside)
    except ValueError as error:
        raise ValueError(f"{scan.path}: {error}") from error
    notes = (f"{scan.path.name}: --derivatives holds no brain mask for it; one was found.",)
    return replace(brain, notes=notes) if config.derivatives else brain


def seen_brain(image: Volume, inside: Inside | None) -> Brain:
    """The brain by the anatomy if that is plausible, else by intensity and shape.

    Raises:
        ValueError: If no brain is found either way.
    """
    if inside is not None and inside.anatomy is not None:
        mask = brain_of(inside.anatomy, image)
        if PLAUSIBLE_ML[0] <= volume_ml(mask) <= PLAUSIBLE_ML[1]:
            return Brain(mask, f"found by {inside.source}")
    return Brain(find_brain(image), "found by intensity and shape")


def given_brain(path: Path, image: Volume) -> Volume:
    """The user's brain mask on the grid of the scan.

    Raises:
        ValueError: If no voxel of the scan lies within it.
    """
    mask = resample_like(load_labels(path), image, order=0)
    inside = mask.data > 0.5
    if not inside.any():
        raise ValueError(f"the brain mask {path} must overlap the scan; found no voxel in common.")
    return Volume(inside, image.affine)


def cut_for(config: Config) -> Cut:
    """The thresholds of a run: the user's, else those on the detectors' cards, averaged."""
    cards = [card(name, config.models) for name in config.detector]

    def mean(key: str) -> float:
        return float(np.mean([one[key] for one in cards]))

    threshold = mean("threshold") if config.threshold is None else config.threshold
    volume = mean("min_volume_mm3") if config.min_volume is None else config.min_volume
    return Cut(threshold, max(mean("definite_threshold"), threshold), volume)


def sweep(output: Output) -> None:
    """Remove what processes that died left half-written where a scan's files go."""
    for folder in (output.home, output.mask().parent, output.figures):
        remove_leftovers(folder)


def retract(output: Output) -> None:
    """Take back the result of an earlier run: the marker first, then its files and its pictures.

    The table of the session and the page no longer show it then.
    """
    sign = output.mask(".json")
    earlier = read_json(sign)
    sign.unlink(missing_ok=True)
    for name in names_in(earlier):  # never a path out of the folder
        for part in (name, f"{name.partition('.')[0]}.json"):
            (sign.parent / part).unlink(missing_ok=True)
    remove_pictures(output)
    if earlier is not None:
        show_state(output)


def show_state(output: Output) -> None:
    """Bring the table of a scan's session and its participant's page, if any, up to date."""
    refresh_scans_table(output.home)
    if page_of(output.folder, output.scan.subject).is_file():
        refresh_page(output.folder, output.scan.subject)


def write_images(output: Output, found: Findings, config: Config) -> list[Path]:
    """Write the images that the output level asks for, each but the lesion mask with a sidecar.

    Returns:
        All these files, and the lesion table that goes with the labels.
    """
    sidecars: list[Path] = []
    about = {"Sources": output.sources(found.phase.path), "SpatialReference": "orig"}

    def written(place, volume: Volume, dtype: type, said: dict) -> Path:
        save(volume, place(), dtype=dtype)
        write_json(place(".json"), {**said, **about})
        sidecars.append(place(".json"))
        return place()

    labels, grid = found.labels.data, found.image.affine
    counted = np.isin(labels, [lesion.index for lesion in found.lesions if lesion.counted])
    save(Volume(counted, grid), output.mask(), dtype=np.uint8)
    said = {"Description": LABELS, "Manual": False, **columns("lesion")}
    files = [output.mask(), written(output.labels, found.labels, np.uint16, said)]
    if config.output_level != "minimal":
        said = {"Description": PROBABILITY, "Manual": False}
        files.append(written(output.probability, found.probability.mean, np.float32, said))
        said = {"Description": BRAIN, "Type": "Brain", "Manual": False}
        files.append(written(output.brain, found.brain.mask, np.uint8, said))
        for kind, rows in evidence_rows(found.probability.evidence).items():
            write_table(output.evidence(kind), columns(kind), rows)
            said = {"Description": BEHIND[kind], **columns(kind)}
            write_json(output.evidence(kind, ".json"), {**said, **about})
            files += [output.evidence(kind), output.evidence(kind, ".json")]
    if config.output_level == "full" and found.anatomy is not None:
        codes = resample_like(found.anatomy.structures, found.image, order=0)
        said = {"Description": STRUCTURES.format(found.inside.source), "Manual": False}
        files.append(written(output.structures, codes, np.uint16, said))
    if config.output_level == "full" and found.regions is not None:
        labels = resample_like(found.regions, found.image, order=0)
        said = {"Description": REGIONS, "Manual": False}
        files.append(written(output.regions, labels, np.uint16, said))
        write_table(output.regions(".tsv"), ("index", "name"), label_rows())
        files.append(output.regions(".tsv"))
    if found.anatomy is not None and found.anatomy.to_mni is not None:
        write_text(output.to_mni(), itk_affine(found.anatomy.to_mni))
        files.append(output.to_mni())
    if found.inside.carried is not None:
        write_text(output.from_t1w(), itk_affine(found.inside.carried.to_scan))
        files.append(output.from_t1w())
    if config.output_level == "full":
        seen = preprocess(found.image, found.brain.mask, Grid(intensity="brain-median")).image
        said = {"Description": PREPROCESSED, "SkullStripped": config.skip_brain_extraction}
        files.append(
            written(output.preprocessed, resample_like(seen, found.image), np.float32, said)
        )
    return [*files, *sidecars, output.labels(".tsv")]


def scan_row(scan: Scan, found: Findings, config: Config) -> dict[str, object]:
    """The scan's row in ``_scans.tsv``, but for the file name."""
    cut, image, echo_time = cut_for(config), found.image, scan.echo_time_s
    in_plane = np.delete(image.spacing, image.slice_axis)
    return {
        **counts(found.lesions),
        "detector": ",".join(config.detector),
        "threshold": cut.threshold,
        "threshold_definite": cut.definite,
        "field_strength_t": scan.field_strength_t,
        "echo_time_ms": None if echo_time is None else round(1000 * echo_time, 3),
        "in_plane_1_mm": round(float(in_plane[0]), 3),
        "in_plane_2_mm": round(float(in_plane[1]), 3),
        "slice_mm": round(float(image.spacing[image.slice_axis]), 3),
        "brain_ml": round(found.quality.brain_ml, 1),
        "brain_cut_percent": round(found.quality.brain_cut_percent, 1),
        "brain_snr": round(found.quality.brain_snr, 1),
        "mni_fit_mm": None
        if found.anatomy is None or found.anatomy.fit_mm is None
        else round(found.anatomy.fit_mm, 1),
        "nonfinite_voxels": found.intake.nonfinite_voxels,
        "quality_flags": ",".join(found.quality.flags) or None,
    }


def marker(
    output: Output, found: Findings, config: Config, files: list[Path], inputs: Inputs
) -> dict:
    """The sidecar of the lesion mask, but for the counts: all that made them."""
    scan, carried = output.scan, found.inside.carried
    protocol = {key: scan.metadata[key] for key in PROTOCOL if key in scan.metadata}
    return {
        "Description": "Counted cerebral microbleeds, 1; the lesions one by one stand in "
        f"{output.labels('.tsv').name}.",
        "Type": "Lesion",
        "Manual": False,
        "Sources": output.sources(found.phase.path),
        "SpatialReference": "orig",
        **protocol,
        "Provenance": {
            "Fingerprint": inputs.fingerprint,
            "Input": list(inputs.stamps),
            "BrainMask": found.brain.source,
            **({"Phase": found.phase.path.name} if found.phase.path else {}),
            "Settings": result_settings(config),
            "Detectors": [_named(name, config) for name in config.detector],
            "Anatomy": _anatomy_named(found.inside, config),
            "Software": software(),
            "CodeSHA256": package_digest(),
            "Machine": {
                **machine(),
                "Device": device() if asks_networks(config) else "CPU",
            },
            "Finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **({} if carried is None else {"Registration": carried.figures}),
            "Files": stamp_outputs(files),
        },
    }


# Resume: a scan is done when its marker names the same input, settings and software, and the files
# that it names are whole.


def lacking(scan: Scan, config: Config) -> str:
    """Say what a scan lacks of what this run would write: `RESULT`, `REPORT` or `NOTHING`."""
    if not is_done(scan, config):
        return RESULT
    output = Output(config.output_dir, scan)
    if config.report == "none" or (
        are_drawn(output, interactive=config.report == "interactive") and shows_result(output)
    ):
        return NOTHING
    return REPORT if output.brain().is_file() else RESULT  # without the mask none can be drawn


def settle(scan: Scan, config: Config) -> None:
    """Note that the result of a scan is current, and see to its row in the session's table."""
    output = Output(config.output_dir, scan)
    if any(open_attempt(output.folder, source) for source in sources_of(output)):
        forget_attempts(output)
        show_state(output)
    if not has_row(output):
        sweep(output)
        refresh_scans_table(output.home)


def forget_attempts(output: Output) -> None:
    """Note that a scan has its result, under the name of each of its images."""
    for source in sources_of(output):
        forget_attempt(output.folder, source)


def sources_of(output: Output) -> set[str]:
    """The images of a scan, relative to the raw dataset."""
    images = (source.removeprefix("bids:raw:") for source in output.sources())
    return {output.scan.relative_path, *images}


def is_done(scan: Scan, config: Config) -> bool:
    """Whether the results on disk are those that this run would write, each file whole."""
    sign = Output(config.output_dir, scan).mask(".json")
    made = read_marker(sign)
    if made is None or not is_whole(sign.parent, made):
        return False
    made = made["Provenance"]
    inputs = made.get("Input")
    inputs = inputs if isinstance(inputs, list) else []
    known = {(one.get("Role"), one.get("Path")): one for one in inputs if isinstance(one, dict)}
    digests = [
        [role, digest(path, known.get((role, path.name), {}))]
        for role, path in roles_of(scan, config)
    ]
    return made.get("Fingerprint") == fingerprint_of(scan, config, digests)


def roles_of(scan: Scan, config: Config) -> list[tuple[str, Path]]:
    """List the files whose content decides the results, each with what it is taken for."""
    mask = find_mask(config.derivatives, scan, config.mask_desc)
    given = segmentation_for(scan, config)
    phase = phase_file(scan, config)
    return [
        ("scan", scan.path),
        *(("echo", path) for path in scan.more_echoes),
        *([("phase", phase)] if phase else []),
        *([("brain mask", mask)] if mask else []),
        *(given.roles if given else []),
    ]


def inputs_of(scan: Scan, config: Config) -> list[Path]:
    """The files whose content decides the results: echoes, phase, and what the user gave."""
    return [path for _, path in roles_of(scan, config)]


def take_inputs(scan: Scan, config: Config) -> Inputs:
    """Note what the files of a scan are, before any is read.

    Raises:
        OSError: If one cannot be read.
    """
    files = tuple(roles_of(scan, config))
    stamps = tuple(stamp_input(path, Role=role) for role, path in files)
    digests = [[one["Role"], one["SHA256"]] for one in stamps]
    return Inputs(files, stamps, fingerprint_of(scan, config, digests))


def check_unchanged(scan: Scan, config: Config, inputs: Inputs) -> None:
    """Refuse a scan of which a file was replaced while it was read.

    Raises:
        ValueError: If one was; the sentence names it.
    """
    for (_, path), before in zip(inputs.files, inputs.stamps, strict=True):
        try:
            same = digest(path, before) == before["SHA256"]
        except FileNotFoundError:
            same = False
        if not same:
            raise ValueError(
                f"{path}: must not change while it is read; it was replaced or removed meanwhile. "
                "The next run reads it again."
            )
    if tuple(roles_of(scan, config)) != inputs.files:
        raise ValueError(
            f"{scan.path}: the files given for it must not change while it is read; some came or "
            "went meanwhile. The next run reads it again."
        )


def phase_file(scan: Scan, config: Config) -> Path | None:
    """The scan's phase image, if a network asks for it and it can be opened."""
    partner = partner_of(scan, config)
    path = partner.path if partner else None
    return path if path and path.is_file() and os.access(path, os.R_OK) else None


def fingerprint_of(scan: Scan, config: Config, digests: list) -> str:
    """One hash over the input, its metadata, the settings, the detectors and the software.

    Args:
        scan: Whose result it is.
        config: What the run was asked to do.
        digests: Role and SHA-256 of each input.
    """
    looked = config.anatomy == "network" or segmentation_for(scan, config) is not None
    phase = phase_file(scan, config)
    return fingerprint(
        input=digests,
        metadata={key: str(value) for key, value in scan.metadata.items()},
        settings=result_settings(config),
        detectors=[card(name, config.models) for name in config.detector],
        anatomy=card(ANATOMY, config.models) if looked else None,
        atlases=[_atlas_digest(path) for path in find_atlases().paths] if looked else None,
        version=__version__,
        code=package_digest(),
        engines=engines(),
        **({"phase": str(units_of(phase))} if phase else {}),
    )


def _named(name: str, config: Config) -> dict[str, object]:
    """A model as the sidecar names it: its card's hash, and that of the weights of each member."""
    said = card(name, config.models)
    members = members_of(said, config.folds if name != ANATOMY else ())
    weights = {member["name"]: member["sha256"] for member in members}
    return {
        "Name": name,
        "CardSHA256": fingerprint(card=said),
        **({"WeightsSHA256": weights} if weights else {}),
    }


def _anatomy_named(inside: Inside, config: Config) -> dict[str, object] | None:
    """What said where things lie, as the sidecar names it: the networks asked, or the file."""
    if inside.anatomy is None:
        return None
    if inside.given is not None:
        return {"Source": str(inside.given)}
    named = _named(ANATOMY, config)
    weights = named["WeightsSHA256"]
    if not inside.refined:
        weights = {name: digest for name, digest in weights.items() if name != TISSUE}
    return {"Source": inside.source, **named, "WeightsSHA256": weights}


@lru_cache(maxsize=4)
def _atlas_digest(atlas: Path) -> str:
    return sha256(atlas)
