"""Cross-validation: a training for each fold, without the subjects of the fold."""

from dataclasses import replace
from pathlib import Path

from bids_cmb.training.inputs import TrainingData
from bids_cmb.training.recipe import Recipe
from bids_cmb.training.scan_files import find_training_scans
from bids_cmb.training.train import Log, train


def cross_validate(
    recipe: Recipe, data: TrainingData, out: Path, *, folds: int, hours: float | None = None,
    log: Log = lambda _: None,
) -> list[dict]:  # fmt: skip
    """Train anew for each fold on all subjects but those of the fold.

    Args:
        recipe: How.
        data: On what; its data are BIDS datasets.
        out: A folder for each fold.
        folds: How many; the subjects of a dataset are dealt to them in turn.
        hours: Budget of each fold, as `train` takes it.
        log: Called with a line of progress.

    Returns:
        The entry of each fold's network, with the subjects that it was not trained on. Which of its
        epochs is kept was chosen by their validation loss, so figures on them are a little too
        good.

    Raises:
        ValueError: If there are fewer subjects than folds; or as `train`.
    """
    scans = [scan for folder in data.data for scan in find_training_scans(folder, data.truth)]
    subjects = sorted({scan.subject for scan in scans})
    if not 2 <= folds <= len(subjects):
        raise ValueError(
            f"Folds must be 2 or more and no more than subjects with a truth, {len(subjects)}; "
            f"found {folds}."
        )
    entries = []
    for fold in range(folds):
        left_out = tuple(subjects[fold::folds])
        log(f"fold {fold + 1} of {folds}: without {', '.join(left_out)}")
        fold_data = replace(data, left_out=left_out)
        fold_recipe = replace(recipe, name=f"{recipe.name}-{fold + 1}")
        entry = train(fold_recipe, fold_data, out / f"fold-{fold + 1}", hours=hours, log=log)
        entries.append({**entry, "left_out": left_out})
    return entries
