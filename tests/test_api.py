"""The Python API: what the page in docs/ shows runs, and bad input gets one sentence."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bids_cmb
from bids_cmb.anatomy import brain_extraction, segmentation
from bids_cmb.detection.ensemble import Probability
from bids_cmb.imaging import nifti
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import Lesion

PAGE = Path(__file__).parent.parent / "docs" / "guide" / "python_api.md"


@pytest.fixture(scope="module")
def scan():
    """A simulated scan of a whole head with its truth: in a window no brain is recognised."""
    return bids_cmb.simulate_scan(5, "alfa-t2star", priors="crowded")


def example():
    """The first block of code on the page."""
    return re.search(r"```python\n(.+?)```", PAGE.read_text("utf-8"), re.DOTALL).group(1)


@pytest.mark.slow
def test_the_example_of_the_page_finds_measures_and_locates(scan, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    nifti.save(scan.scan, tmp_path / "sub-01_T2starw.nii.gz")
    names = {}
    exec(compile(example(), str(PAGE), "exec"), names)
    lesions, labels = names["lesions"], names["labels"]
    assert lesions
    assert len(capsys.readouterr().out.splitlines()) == len(lesions)
    assert labels.data.max() == len(lesions)
    np.testing.assert_allclose(labels.affine, scan.scan.affine, atol=1e-4)
    assert all(lesion.region and lesion.side in ("left", "right", "midline") for lesion in lesions)
    assert {lesion.territory for lesion in lesions} == {"lobar", "deep"}  # lobes need an atlas
    true = np.argwhere(scan.lesions.data > 0)
    hits = [np.linalg.norm(true - lesion.voxel, axis=1).min() < 3 for lesion in lesions]
    assert any(hits)


def test_what_the_network_takes_for_brain_before_the_forehead_is_cut_as_in_the_app(
    scan, monkeypatch
):
    decode = segmentation.decode_anatomy

    def leaking(*arguments):
        anatomy = decode(*arguments)
        inside = anatomy.brain.data.copy()
        places = np.argwhere(inside)
        front = places[:, 1].max()
        [x, _, z] = places[places[:, 1] == front].mean(axis=0).astype(int)
        inside[x - 5 : x + 5, front : front + 10, z - 5 : z + 5] = True  # 20 mm each way
        return replace(anatomy, brain=Volume(inside, anatomy.brain.affine))

    monkeypatch.setattr(brain_extraction, "PLAUSIBLE_ML", (900, 2200))  # it is a large head
    whole = bids_cmb.segment_anatomy(scan.scan).head.brain.data
    monkeypatch.setattr(segmentation, "decode_anatomy", leaking)
    cut = bids_cmb.segment_anatomy(scan.scan).head.brain.data
    leaked = cut & ~whole
    assert leaked.sum() * 8 < 2000  # mm³, of 8000


def test_a_scan_in_which_no_brain_is_recognised_is_refused(blank, rng, monkeypatch):
    def decode(probabilities, *_):
        segmentation._keep_largest(np.zeros(probabilities.shape[:3], bool))

    monkeypatch.setattr(segmentation, "decode_anatomy", decode)
    noise = Volume(rng.uniform(1, 2, blank.shape), blank.affine)
    with pytest.raises(ValueError, match=r"^No brain was found"):
        bids_cmb.segment_anatomy(noise)


def test_the_example_has_ten_lines():
    lines = [line for line in example().splitlines() if line and not line.startswith("from")]
    assert len(lines) <= 10


def test_the_page_names_every_function():
    page = PAGE.read_text("utf-8")
    assert [name for name in bids_cmb.__all__ if f"`{name}(" not in page] == []


def test_lesions_have_what_the_page_promises():
    rows = re.findall(
        r"^\| `(?:measure|locate)_lesions\(.+?\| (.+) \|$", PAGE.read_text("utf-8"), re.M
    )
    promised = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {"centre", "region"} <= promised <= set(dir(Lesion)) | {*Lesion.__dataclass_fields__}


def test_importing_the_package_loads_no_library():
    code = "import bids_cmb, sys; print(sorted({'numpy', 'keras', 'nibabel'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_function_has_a_docstring_and_no_other_name_is_there():
    assert all(getattr(bids_cmb, name).__doc__ for name in bids_cmb.__all__)
    assert set(bids_cmb.__all__) <= set(dir(bids_cmb))
    with pytest.raises(AttributeError, match="no attribute 'detect'"):
        _ = bids_cmb.detect


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"scan\.nii\.gz"):
        bids_cmb.load_image(str(tmp_path / "scan.nii.gz"))


def test_a_mask_on_another_grid_is_refused(blank):
    brain = Volume(np.ones((8, 8, 8), bool), blank.affine)
    with pytest.raises(ValueError, match=r"`brain` must lie on the grid of the scan.*\(8, 8, 8\)"):
        bids_cmb.detect_microbleeds(blank, brain, "radial")


def test_a_detector_that_does_not_exist_is_refused_by_name(blank):
    brain = Volume(np.ones(blank.shape, bool), blank.affine)
    with pytest.raises(ValueError, match="'nobody'"):
        bids_cmb.detect_microbleeds(blank, brain, "nobody")


def test_a_threshold_that_is_no_probability_is_refused(blank):
    brain = Volume(np.ones(blank.shape, bool), blank.affine)
    probability = Probability(Volume(blank.data, blank.affine), ("radial",))
    with pytest.raises(ValueError, match="`threshold` must be above 0 and up to 1; found 50"):
        bids_cmb.measure_lesions(probability, blank, brain, threshold=50)


def test_an_evaluation_of_nothing_is_refused(tmp_path):
    with pytest.raises((ValueError, OSError), match="nowhere"):
        bids_cmb.evaluate(tmp_path / "nowhere", tmp_path / "nowhere")
