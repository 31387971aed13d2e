"""Compare the app with a script of SHIVA-CMB's recipe: its first network at full size, three folds.

    python -m benchmarks.speed.shiva BIDS_DIR --name real [--repeats N] [--brief]

The weights are random (the real ones may not be passed on), so times and memory are those of the
published size, and probabilities are compared, not judged. Both process the same scans with the
same brain masks on two threads: the script, as published, in a process for each scan, and in one
process that loads each fold once for all; the app from the scans to its derivatives. Runs
alternate. Writes ``benchmarks/results/shiva-NAME.json``; memory is that of the largest process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.measurements import RESULTS, ROOT, make_app_command, measure_command
from bids_cmb.anatomy.scan_anatomy import extract_brain_mask
from bids_cmb.bids.filters import Query
from bids_cmb.bids.selection import find_scans
from bids_cmb.files import write_json
from bids_cmb.imaging.grid import SHIVA
from bids_cmb.imaging.loading import load_echoes
from bids_cmb.imaging.nifti import load, load_labels, save
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.imaging.resampling import resample_to_scan
from bids_cmb.imaging.volume import Volume
from bids_cmb.provenance import machine, software

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
    for number, x in enumerate(xs):
        total[number] = total[number] + model.predict(x[None, ..., None], verbose=0)[0, ..., 0]
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
Figures = dict[str, float]  # seconds of a run, GB of its largest process


@dataclass(frozen=True)
class Bench:
    """What both sides run on.

    Attributes:
        bids_dir: The scans.
        scratch: Temporary folder for networks, inputs and outputs.
        inputs: The scans as the script reads them, in the order of `find_scans`.
    """

    bids_dir: Path
    scratch: Path
    inputs: tuple[Path, ...]


def main() -> None:
    """Make networks and inputs, run both, compare and write."""
    options = make_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        make_networks_apart(scratch)
        bench = Bench(options.bids_dir, scratch, tuple(make_inputs(options.bids_dir, scratch)))
        kinds = {
            "script, a process per scan": partial(run_script, bench, together=False),
            "app": partial(run_app, bench),
            "app, with pages": partial(run_app, bench, report="static"),
            "app, two processes": partial(run_app, bench, threads=1),
            "script, one process": partial(run_script, bench, together=True),
        }
        kinds = dict(list(kinds.items())[: 2 if options.brief else None])
        runs: dict[str, list[Figures]] = {name: [] for name in kinds}
        for _ in range(options.repeats):
            for name, run in kinds.items():
                runs[name].append(run())
        rate = float(
            subprocess.check_output([sys.executable, "-c", MATRICES], stderr=subprocess.DEVNULL)
        )
        best = {name: find_best(each) for name, each in runs.items()}
        report = {
            "scans": len(bench.inputs),
            "folds": 3,
            "runs": runs,
            "best": best,
            "largest difference of a probability": measure_difference(bench),
            "gflop of one fold, layer by layer": round(count_operations() / 1e9, 1),
            "gflop per second of a matrix product": round(rate, 1),
            "software": software(),
            "machine": machine(),
            "ratios to the app": {
                name: {key: round(figures[key] / best["app"][key], 2) for key in figures}
                for name, figures in best.items()
            },
        }
    write_json(RESULTS / f"shiva-{options.name}.json", report)
    print(json.dumps({key: report[key] for key in report if key != "runs"}, indent=2))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bids_dir", type=Path, help="the scans to process")
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--repeats", type=int, default=2, help="of each kind of run (default: 2)")
    parser.add_argument("--brief", action="store_true", help="script as published and app alone")
    return parser


def make_networks_apart(scratch: Path) -> None:
    """Make the networks in a process of their own, so that its memory is not ours."""
    code = "import sys; from pathlib import Path; from benchmarks.speed import shiva; "
    code += "shiva.make_networks(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(scratch)]
    subprocess.run(command, check=True, cwd=ROOT, env=make_environment())


def make_networks(scratch: Path) -> None:
    """Make three networks of the published size: as Keras saves them, and installed for the app."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras  # noqa: PLC0415

    from bids_cmb.networks.architectures.shiva import shiva  # noqa: PLC0415
    from bids_cmb.networks.external.shiva import compute_md5, install_models  # noqa: PLC0415

    files = []
    for fold in range(3):
        rng = np.random.default_rng(fold)
        logits = shiva(widths=WIDTHS)
        output = keras.layers.Activation("sigmoid", name="chance")(logits.output)
        model = keras.Model(logits.input, output)
        for variable in model.variables:
            variable.assign(draw_weights(rng, variable))
        model.save(scratch / f"fold_{fold}.keras")
        path = scratch / f"fold_{fold}.h5"
        model.save(path)
        files.append({"name": path.name, "md5": compute_md5(path)})
    about = {"version": "full size", "architecture": TAG, "files": files}
    (scratch / "model_info.json").write_text(json.dumps(about))
    sources = [scratch / name for name in (*(file["name"] for file in files), "model_info.json")]
    install_models(sources, scratch / "models", print)


def draw_weights(rng: np.random.Generator, variable) -> np.ndarray:
    """Draw weights that let a signal through: its spread stays about the same between layers."""
    if variable.path.endswith(("gamma", "moving_variance")):
        return rng.uniform(0.8, 1.2, variable.shape)
    if variable.path.endswith("kernel"):
        return rng.normal(0, np.sqrt(2 / np.prod(variable.shape[:-1])), variable.shape)
    return rng.normal(0, 0.2, variable.shape)


def make_inputs(bids_dir: Path, scratch: Path) -> list[Path]:
    """Write the scans and their brain masks, for the script and for the app."""
    inputs = []
    for scan in find_scans(bids_dir, Query()).scans:
        image, _ = load_echoes((scan.path, *scan.more_echoes))
        brain = extract_brain_mask(image).mask
        path = scratch / "inputs" / f"{scan.name}_scan.nii.gz"
        path.parent.mkdir(exist_ok=True)
        save(image, path, dtype=np.float32)
        save(brain, path.with_name(path.name.replace("_scan", "_mask")), dtype=np.uint8)
        masks = scratch / "masks" / f"sub-{dict(scan.entities)['sub']}" / "anat"
        masks.mkdir(parents=True)
        save(brain, masks / f"{scan.name.split('_')[0]}_desc-brain_mask.nii.gz", dtype=np.uint8)
        inputs.append(path)
    return inputs


def make_environment() -> dict[str, str]:
    """Make an environment in which TensorFlow is Keras' backend and silent."""
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}


def run_command(command: list) -> Figures:
    """Run a command, and measure seconds and GB of its largest process."""
    cost = measure_command(command, make_environment())
    return {"seconds": round(cost.seconds, 1), "gb": round(cost.peak_mb / 1024, 2)}


def run_script(bench: Bench, *, together: bool) -> Figures:
    """Run the recipe: all scans in one process, or one process for each."""
    folds = ",".join(str(bench.scratch / f"fold_{fold}.keras") for fold in range(3))
    output = bench.scratch / "script"
    output.mkdir(exist_ok=True)
    groups = [bench.inputs] if together else [(path,) for path in bench.inputs]
    runs = [run_command([sys.executable, "-c", SCRIPT, output, folds, *paths]) for paths in groups]
    return {
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        "gb": max(run["gb"] for run in runs),
    }


def run_app(bench: Bench, *, report: str = "none", threads: int = 2) -> Figures:
    """Run the app from the scans to the derivatives, as the script without pages.

    With one thread each, two scans are processed at a time.
    """
    output = bench.scratch / "out"
    options = ["--model-dir", bench.scratch / "models", "--detector", "shiva-full-size"]
    options += ["--anatomy", "none", "--report", report, "--overwrite", "--validate", "off", "-q"]
    options += ["--derivatives", bench.scratch / "masks"]
    options += ["--n-cpus", "2", "--omp-nthreads", threads]
    run = run_command(make_app_command(bench.bids_dir, output, "participant", *options))
    written = len(list(output.rglob("*_probseg.nii.gz")))
    if written != len(bench.inputs):
        raise SystemExit(f"{len(bench.inputs)} scans must be processed; found {written}.")
    return run


def find_best(runs: list[Figures]) -> Figures:
    """Find the shortest of the runs, and the smallest."""
    return {key: min(run[key] for run in runs) for key in runs[0]}


def measure_difference(bench: Bench) -> float:
    """Measure the largest difference of script and app, on the scans' grids within the brain."""
    differences = []
    for scan, path in zip(find_scans(bench.bids_dir, Query()).scans, bench.inputs, strict=True):
        image, _ = load(scan.path)
        mean = np.load(bench.scratch / "script" / f"{path.name}.npy")
        brain = load_labels(path.with_name(path.name.replace("_scan", "_mask")))
        affine = preprocess(image, brain, SHIVA).image.affine
        expected = resample_to_scan(Volume(mean, affine), image).data
        folder = bench.scratch / "out" / f"sub-{dict(scan.entities)['sub']}"
        probability = load(next(folder.rglob("*_probseg.nii.gz")))[0].data
        differences.append(float(np.abs(probability - expected)[probability > 0].max()))
    return max(differences)


def count_operations() -> int:
    """Count the multiplications and additions of one fold, layer by layer."""
    from bids_cmb.networks.external.tiled_unet import list_kernels  # noqa: PLC0415

    total = 0
    for name, shape in list_kernels(WIDTHS).items():
        level = int(name.split("_")[0].lstrip("downup")) if name[0] in "du" else 0
        voxels = int(np.prod([side // 2**level for side in SHIVA.shape]))
        total += 2 * int(np.prod(shape)) * voxels
    return total


if __name__ == "__main__":
    main()
