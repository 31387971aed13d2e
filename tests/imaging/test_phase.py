"""A phase image: which one it is, what its numbers mean, and which way it turns."""

import json
from dataclasses import replace

import numpy as np
import pytest
from grids import OBLIQUE
from networks import write_member
from nibabel.affines import from_matvec
from scipy import ndimage

from bids_cmb.bids.filters import Query
from bids_cmb.bids.selection import find_scans
from bids_cmb.config import Config
from bids_cmb.imaging import nifti
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.phase import UndecidedError, infer_turn, load_phase_map, resample_phase
from bids_cmb.imaging.phase_files import find_phase_image
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.user_models import make_card
from bids_cmb.simulation import dephasing, physics, slice_sampling
from bids_cmb.training.recipe import Sources
from bids_cmb.training.scan_files import find_training_scans
from bids_cmb.training.scan_loading import (
    load_phase_on_grid,
    load_scan_and_brain,
    load_training_scan,
)
from bids_cmb.training.tasks import box_detection as lesson
from bids_cmb.training.train import build_network, read_recipe
from bids_cmb.workflow import inputs
from bids_cmb.workflow.inputs import compute_fingerprint, resolve_inputs
from bids_cmb.workflow.scan import is_complete, process_scan

RAD_PER_PPM = physics.phase_per_ppm(field_t=3, echo_time_s=0.02)
SHAPE = (112, 112, 32)


# Which one


@pytest.mark.parametrize(
    ("scan", "others", "expected"),
    [
        ("T2starw", ["part-phase_T2starw"], "part-phase_T2starw"),
        ("part-mag_T2starw", ["part-phase_T2starw"], "part-phase_T2starw"),
        ("run-1_T2starw", ["run-01_part-phase_T2starw"], "run-01_part-phase_T2starw"),
        ("run-1_T2starw", ["run-2_part-phase_T2starw"], None),
        ("acq-a_T2starw", ["part-phase_T2starw", "acq-b_part-phase_T2starw"], None),
        ("echo-2_MEGRE", ["echo-1_part-phase_MEGRE", "echo-2_part-phase_MEGRE"],
         "echo-2_part-phase_MEGRE"),
        ("T2starw", ["part-phase_GRE"], None),
        ("swi", ["part-phase_GRE"], "part-phase_GRE"),
        ("swi", ["part-phase_T2starw", "part-phase_swi"], "part-phase_swi"),
        ("swi", ["part-phase_bold"], None),
        # UK Biobank, as datalad-ukbiobank names it
        ("part-mag_echo-1_rec-norm_GRE",
         ["part-phase_echo-1_GRE", "part-phase_echo-2_GRE", "part-phase_coil-01_echo-1_GRE"],
         "part-phase_echo-1_GRE"),
        ("acq-swi_T2starw", ["acq-phase_T2starw"], "acq-phase_T2starw"),
        ("swi", ["acq-swiPha_swi"], "acq-swiPha_swi"),
        ("T2starw", ["rec-filteredphase_T2starw"], "rec-filteredphase_T2starw"),
        ("T2starw", ["rec-filteredphase_T2starw", "part-phase_T2starw"], "part-phase_T2starw"),
        ("T2starw", ["part-real_T2starw", "acq-phases_T2starw", "rec-phase_T1w"], None),
    ],
)  # fmt: skip
def test_the_phase_has_the_name_of_the_scan_but_for_what_makes_it_phase(
    tmp_path, scan, others, expected
):
    anat = tmp_path / "sub-01" / "anat"
    anat.mkdir(parents=True)
    for name in (scan, *others):
        (anat / f"sub-01_{name}.nii.gz").touch()
    found = find_phase_image(anat / f"sub-01_{scan}.nii.gz")
    assert found.path == (anat / f"sub-01_{expected}.nii.gz" if expected else None)
    assert not found.note


def test_of_two_that_fit_alike_none_is_taken_unless_the_echo_time_tells(tmp_path):
    anat = tmp_path / "sub-01" / "anat"
    anat.mkdir(parents=True)
    for name, ms in (("swi", 20), ("part-phase_echo-1_GRE", 10), ("part-phase_echo-2_GRE", 20)):
        (anat / f"sub-01_{name}.nii.gz").touch()
        (anat / f"sub-01_{name}.json").write_text(json.dumps({"EchoTime": ms / 1000}))
    scan = anat / "sub-01_swi.nii.gz"
    assert find_phase_image(scan).path.name == "sub-01_part-phase_echo-2_GRE.nii.gz"
    (anat / "sub-01_swi.json").unlink()
    found = find_phase_image(scan)
    assert found.path is None
    assert found.note == (
        "sub-01_swi.nii.gz: sub-01_part-phase_echo-1_GRE.nii.gz and "
        "sub-01_part-phase_echo-2_GRE.nii.gz fit equally well as its phase; none was taken."
    )


def test_a_label_does_not_give_the_phase_of_one_scan_to_another(tmp_path):
    anat = tmp_path / "sub-01" / "anat"
    anat.mkdir(parents=True)
    for name in ("acq-a", "acq-b", "acq-phase", "acq-minip"):
        (anat / f"sub-01_{name}_T2starw.nii.gz").touch()
    found = find_phase_image(anat / "sub-01_acq-a_T2starw.nii.gz")
    assert found.path is None
    assert "may be the phase of sub-01_acq-b_T2starw.nii.gz too" in found.note
    (anat / "sub-01_acq-b_T2starw.nii.gz").unlink()
    assert find_phase_image(anat / "sub-01_acq-a_T2starw.nii.gz").path.name.startswith(
        "sub-01_acq-phase"
    )


def test_one_name_packed_and_plain_is_one_image(tmp_path):
    anat = tmp_path / "sub-01" / "anat"
    anat.mkdir(parents=True)
    for name in ("swi.nii", "part-phase_swi.nii", "part-phase_swi.nii.gz"):
        (anat / f"sub-01_{name}").touch()
    assert find_phase_image(anat / "sub-01_swi.nii").path.name == "sub-01_part-phase_swi.nii.gz"


# What it says


@pytest.fixture(scope="module")
def seen():
    """A piece of brain in air, oblique: veins along B0, iron and calcium; phase in rad.

    Returns:
        Magnitude, phase counted forwards, brain, world positions of iron and of calcium.
    """
    rng = np.random.default_rng(5)
    sampling = slice_sampling.Sampling(OBLIQUE, SHAPE, 2.0, "3D")
    grid = Volume(np.zeros(SHAPE), OBLIQUE)
    inside = np.zeros(SHAPE, np.float32)
    inside[8:-8, 8:-8, 2:-2] = 1
    signal = inside.astype(np.complex64)
    veins = [
        grid.world(np.array([x, y, 16])) + [[0, 0, h] for h in np.linspace(-30, 30, 40)]
        for x, y in ((34, 36), (74, 38), (40, 76), (78, 74))
    ]
    balls = {"iron": grid.world(np.array([56, 56, 12])), "lime": grid.world(np.array([54, 58, 22]))}
    known = {"rad_per_ppm": RAD_PER_PPM, "decay": 0.0}
    for points, radius, chi, water in (
        *((line, 0.5, 0.45, 0.6) for line in veins),
        (balls["iron"][None], 0.8, 1.5, 0.0),
        (balls["lime"][None], 0.8, -1.5, 0.0),
    ):
        radii = np.full(len(points), radius)
        voxels, factor = dephasing.perturb_signal(
            points, radii, sampling, chi=chi, water=water, **known
        )
        signal.reshape(-1)[voxels] *= factor
    noise = 0.02 * rng.standard_normal((2, *SHAPE))
    signal = 300 * (signal + noise[0] + 1j * noise[1])
    image = Volume(np.abs(signal).astype(np.float32), OBLIQUE)
    return image, np.angle(signal), Volume(inside > 0, OBLIQUE), balls


@pytest.fixture
def stored(tmp_path):
    """A maker of phase images on disk."""

    def make(data, units="rad", affine=OBLIQUE, dtype=np.float32):
        path = tmp_path / "sub-01" / "anat" / "sub-01_part-phase_T2starw.nii.gz"
        nifti.save(Volume(data, affine), path, dtype=dtype)
        about = {} if units is None else {"Units": units}
        path.with_name("sub-01_part-phase_T2starw.json").write_text(json.dumps(about))
        return path

    return make


def shown_at(found, place):
    """The mean of the map in the 3 x 3 pixels about a place, weighed like the eye does."""
    x, y, z = np.rint(found.index(place)).astype(int)
    return found.data[x - 1 : x + 2, y - 1 : y + 2, z].mean()


@pytest.mark.parametrize("vendor", [1, -1])
def test_iron_is_on_the_dark_side_and_lime_on_the_bright_whatever_the_vendor(seen, stored, vendor):
    image, phase, brain, balls = seen
    found = load_phase_map(stored(vendor * phase), image, brain)
    assert 1 - shown_at(found, balls["iron"]) < 0.45
    assert 1 - shown_at(found, balls["lime"]) > 0.55
    assert np.median(found.data[brain.data]) == pytest.approx(0.5, abs=0.01)
    assert found.data.dtype == np.float32
    assert 0 <= found.data.min() <= found.data.max() <= 1


def test_both_vendors_give_one_map(seen, stored):
    image, phase, brain, _ = seen
    one, other = (load_phase_map(stored(sign * phase), image, brain) for sign in (1, -1))
    np.testing.assert_allclose(one.data, other.data, atol=1e-4)


def test_slow_drifts_of_many_turns_and_their_wraps_do_not_matter(seen, stored):
    image, phase, brain, _ = seen
    x, y, z = np.indices(SHAPE) / np.array(SHAPE)[:, None, None, None]
    # Over 56 mm; seven turns over a head
    drift = 4 * np.pi * x + np.pi * (y - 0.3) ** 2 + 5 * np.pi * z
    wrapped = np.angle(np.exp(1j * (phase + drift)))
    assert np.abs(np.diff(wrapped[12:100, 56, 16])).max() > 6  # there are wraps
    still, drifting = (load_phase_map(stored(one), image, brain) for one in (phase, wrapped))
    deep = ndimage.minimum_filter(brain.data, (25, 25, 1))  # no air within two widths of the filter
    apart = np.abs(still.data - drifting.data)[deep]
    assert np.percentile(apart, 99) < 0.03
    assert apart.mean() < 0.005
    unwrapped = load_phase_map(stored(phase + drift), image, brain)  # so is unwrapped phase
    np.testing.assert_allclose(unwrapped.data[deep], drifting.data[deep], atol=1e-3)


@pytest.mark.parametrize(
    ("units", "unit", "start", "dtype"),
    [
        ("arbitrary", 4096 / np.pi, 0, np.int16),  # -4096 to 4096, Siemens
        (None, 2048 / np.pi, 2048, np.int16),  # 0 to 4095
        ("arbitrary", 1000, 0, np.int16),  # GE
        ("arbitrary", 180 / np.pi, 0, np.float32),
        ("arbitrary", 1, 0, np.float32),
        ("rad", 1, np.pi, np.float32),  # 0 to 2 pi
        (None, 777.7, 31, np.float32),  # a unit that nobody knows: what it spans is a turn
    ],
)
def test_the_unit_of_phase_does_not_matter(seen, stored, units, unit, start, dtype):
    image, phase, brain, _ = seen
    phase = np.where(np.arange(SHAPE[0])[:, None, None] == 0, np.pi * (1 - 2e-6), phase)
    plain = load_phase_map(stored(phase), image, brain)
    data = phase * unit + start
    other = stored(np.rint(data) if dtype == np.int16 else data, units, dtype=dtype)
    found = load_phase_map(other, image, brain).data[brain.data]
    np.testing.assert_allclose(found, plain.data[brain.data], atol=0.003)


def test_a_phase_image_on_another_grid_is_refused(seen, stored):
    image, phase, brain, _ = seen
    with pytest.raises(ValueError, match=r"phase_T2starw.nii.gz: .*112 × 112 × 32.*found 112 × 11"):
        load_phase_map(stored(phase[:, :-1]), image, brain)
    moved = OBLIQUE @ from_matvec(np.eye(3), [3, 0, 0])
    with pytest.raises(ValueError, match=r"found 112 × 112 × 32, their corners up to 1.5 mm"):
        load_phase_map(stored(phase, affine=moved), image, brain)
    rounded = OBLIQUE + 1e-4
    assert load_phase_map(stored(phase, affine=rounded), image, brain).shape == SHAPE


def test_what_can_be_no_phase_is_refused(seen, rng):
    _, phase, brain, _ = seen
    inside = brain.data
    with pytest.raises(ValueError, match=r"within ±200; found -4096 to 4096"):
        infer_turn(np.linspace(-4096, 4096, phase.size).reshape(SHAPE), "rad", inside)
    with pytest.raises(ValueError, match="16 values or more in the brain; found 2"):
        infer_turn(inside & (phase > 0), "arbitrary", inside)
    faint = np.where(inside, rng.uniform(0, 1e-3, SHAPE), phase)
    with pytest.raises(ValueError, match=r"vary by 0.005 of a turn in the brain; found 0.000 of"):
        infer_turn(faint, "rad", inside)


def test_phase_that_tells_no_direction_is_refused(seen, stored, rng):
    image, _, brain, _ = seen
    with pytest.raises(UndecidedError, match="must agree on which way phase turns; found"):
        load_phase_map(stored(rng.uniform(-np.pi, np.pi, SHAPE)), image, brain)
    thin = Volume(np.zeros(SHAPE, bool), OBLIQUE)
    thin.data[50:60, 50:60, 10:20] = True
    with pytest.raises(UndecidedError, match="6 mm deep; found no such place"):
        load_phase_map(stored(rng.uniform(-np.pi, np.pi, SHAPE)), image, thin)


def test_on_the_grid_of_a_network_the_map_lies_where_the_image_lies(seen, stored):
    image, phase, brain, balls = seen
    grid = Grid.from_card(read_recipe("cascade-boxes-phase").grid)
    found = load_phase_map(stored(phase), image, brain)
    fed = preprocess(image, brain, grid)
    shown = Volume(resample_phase(found, brain, grid), fed.image.affine)
    assert shown.shape == fed.image.shape
    assert shown_at(shown, balls["iron"]) > 0.55
    assert shown_at(shown, balls["lime"]) < 0.45
    outside = ndimage.distance_transform_edt(~fed.brain.data, fed.image.spacing) > 3.1
    assert (shown.data[outside] == 0.5).all()


# In training


@pytest.fixture
def phased(lessons, stored, seen):
    """A dataset with the truth of two lessons; the first is that piece of brain, with phase."""

    def make(subjects=2):
        root = lessons(subjects)
        image, phase, brain, _ = seen
        anat = root / "sub-01" / "anat"
        nifti.save(image, anat / "sub-01_T2starw.nii.gz")
        truth = root / "derivatives/truth/sub-01/anat/sub-01_space-orig"
        labels = np.zeros(SHAPE, np.uint16)
        labels[54:59, 54:59, 12] = 1
        for name, data in (
            ("seg-CMB_desc-truth_dseg", labels),
            ("label-brain_desc-truth_mask", brain.data),
        ):
            path = truth.with_name(f"{truth.name}_{name}.nii.gz")
            nifti.save(Volume(data, OBLIQUE), path, dtype=np.uint16)
        mask = root / "masks/sub-01/anat/sub-01_space-orig_desc-brain_mask.nii.gz"
        nifti.save(brain, mask, dtype=np.uint8)
        assert stored(phase).parent == anat
        return root

    return make


def test_a_case_has_its_phase_only_if_that_is_asked_for(phased):
    grid = Grid.from_card(read_recipe("cascade-boxes-phase").grid)
    first, second = find_training_scans(phased())
    assert (first.phase.name, second.phase) == ("sub-01_part-phase_T2starw.nii.gz", None)
    assert load_training_scan(first, grid).phase is None
    assert load_training_scan(second, grid, with_phase=True).phase is None
    case = load_training_scan(first, grid, with_phase=True)
    assert (case.phase.dtype, case.phase.shape) == (np.float16, case.image.shape)
    expected = load_phase_on_grid(first, *load_scan_and_brain(first), grid)
    np.testing.assert_allclose(case.phase, expected, atol=1e-3)


def test_some_patches_are_shown_without_their_phase(phased):
    recipe = read_recipe("cascade-boxes-phase")
    recipe = replace(recipe, batch=60, drawing={**recipe.drawing, "shares": {"lesion": 1}})
    teach, told = lesson.TASK.make_batches(recipe, Sources(find_training_scans(phased(1))), 1)
    assert told.endswith("1 of them with phase")
    images, _ = teach(np.random.default_rng(1))
    assert images.shape == (60, 96, 96, 3)
    blank = (images[..., 2] == 0.5).all(axis=(1, 2))
    assert 8 <= blank.sum() <= 30  # three of ten
    assert np.percentile(images[~blank][..., 2], 99.9) > 0.6
    all_blind = replace(recipe, drawing={**recipe.drawing, "blind": 1.0})
    teach, _ = lesson.TASK.make_batches(all_blind, Sources(find_training_scans(phased(1))), 1)
    assert (teach(np.random.default_rng(1))[0][..., 2] == 0.5).all()


def test_phase_turns_with_the_slice_it_belongs_to(phased):
    grid = Grid.from_card(read_recipe("cascade-boxes-phase").grid)
    case = load_training_scan(find_training_scans(phased(1))[0], grid, with_phase=True)
    dark = replace(case, phase=(case.image < 0.6).astype(np.float16))
    known = {id(dark): lesson.find_slice_boxes(dark, grid.spacing[0])}
    drawing = lesson.make_patch_sampling({"shape": [48, 48, 3], "shares": {"lesion": 1}})
    for seed in range(6):
        rng = np.random.default_rng(seed)
        image, _ = lesson.sample_patch(known, drawing, rng, inputs=3, most=4, blind=0)
        alike = np.corrcoef(image[..., 0].ravel(), image[..., 2].ravel())[0, 1]
        assert alike > 0.7  # 1 - phase is dark where the image is, wherever that came to lie


def test_what_is_drawn_without_phase_is_what_it_always_was(phased):
    """Two channels: a phase image beside the scan changes no batch."""
    recipe = read_recipe("cascade-boxes")
    root = phased(1)
    teach, told = lesson.TASK.make_batches(recipe, Sources(find_training_scans(root)), 1)
    before = teach(np.random.default_rng(1))[0]
    next((root / "sub-01/anat").glob("*part-phase*.nii.gz")).unlink()
    teach, again = lesson.TASK.make_batches(recipe, Sources(find_training_scans(root)), 1)
    np.testing.assert_array_equal(teach(np.random.default_rng(1))[0], before)
    assert told == again
    assert "phase" not in told


# In the app


@pytest.fixture
def mine(tmp_path):
    """A folder with a cascade of one's own, by chance, whose boxes take phase."""
    import keras  # noqa: PLC0415

    recipe = read_recipe("cascade-boxes-phase")
    small = {"stages": [[4], [6], [8]], "head": [8, 8], "passed": 3, "start": 0}
    recipe = replace(recipe, name="x", arguments={**recipe.arguments, **small})
    keras.utils.set_random_seed(1)
    out = tmp_path / "out"
    arguments = {name: value for name, value in recipe.arguments.items() if name != "start"}
    said = write_member(
        build_network(recipe), out / "x.npz", "yolo", arguments, name="x", grid=recipe.grid
    )
    (out / "x.json").write_text(json.dumps(said))
    make_card("mine", [("boxes", out / "x.json")], tmp_path / "models", like="cascade")
    card = tmp_path / "models" / "mine.json"
    content = json.loads(card.read_text())
    content["parameters"]["most"] = 40  # such a network draws boxes everywhere
    card.write_text(json.dumps(content))
    return tmp_path / "models"


def find_scan(root, models, name, detector="mine"):
    """The first scan, and how it is read."""
    config = Config(
        root, root.parent / name, ("participant",), detector=(detector,), model_dir=models,
        anatomy="none", report="none", threshold=0.01, derivatives=(root / "masks",),
    )  # fmt: skip
    return find_scans(root, Query(participants=("01",))).scans[0], config


def run(root, models, name, detector="mine"):
    """Read the first scan; its probability map, its marker and its notes."""
    scan, config = find_scan(root, models, name, detector)
    summary = process_scan(scan, config)
    anat = config.output_dir / "sub-01" / "anat"
    said = json.loads(next(anat.glob("*_label-CMB_*_mask.json")).read_text())
    return next(anat.glob("*probseg.nii.gz")).read_bytes(), said, summary.notes, (scan, config)


def test_a_network_that_takes_phase_is_shown_it_and_the_result_says_so(phased, mine, stored, seen):
    root = phased(1)
    image = root / "sub-01/anat/sub-01_part-phase_T2starw.nii.gz"
    shown, said, notes, (scan, config) = run(root, mine, "with")
    assert "were shown sub-01_part-phase_T2starw.nii.gz" in " ".join(notes)
    assert said["Sources"][-1] == "bids:raw:sub-01/anat/sub-01_part-phase_T2starw.nii.gz"
    assert said["Provenance"]["Phase"] == image.name
    assert image in [path for _, path in resolve_inputs(scan, config).roles]
    assert is_complete(scan, config)
    units = image.with_name("sub-01_part-phase_T2starw.json")
    units.write_text('{"Units": "arbitrary"}')
    assert not is_complete(scan, config)
    units.write_text('{"Units": "rad"}')

    image.rename(root / "kept.nii.gz")
    assert not is_complete(scan, config)
    without, said, notes, _ = run(root, mine, "without")
    assert without != shown
    assert len(said["Sources"]) == 1
    assert "Phase" not in said["Provenance"]
    assert "no matching phase image. Networks that take phase did without." in notes[-1]

    stored(seen[1][:, :-2])
    spoilt, said, notes, _ = run(root, mine, "spoilt")
    assert spoilt == without
    assert "must lie on the grid of its scan" in notes[-1]
    assert "Microbleeds" in said


def test_a_phase_image_that_was_not_fetched_costs_no_scan(phased, mine):
    root = phased(1)
    image = root / "sub-01/anat/sub-01_part-phase_T2starw.nii.gz"
    image.unlink()
    image.symlink_to("../.git/annex/objects/gone")
    _, said, notes, (scan, config) = run(root, mine, "out")
    assert "Networks that take phase did without." in notes[-1]
    assert not any("part-phase" in one["Path"] for one in said["Provenance"]["Input"])
    assert is_complete(scan, config)


def test_combined_echoes_have_no_phase(phased, mine):
    scan, config = find_scan(phased(1), mine, "out")
    echoes = replace(scan, more_echoes=(scan.path,))
    assert "combined echoes have no phase" in resolve_inputs(echoes, config).phase.note


def test_the_cascade_that_ships_does_not_even_look_for_phase(phased, mine, monkeypatch):
    root = phased(1)
    image = root / "sub-01/anat/sub-01_part-phase_T2starw.nii.gz"

    def never(*_):
        raise AssertionError("phase was looked for")

    monkeypatch.setattr(inputs, "find_phase_image", never)
    shown, said, notes, (scan, config) = run(root, mine, "with", "cascade")
    with_file = compute_fingerprint(resolve_inputs(scan, config), ["x"])
    assert not any("phase" in note for note in notes)
    image.unlink()
    plain, also, _, _ = run(root, mine, "without", "cascade")
    assert shown == plain
    assert (said["Sources"], said["Microbleeds"]) == (also["Sources"], also["Microbleeds"])
    assert said["Provenance"]["Fingerprint"] == also["Provenance"]["Fingerprint"]
    assert with_file == compute_fingerprint(resolve_inputs(scan, config), ["x"])


def test_a_phase_image_is_never_read_as_a_scan(phased):
    found = find_scans(phased(2), Query())
    assert [scan.path.name for scan in found.scans] == [
        "sub-01_T2starw.nii.gz",
        "sub-02_T2starw.nii.gz",
    ]
