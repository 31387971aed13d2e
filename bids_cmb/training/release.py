"""From nothing to a released detector: simulate, train, set operating points, write the card.

A plan (``resources/plans/<name>.json``) names the sets of scans, the networks in their order and
what the card says. What is there already is left as it is, so that a run which was stopped goes on.
"""

import csv
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, logit

from bids_cmb.anatomy.scan_anatomy import BrainSource, get_brain_mask, segment_with_network
from bids_cmb.bids.filters import Query
from bids_cmb.bids.selection import find_scans
from bids_cmb.config import BALANCED
from bids_cmb.detection.calibration import calibrate
from bids_cmb.detection.ensemble import predict_second_opinion
from bids_cmb.detection.proposals import CLIP
from bids_cmb.detection.two_stage import (
    OPINION_LEAST,
    add_opinion,
    combine,
    decide,
    propose,
    read_opinion,
)
from bids_cmb.files import load_object, write_json
from bids_cmb.imaging.volume import load
from bids_cmb.metrics.matching import MAX_DISTANCE_MM, match_valdo
from bids_cmb.metrics.scores import (
    ScanMatches,
    compute_froc,
    compute_metrics,
    make_scan_matches,
    rank_lesions,
)
from bids_cmb.networks.inference import ModelOptions
from bids_cmb.simulation.head_model import list_head_models
from bids_cmb.simulation.simulate import simulate_dataset
from bids_cmb.training import data as training_data
from bids_cmb.training.train import TrainingData, read_recipe, train

LEAST_SLOPE = 0.05  # of a calibration: a likelier candidate stays the likelier one
MOST_FALSE_ON_REAL = 0.6  # per scan, of a threshold that is set on real ones
DEFINITE = 0.5  # calibrated chance from which a candidate is called definite: likelier than not
SET_KEYS = {"scans", "seed", "lesion_priors", "of"}
NETWORK_KEYS = {"recipe", "data", "validation", "pretrained", "share", "member"}
PLANS = files("bids_cmb") / "resources" / "plans"
Say = Callable[[str], None]
Lesion = tuple[tuple[float, float, float], float, bool]  # position, diameter, whether it is sure


@dataclass(frozen=True)
class Means:
    """What a release may use.

    Attributes:
        anatomy: Folder of FreeSurfer-coded label maps; a plan names heads by their order in it.
        work: Folder for sets, trainings and the release.
        hours: Of training in all, wall time; as long as the recipes say without.
        workers: Processes that simulate.
        small: Scans of a set and steps of an epoch, at most, for a trial; as planned without.
        real: A BIDS dataset of real scans and a table of their microbleeds, as `judge_points` takes
            them, to set the threshold on; without, it is set on the scans that the plan names.
    """

    anatomy: Path
    work: Path
    hours: float | None = None
    workers: int = 1
    small: tuple[int, int] | None = None
    real: tuple[Path, Path] | None = None


def read_plan(name: str) -> dict:
    """Read the plan of that name, or the one in a JSON file.

    Raises:
        ValueError: If there is no such plan, it is no JSON, or it lacks something or has too much.
        OSError: If the file cannot be read.
    """
    known = sorted(entry.name.removesuffix(".json") for entry in PLANS.iterdir())
    if name not in known and not name.endswith(".json"):
        raise ValueError(
            f"A plan must be a JSON file or one of {', '.join(known)}; found {name!r}."
        )
    source = Path(name) if name.endswith(".json") else PLANS / f"{name}.json"
    plan = load_object(source, "a plan")
    needed = ("name", "heads", "protocols", "sets", "networks", "judged", "aims", "card")
    if lacking := [key for key in needed if key not in plan]:
        raise ValueError(f"{source}: a plan must hold {', '.join(lacking)}; found none.")
    for kind, keys, parts in (
        ("set", SET_KEYS, plan["sets"].values()),
        ("network", NETWORK_KEYS, plan["networks"]),
    ):
        if unknown := sorted({key for part in parts for key in part} - keys):
            raise ValueError(
                f"{source}: a {kind} of a plan has {', '.join(sorted(keys))} only; "
                f"found {', '.join(unknown)}."
            )
    return plan


def release(plan: Mapping, means: Means, *, say: Say = lambda _: None) -> dict:
    """Make a detector as planned; a run that was stopped goes on.

    Args:
        plan: As `read_plan` gives it.
        means: What may be used.
        say: Told what goes on.

    Returns:
        The card. It lies in ``work/release`` with the weights of its members and
        ``judged.json``, every candidate of the scans that the operating points were set on.

    Raises:
        ValueError: If the budget is not above 0, a head is missing, or as in
            `simulate_dataset` and `train`.
        OSError: If something cannot be read or written.
    """
    if means.hours is not None and not 0 < means.hours < math.inf:
        raise ValueError(f"A budget must be more than 0 hours; found {means.hours:g}.")
    for name, given in plan["sets"].items():
        simulate_set(name, given, plan, means, say)
    trained = [(given, train_network(given, plan, means, say)) for given in plan["networks"]]
    entries = [made for given, made in trained if given.get("member", True)]
    out = means.work / "release"
    out.mkdir(parents=True, exist_ok=True)
    for entry, path in entries:
        shutil.copyfile(path.with_name(entry["weights"]), out / entry["weights"])
    card = {**plan["card"], "threshold": 0.5, "definite_threshold": 0.5}
    card["members"] = [entry for entry, _ in entries]
    write_json(out / f"{card['name']}.json", card)
    judged = judge(card, ModelOptions(out), means.work / "sets" / plan["judged"], say)
    real = list(judge_points(card, ModelOptions(out), *means.real, say)) if means.real else []
    card |= set_operating_points(judged, plan["aims"], real)
    write_json(out / f"{card['name']}.json", card)
    write_json(out / "judged.json", {"scans": [as_json(one) for one in judged]})
    return card


def simulate_set(name: str, given: Mapping, plan: Mapping, means: Means, say: Say) -> Path:
    """Simulate the scans of a set, unless they are there and whole."""
    folder, part = means.work / "sets" / name, means.work / "sets" / f"{name}.part"
    if (folder / "dataset_description.json").is_file():
        return folder
    shutil.rmtree(part, ignore_errors=True)  # begun by a run that was stopped
    heads = list_head_models(means.anatomy)
    wanted = plan["heads"][given["of"]]
    if max(wanted) > len(heads):
        raise ValueError(
            f"{means.anatomy}: the plan {plan['name']} needs {max(wanted)} label maps of heads; "
            f"found {len(heads)}."
        )
    protocols = protocols_of(plan["protocols"][given["of"]])
    scans = min(given["scans"], means.small[0]) if means.small else given["scans"]
    with tempfile.TemporaryDirectory() as chosen:
        for number in wanted:
            path = heads[number - 1]
            (Path(chosen) / path.name).symlink_to(path.absolute())
        simulate_dataset(
            part, scans=scans, seed=given["seed"], anatomy=Path(chosen), protocols=protocols,
            priors=given["lesion_priors"], workers=means.workers,
            progress=lambda done, of, _: say(f"{name}: {done} of {of} scans simulated"),
        )  # fmt: skip
    part.rename(folder)
    return folder


def protocols_of(names: Sequence[str]) -> list[str]:
    """Give the protocols of a plan for `simulate_dataset`: files are those of the package."""
    return [str(PLANS.parent / name) if name.endswith(".json") else name for name in names]


def train_network(given: Mapping, plan: Mapping, means: Means, say: Say) -> tuple[dict, Path]:
    """Train a network of a plan, unless that is done; its entry, and where it lies."""
    recipe, sets = read_recipe(given["recipe"]), means.work / "sets"
    if means.small:
        recipe = replace(recipe, steps=min(recipe.steps, means.small[1]), epochs=2, settle=1)
    out = means.work / "runs" / recipe.name
    path = out / f"{recipe.name}.json"
    if not path.is_file():
        roles = [
            (role, means.work / "runs" / role / f"{role}.json")
            for role in given.get("pretrained", ())
        ]
        material = TrainingData(
            tuple(sets / name for name in given["data"]),
            validation=tuple(sets / name for name in given["validation"]),
            pretrained=tuple(roles),
            loading=training_data.Loading(means.workers, means.work / "cache"),
        )
        total = sum(one["share"] for one in plan["networks"])
        hours = None if means.hours is None else means.hours * given["share"] / total
        began = time.monotonic()
        say(f"{recipe.name}: training begins")
        train(recipe, material, out, hours=hours, log=lambda text: say(f"{recipe.name}: {text}"))
        say(f"{recipe.name}: trained in {(time.monotonic() - began) / 60:.0f} minutes")
    return json.loads(path.read_text(encoding="utf-8")), path


# --- Operating points -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Judged:
    """What a detector of two stages makes of one scan with truth.

    Attributes:
        name: Of the scan.
        positions: Of its candidates, world mm, (N, 3).
        proposed: First-stage probability of each, (N,).
        chance: Of each, before any calibration, (N,).
        lesions: Position (world mm), diameter (mm) and whether it is sure, of each true one.
        opinion: Probability of each by the detector that gives a second opinion, (N,); None if
            none does.
    """

    name: str
    positions: np.ndarray
    proposed: np.ndarray
    chance: np.ndarray
    lesions: tuple[Lesion, ...]
    opinion: np.ndarray | None = None

    def case(self, scores: np.ndarray) -> ScanMatches:
        """Give the scan to be scored, its candidates with these scores, (N,)."""
        return make_scan_matches(
            list(zip(self.positions.tolist(), scores.tolist(), strict=True)),
            self.lesions,
            name=self.name,
        )


def judge(
    card: Mapping, models: ModelOptions, data: Path, say: Say = lambda _: None
) -> list[Judged]:
    """Run a detector of two stages on a dataset with truth, as the app would.

    Args:
        card: Of the detector.
        models: Where its weights lie.
        data: A BIDS dataset, its truth in ``derivatives/truth``.
        say: Told what goes on.
    """
    judged = []
    for paths in training_data.find_training_scans(data):
        lesions = tuple(_true_lesions(paths.lesions))
        judged.append(judge_scan(card, models, paths.image, lesions, name=paths.name))
        say(f"{paths.name}: {len(judged[-1].chance)} candidates")
    return judged


def judge_points(
    card: Mapping, models: ModelOptions, data: Path, table: Path, say: Say = lambda _: None
) -> Iterator[Judged]:
    """Run a detector of two stages on scans whose truth is a table of points.

    Args:
        card: Of the detector.
        models: Where its weights lie.
        data: A BIDS dataset.
        table: Tab-separated, with the columns ``subject`` (``sub-01``), ``x_mm``, ``y_mm``,
            ``z_mm``, and ``diameter_mm`` or ``equiv_diameter_mm`` if known.
        say: Told what goes on.

    Raises:
        ValueError: If the table lacks a column, or the dataset has no scan to process.
    """
    rows = pd.read_csv(table, sep="\t")
    if lacking := sorted({"subject", "x_mm", "y_mm", "z_mm"} - set(rows)):
        raise ValueError(f"{table}: must have the columns subject, x_mm, y_mm and z_mm; lacks "
                         f"{', '.join(lacking)}.")  # fmt: skip
    scans = find_scans(data.absolute(), Query()).scans
    if not scans:
        raise ValueError(f"{data}: must have scans to process; found none.")
    for path in (scan.path for scan in scans):
        of_scan = rows[rows.subject == path.name.partition("_")[0]]
        lesions = [((row.x_mm, row.y_mm, row.z_mm), _diameter(row), True)
                   for row in of_scan.itertuples()]  # fmt: skip
        yield judge_scan(card, models, path, lesions, name=path.name.split(".")[0])
        say(f"{path.name}: {len(lesions)} lesions")


def _diameter(row: object) -> float:
    """Read the diameter of a row, mm; NaN without."""
    return getattr(row, "diameter_mm", getattr(row, "equiv_diameter_mm", math.nan))


def judge_scan(
    card: Mapping, models: ModelOptions, path: Path, lesions: Sequence[Lesion], *, name: str
) -> Judged:  # fmt: skip
    """Run a detector of two stages on one scan, as the app would.

    Args:
        card: Of the detector.
        models: Where its weights lie.
        path: Of the image.
        lesions: The true ones, as `Judged` has them.
        name: Of the scan.
    """
    image, _ = load(path)
    head = segment_with_network(image, ModelOptions())
    anatomy, brain = head.head, get_brain_mask(image, BrainSource(path), head).mask
    fed, probability, proposals = propose(image, brain, card, models)
    chance = decide(fed, probability, proposals, card, models, anatomy)
    voxels = np.array([one.voxel for one in proposals]).reshape(-1, 3)
    proposed = np.array([one.probability for one in proposals])
    positions = probability.world(voxels)
    other = predict_second_opinion(card, image, brain, models)
    opinion = None if other is None else read_opinion(other, positions)
    return Judged(name, positions, proposed, chance, tuple(lesions), opinion)


def _true_lesions(labels: Path):
    table = labels.with_name(labels.name.replace(".nii.gz", ".tsv"))
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            place = tuple(float(row[name]) for name in ("x_mm", "y_mm", "z_mm"))
            yield place, _number(row["diameter_mm"]), row["certainty"] == "definite"


def _number(cell: str) -> float:
    return math.nan if cell == "n/a" else float(cell)


def set_operating_points(
    judged: Sequence[Judged], aims: Mapping[str, float], real: Sequence[Judged] = ()
) -> dict:
    """Calibrate the chances, and choose the threshold of each aim.

    Args:
        judged: Scans that no network learnt from.
        aims: Of each operating point, the false candidates per scan that it may cost.
        real: Real scans with truth. With them, the threshold of ``balanced`` is the one of the
            best F1 there at no more than `MOST_FALSE_ON_REAL` false candidates per scan; nothing
            else is set by them.

    Returns:
        What goes onto the card: ``calibration``, the weights, ``operating_points`` with
        their figures, ``threshold`` (that of ``balanced``) and ``definite_threshold``.
    """
    fitted = fit_calibration(judged)
    weights = {key: fitted.pop(key) for key in list(fitted) if key.endswith("_weight")}

    def scored(scans: Sequence[Judged]) -> list[ScanMatches]:
        return [one.case(calibrate(combine_all(one, weights), fitted)) for one in scans]

    simulated, measured = scored(judged), scored(real)
    found = compute_froc(simulated, match_valdo)
    thresholds = {
        name: _rounded_down(min(float(found.threshold[found.reading(aim)]), 1.0))
        for name, aim in aims.items()
    }
    if measured:
        thresholds[BALANCED] = threshold_of_best_f1(measured, MOST_FALSE_ON_REAL)
    points = []
    for name, threshold in thresholds.items():
        point = {"name": name, "threshold": threshold, **_figures_at(threshold, simulated)}
        if measured and name == BALANCED:
            point["set_on"] = f"{len(real)} real scans"
        else:
            point["false_per_scan_aimed_at"] = aims[name]
        if measured:
            figures = _figures_at(threshold, measured)
            point |= {f"{key}_on_real": value for key, value in figures.items()}
        points.append(point)
    return {
        "calibration": fitted,
        **weights,
        "operating_points": points,
        "threshold": thresholds[BALANCED],
        "definite_threshold": max(DEFINITE, thresholds[BALANCED]),
    }


def threshold_of_best_f1(scored: Sequence[ScanMatches], most_false: float) -> float:
    """Find the threshold of the best F1 at no more false candidates per scan than that.

    It lies halfway, in log-odds, between the least likely candidate that counts and the next, so
    that a last digit which another processor gives differently moves no candidate over it. Of
    equal F1, the higher threshold.
    """
    found = compute_froc(scored, match_valdo)
    here = float(found.threshold[found.best(most_false)])
    below = found.threshold[found.threshold < here]
    between = logit(np.clip([here, below[0] if len(below) else 0], CLIP, 1 - CLIP)).mean()
    return _rounded_down(float(expit(between)))


def _figures_at(threshold: float, scored: Sequence[ScanMatches]) -> dict[str, float]:
    """Give what an operating point costs and finds on these scans."""
    metrics = compute_metrics(scored, match_valdo, threshold=threshold)
    return {
        "false_per_scan": round(float(metrics.fp_per_scan), 3),
        "sensitivity": round(float(metrics.sensitivity), 3),
        "sensitivity_large": round(float(metrics.sensitivity_large), 3),
        "f1": round(float(metrics.f1), 3),
    }


def _rounded_down(chance: float) -> float:
    return math.floor(chance * 1e4) / 1e4


def fit_calibration(judged: Sequence[Judged]) -> dict[str, float]:
    """Fit the logistic curve that makes chances of candidates come true.

    Args:
        judged: Scans with the chances of the second stage alone.

    Returns:
        ``slope`` and ``offset`` of the log-odds, as `detection.calibration.calibrate` takes them;
        ``first_stage_weight`` and, if there is one, ``second_opinion_weight``, by which those of
        the first stage and of the second opinion are added before (0 or more).
    """
    second, first, other, hits = [], [], [], []
    for one in judged:
        case = one.case(one.chance)
        sure = case.between[:, ~case.uncertain]
        near = case.between.min(axis=1, initial=np.inf) < MAX_DISTANCE_MM
        hit = sure.min(axis=1, initial=np.inf) < MAX_DISTANCE_MM
        kept = hit | ~near  # those of an unsure lesion say nothing
        second.append(logits_of(one)[kept])
        first.append(logit(np.clip(one.proposed[kept], CLIP, 1 - CLIP)))
        if one.opinion is not None:
            other.append(logit(np.clip(one.opinion[kept], OPINION_LEAST, 1 - OPINION_LEAST)))
        hits.append(hit[kept])
    second, first = np.concatenate(second), np.concatenate(first)
    hits = np.concatenate(hits).astype(float)
    alone = np.array_equal(second, first)  # there is no second stage
    columns = [second, 0 * first if alone else first, *([np.concatenate(other)] if other else [])]
    seen = np.stack([*columns, np.ones_like(second)], axis=1)

    def surprise(factors: np.ndarray) -> tuple[float, np.ndarray]:
        odds = seen @ factors
        loss = np.sum(np.logaddexp(0, odds) - hits * odds)
        return float(loss), seen.T @ (expit(odds) - hits)

    bounds = [(LEAST_SLOPE, None), *[(0, None)] * (len(columns) - 1), (None, None)]
    start = (1.0, *[0.0] * len(columns))
    slope, *weights, offset = minimize(surprise, start, jac=True, bounds=bounds).x
    names = ("first_stage_weight", "second_opinion_weight")
    return {
        "slope": round(float(slope), 4),
        "offset": round(float(offset), 4),
        **{
            name: round(float(weight / slope), 4)
            for name, weight in zip(names, weights, strict=False)
        },
    }


def combine_all(one: Judged, weights: Mapping[str, float]) -> np.ndarray:
    """Combine classifier, first stage and second opinion by the weights of a card, (N,)."""
    chance = combine(logits_of(one), one.proposed, weights.get("first_stage_weight", 0.0))
    if one.opinion is None:
        return chance
    return add_opinion(chance, one.opinion, weights.get("second_opinion_weight", 0.0))


def logits_of(judged: Judged) -> np.ndarray:
    """Compute the log-odds of the chances of a scan's candidates, (N,)."""
    return logit(np.clip(judged.chance, CLIP, 1 - CLIP))


def as_json(one: Judged) -> dict:
    """Give what goes into a file of a judged scan."""
    ranks = rank_lesions(one.case(one.chance), match_valdo)
    return {
        "name": one.name,
        "candidates": [
            {"position_mm": [round(at, 2) for at in place], "proposed": round(float(first), 6),
             "chance": round(float(second), 6),
             **({} if one.opinion is None else {"opinion": round(float(one.opinion[row]), 4)})}
            for row, (place, first, second) in enumerate(zip(
                one.positions.tolist(), one.proposed, one.chance, strict=True
            ))
        ],
        "lesions": [
            {"position_mm": place, "diameter_mm": diameter, "sure": sure}
            for place, diameter, sure in one.lesions
        ],
        "ranks_of_sure_lesions": ranks.rank.tolist(),
    }  # fmt: skip
