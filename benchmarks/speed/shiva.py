"""SHIVA-CMB's first network at full size, three folds: the app against a script of its recipe.

    python benchmarks/shiva.py BIDS_DIR --name real

The weights are by chance (the real ones may not be passed on), so times and memory are those of the
published size, and probabilities are compared, not judged. Both read the same scans with the same
brain masks on two threads: the script, as published, in a process for each scan, and in one process
that loads each fold once for all; the app from the scans to its derivatives. Runs alternate.
Results go to ``benchmarks/results/shiva-NAME.json``; memory is that of the largest process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from bids_cmb.anatomy.scan_anatomy import extract_brain_mask
from bids_cmb.bids.filters import Query
from bids_cmb.bids.selection import find_scans
from bids_cmb.imaging.loading import load_echoes
from bids_cmb.imaging.preprocessing import SHIVA, preprocess, resample_to_scan
from bids_cmb.imaging.volume import Volume, load, load_labels, save
from bids_cmb.provenance import machine, software

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
WIDTHS = (10, 18, 32, 58, 104, 187, 337)
TAG = "Unet3Dv2-10.7.2-1.8"
# The recipe in as few words as it has: conform, scale, crop; load each fold with the framework,
# predict, average; mask. The brain mask is given to both sides, since its network is not to be had.
SCRIPT = """
import sys, nibabel, numpy, tensorflow, keras
from nibabel.processing import conform
from scipy import ndimage
out, folds, scans = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
shape, xs, masks, names = (160, 214, 176), [], [], []
for scan in scans:
    image, mask = nibabel.load(scan), nibabel.load(scan.replace("_scan", "_mask"))
    image = nibabel.Nifti1Image(image.get_fdata(dtype="float32"), image.affine)
    x = conform(image, order=3).get_fdata(dtype="float32")
    inside = conform(mask, order=0).get_fdata() > 0.5
    start = numpy.ceil(ndimage.center_of_mass(inside)).astype(int) - numpy.array(shape) // 2
    top = numpy.flatnonzero(inside.any((0, 1)))[-1]
    if start[2] + shape[2] <= top:
        start[2] = top + 5 - shape[2]
    pad = [(256, 256)] * 3
    box = tuple(slice(256 + a, 256 + a + n) for a, n in zip(start, shape))
    x, inside = numpy.pad(x, pad)[box], numpy.pad(inside, pad)[box]
    x = numpy.maximum(numpy.nan_to_num(x), 0)
    x = numpy.minimum(x / numpy.percentile(x[inside], 99), 1.3) / 1.3
    xs.append(x.astype("float32")), masks.append(inside), names.append(scan.split("/")[-1])
total = [0] * len(xs)
for fold in folds:
    model = keras.models.load_model(fold, compile=False)
    for at, x in enumerate(xs):
        total[at] = total[at] + model.predict(x[None, ..., None], verbose=0)[0, ..., 0]
for mean, mask, name in zip(total, masks, names):
    numpy.save(out + "/" + name, mean / len(folds))
    numpy.save(out + "/masked-" + name, mean / len(folds) * mask)
"""
MATRICES = """
import os, time, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(2)
a = tf.random.normal((4000, 4000)); tf.matmul(a, a).numpy(); best = 9e9
for _ in range(5):
    t = time.perf_counter(); tf.matmul(a, a).numpy(); best = min(best, time.perf_counter() - t)
print(2 * 4000**3 / best / 1e9)
"""


def main() -> None:
    """Make networks and inputs, run both, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("bids_dir", type=Path, help="the scans to read")
    parser.add_argument("--name", required=True, help="of the file of results")
    parser.add_argument("--repeats", type=int, default=2, help="of each kind of run (default: 2)")
    parser.add_argument("--brief", action="store_true", help="script as published and app alone")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as held:
        scratch = Path(held)
        run_python("networks", scratch)
        inputs = prepare(asked.bids_dir, scratch)
        ask_app = partial(app, asked.bids_dir, scratch, len(inputs))
        kinds = {
            "script, a process per scan": partial(script, scratch, inputs, together=False),
            "app": ask_app,
            "app, with pages": partial(ask_app, "--report", "static"),
            "app, two processes": partial(ask_app, threads=1),
            "script, one process": partial(script, scratch, inputs, together=True),
        }
        kinds = dict(list(kinds.items())[: 2 if asked.brief else None])
        figures: dict[str, list] = {name: [] for name in kinds}
        for _ in range(asked.repeats):
            for name, run in kinds.items():
                figures[name].append(run())
        rate = float(subprocess.check_output([sys.executable, "-c", MATRICES], stderr=-3))
        said = {
            "scans": len(inputs),
            "folds": 3,
            "runs": figures,
            "best": {name: best(runs) for name, runs in figures.items()},
            "largest difference of a probability": difference(asked.bids_dir, scratch, inputs),
            "gflop of one fold, layer by layer": round(work() / 1e9, 1),
            "gflop per second of a matrix product": round(rate, 1),
            "software": software(),
            "machine": machine(),
        }
    said["ratios to the app"] = {
        name: {key: round(one[key] / said["best"]["app"][key], 2) for key in one}
        for name, one in said["best"].items()
    }
    path = RESULTS / f"shiva-{asked.name}.json"
    path.write_text(json.dumps(said, indent=2) + "\n")
    print(json.dumps({key: said[key] for key in said if key != "runs"}, indent=2))


def run_python(what: str, scratch: Path) -> None:
    """A part of this file in a process of its own, so that its memory is not ours."""
    code = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'benchmarks')]!r}; import shiva; "
    code += f"from pathlib import Path; shiva.{what}(Path({str(scratch)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def networks(scratch: Path) -> None:
    """Three networks of the published size: for the script as Keras saves them, and installed."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras  # noqa: PLC0415

    from bids_cmb.networks.architectures.shiva import shiva  # noqa: PLC0415
    from bids_cmb.networks.external.shiva import compute_md5, install_models  # noqa: PLC0415

    files = []
    for fold in range(3):
        rng = np.random.default_rng(fold)
        logits = shiva(widths=WIDTHS)
        answer = keras.layers.Activation("sigmoid", name="chance")(logits.output)
        model = keras.Model(logits.input, answer)
        for one in model.variables:
            one.assign(by_chance(rng, one))
        model.save(scratch / f"fold_{fold}.keras")
        path = scratch / f"fold_{fold}.h5"
        model.save(path)
        files.append({"name": path.name, "md5": compute_md5(path)})
    about = {"version": "full size", "architecture": TAG, "files": files}
    (scratch / "model_info.json").write_text(json.dumps(about))
    install_models(
        [scratch / one["name"] for one in files] + [scratch / "model_info.json"],
        scratch / "models",
        print,
    )


def by_chance(rng: np.random.Generator, one) -> np.ndarray:
    """Numbers that let a signal through: its spread stays about the same from layer to layer."""
    if one.path.endswith(("gamma", "moving_variance")):
        return rng.uniform(0.8, 1.2, one.shape)
    if one.path.endswith("kernel"):
        return rng.normal(0, np.sqrt(2 / np.prod(one.shape[:-1])), one.shape)
    return rng.normal(0, 0.2, one.shape)


def prepare(bids_dir: Path, scratch: Path) -> list[Path]:
    """The scans and their brain masks, for the script and for the app."""
    inputs = []
    for scan in find_scans(bids_dir, Query()).scans:
        image, _ = load_echoes((scan.path, *scan.more_echoes))
        brain = extract_brain_mask(image).mask
        path = scratch / "inputs" / f"{scan.name}_scan.nii.gz"
        path.parent.mkdir(exist_ok=True)
        save(image, path, dtype=np.float32)
        save(brain, path.with_name(path.name.replace("_scan", "_mask")), dtype=np.uint8)
        given = scratch / "masks" / f"sub-{dict(scan.entities)['sub']}" / "anat"
        given.mkdir(parents=True)
        save(brain, given / f"{scan.name.split('_')[0]}_desc-brain_mask.nii.gz", dtype=np.uint8)
        inputs.append(path)
    return inputs


def environment() -> dict[str, str]:
    """Ours, with both ways of TensorFlow to be quiet."""
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}


def measured(command: list) -> dict[str, float]:
    """Seconds of a command, and GB of its largest process."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command], env=environment(), stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with {status}")
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "gb": round(used.ru_maxrss / 2**20, 2),
    }


def script(scratch: Path, inputs: list[Path], *, together: bool) -> dict[str, float]:
    """The recipe: all scans in one process, or one process for each."""
    folds = ",".join(str(scratch / f"fold_{fold}.keras") for fold in range(3))
    out = scratch / "script"
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", SCRIPT, out, folds]
    runs = [inputs] if together else [[path] for path in inputs]
    each = [measured([*command, *paths]) for paths in runs]
    return {
        "seconds": round(sum(one["seconds"] for one in each), 1),
        "gb": max(one["gb"] for one in each),
    }


def app(
    bids_dir: Path, scratch: Path, scans: int, *flags: str, threads: int = 2
) -> dict[str, float]:
    """The app from the scans to the derivatives, as the script without pages.

    With one thread each, two scans are processed at a time.
    """
    flags = [
        *(flags or ("--report", "none")),
        "--model-dir",
        scratch / "models",
        "--detector",
        "shiva-full-size",
        "--anatomy",
        "none",
    ]
    flags += ["--derivatives", scratch / "masks", "--overwrite", "--validate", "off", "-q"]
    flags += ["--n-cpus", "2", "--omp-nthreads", str(threads)]
    run = [sys.executable, ROOT / "run.py", bids_dir, scratch / "out", "participant", *flags]
    found = measured(run)
    written = len(list((scratch / "out").rglob("*_probseg.nii.gz")))
    if written != scans:
        raise SystemExit(f"{scans} scans must be read; found {written}.")
    return found


def best(runs: list[dict]) -> dict[str, float]:
    """The shortest of the runs, and the smallest."""
    return {key: min(one[key] for one in runs) for key in runs[0]}


def difference(bids_dir: Path, scratch: Path, inputs: list[Path]) -> float:
    """Between script and app, on the scans' own grids within the brain."""
    apart = []
    for scan, path in zip(find_scans(bids_dir, Query()).scans, inputs, strict=True):
        image, _ = load(scan.path)
        mean = np.load(scratch / "script" / f"{path.name}.npy")
        brain = load_labels(path.with_name(path.name.replace("_scan", "_mask")))
        place = preprocess(image, brain, SHIVA).image.affine
        expected = resample_to_scan(Volume(mean, place), image).data
        home = scratch / "out" / f"sub-{dict(scan.entities)['sub']}"
        found = load(next(home.rglob("*_probseg.nii.gz")))[0].data
        apart.append(float(np.abs(found - expected)[found > 0].max()))
    return max(apart)


def work() -> float:
    """Multiplications and additions of one fold, computed layer by layer."""
    from bids_cmb.networks.external.tiled_unet import list_kernels  # noqa: PLC0415

    def voxels(level: int) -> int:
        return int(np.prod([side // 2**level for side in SHIVA.shape]))

    total = 0
    for name, shape in list_kernels(WIDTHS).items():
        level = int(name.split("_")[0].lstrip("downup")) if name[0] in "du" else 0
        total += 2 * int(np.prod(shape)) * voxels(level)
    return total


if __name__ == "__main__":
    main()
