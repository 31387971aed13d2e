"""What detectors leave behind, drawn where it lies: the pictures and the scan are the truth."""

import json
from dataclasses import replace

import numpy as np
import pytest
from phantoms import phantom
from PIL import Image
from spots import MIDDLE, SPACING, ball, brain, scan

from bids_cmb.bids.paths import Output, get_figure_stem, locate_figures
from bids_cmb.bids.scan import Scan
from bids_cmb.bids.tables import EVIDENCE_TABLES, read_columns, read_table
from bids_cmb.config import Config
from bids_cmb.detection.ensemble import detect
from bids_cmb.detection.outputs import (
    Box,
    DetectorOutputs,
    GateResponse,
    merge_outputs,
    tabulate_outputs,
)
from bids_cmb.files import read_json
from bids_cmb.imaging import nifti
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.imaging.volume import Volume
from bids_cmb.report.figures import CLOSEUP_PX, CLOSEUP_REACH_MM, draw_figures
from bids_cmb.report.html import write_page
from bids_cmb.report.overlays import locate_in_picture, make_overlays
from bids_cmb.workflow import scan as participant
from bids_cmb.workflow.scan import process_scan, regenerate_report

AWAY = np.array([4.0, -3, 0])  # of the spot from the middle of the scan, mm
WIDE = 5.0


def box(centre, sides=(WIDE, WIDE, WIDE), **more):
    said = {"detector": "boxer", "slices": 2, "confidence": 0.75, "probability": 0.875}
    return Box(centre=tuple(centre), sides=sides, **{**said, **more})


@pytest.fixture
def spotted():
    """An oblique, flipped scan with a dark ball; its labels; where the ball lies, world mm."""
    image = scan((ball(WIDE, AWAY), 0.9))
    labels = Volume((ball(WIDE, AWAY) > 0.5).astype(np.uint16), image.affine)
    return image, labels, image.world(MIDDLE + AWAY / SPACING)


def row(centre, index=1):
    return {"index": index, **dict(zip(("x_mm", "y_mm", "z_mm"), map(float, centre), strict=True))}


def output_in(folder):
    path = folder / "sub-01_T2starw.nii.gz"
    return Output(
        folder / "out", Scan(path, path.name, "anat", "T2starw", (("sub", "01"),), "", {})
    )


def test_a_box_encloses_the_dark_ball_in_all_three_planes(spotted, tmp_path):
    image, labels, centre = spotted
    output, lesion = output_in(tmp_path), row(centre + [1.1, -0.7, 0.4])
    evidence = tabulate_outputs(DetectorOutputs(boxes=(box(centre),)))
    draw_figures(
        output,
        image,
        brain(),
        labels,
        [lesion],
        network_view=("cascade", Grid()),
        evidence=evidence,
    )
    figures, stem = locate_figures(output.folder, "01"), get_figure_stem(output.mask())
    told = read_json(figures / f"{stem}_overview.json")["boxes"]["1"]
    picture = np.asarray(Image.open(figures / f"{stem}_lesion-001.png").convert("L"), float)
    for at, (x, y, width, height) in enumerate(told["drawn"]):
        plane = picture[:CLOSEUP_PX, at * CLOSEUP_PX : (at + 1) * CLOSEUP_PX]  # without the contour
        dark = np.argwhere(plane < np.median(plane) / 2)
        top, left = dark.min(axis=0) / CLOSEUP_PX * 100
        bottom, right = (dark.max(axis=0) + 1) / CLOSEUP_PX * 100
        mm = 100 / (2 * CLOSEUP_REACH_MM)
        assert [x, x + width] == pytest.approx([left, right], abs=0.8 * mm)
        slack = 0.8 * mm if at == 0 else SPACING[2] / 2 * mm  # thick slices
        assert [y, y + height] == pytest.approx([top, bottom], abs=slack)
    assert told["sides"] == [WIDE] * 3


def test_of_two_boxes_the_nearer_is_drawn_and_none_where_none_holds_the_lesion(spotted):
    image, _, centre = spotted
    seen = preprocess(image, brain(), Grid(axes="slices")).image
    nearer, other = box(centre, confidence=0.5, probability=0.5), box(centre + [1, 1, 0])
    rows = tabulate_outputs(DetectorOutputs(boxes=(other, nearer)))
    places = {
        1: locate_in_picture(seen, row(centre)),
        2: locate_in_picture(seen, row(centre + [9, 0, 0])),
    }
    told = make_overlays(seen, places, rows, reach_mm=CLOSEUP_REACH_MM)
    assert list(told["boxes"]) == [1]
    assert told["boxes"][1]["confidence"] == 0.5
    assert "gate" not in told
    assert make_overlays(seen, places, {}, reach_mm=CLOSEUP_REACH_MM) == {}


def test_a_gate_open_in_the_slice_of_a_lesion_stands_there_in_the_strip(spotted):
    image, _, centre = spotted
    seen = preprocess(image, brain(), Grid(axes="slices")).image
    heights = [image.world(np.array([3, 5, k])) for k in range(image.shape[2])]
    chances = [0.9 if k == MIDDLE[2] else 0.1 for k in range(image.shape[2])]
    responses = [
        GateResponse(name, tuple(at), chance, limit)
        for name, limit in (("gater", 0.5), ("other", 0.95))
        for at, chance in zip(heights, chances, strict=True)
    ]
    rows = tabulate_outputs(DetectorOutputs(gate_responses=tuple(responses)))
    places = {7: locate_in_picture(seen, row(centre))}
    strips = make_overlays(seen, places, rows, reach_mm=CLOSEUP_REACH_MM)["gate"]
    assert [one["detector"] for one in strips] == ["gater", "other"]
    assert tuple(strips[0]["ends"]) == ("bottom", "top")
    high = [at for at, _ in strips[0]["slices"]]
    tops = [at[2] for at in heights]
    np.testing.assert_array_equal(np.argsort(high), np.argsort(tops))  # the right end is the top
    (place,) = (at for at, chance in strips[0]["slices"] if chance == 0.9)
    assert strips[0]["lesions"][0][0] == 7
    assert abs(strips[0]["lesions"][0][1] - place) < SPACING[2] / 2


@pytest.fixture
def head(tmp_path, monkeypatch):
    """A phantom on disk, whose detector gives boxes and gate responses; and how to read it."""
    image, _, bleeds = phantom(np.random.default_rng(4), bleeds=6, spacing=(1.0, 1.0, 3.0))
    output = output_in(tmp_path)
    nifti.save(image, output.scan.path)
    middle = np.array(image.shape) / 2
    slices = range(0, image.shape[image.slice_axis], 2)
    places = [np.where(np.arange(3) == image.slice_axis, k, middle) for k in slices]
    left = DetectorOutputs(
        tuple(box(one.centre) for one in bleeds),
        tuple(GateResponse("gater", tuple(image.world(at)), 0.25, 0.125) for at in places),
    )

    def leaving(*asked):
        return replace(detect(*asked), outputs=left)

    monkeypatch.setattr(participant, "detect", leaving)
    config = Config(
        tmp_path, output.folder, ("participant",), detector=("radial",), anatomy="none",
        threshold=0.3,
    )  # fmt: skip
    return output, config, left


def test_what_detectors_leave_behind_is_kept_drawn_and_drawn_again(head):
    output, config, left = head
    process_scan(output.scan, config)
    for kind, count in (("boxes", len(left.boxes)), ("gate", len(left.gate_responses))):
        rows, said = read_table(output.evidence(kind)), read_json(output.evidence(kind, ".json"))
        assert len(rows) == count
        assert list(rows[0]) == list(read_columns(kind))
        assert set(said) == {*read_columns(kind), "Description", "Sources", "SpatialReference"}
        assert output.evidence(kind).name in (output.mask(".json")).read_text()
    first = read_table(output.evidence("boxes"))[0]
    centre = [float(first[axis]) for axis in ("x_mm", "y_mm", "z_mm")]
    assert centre == pytest.approx(left.boxes[0].centre, abs=0.01)
    page = output.folder / "sub-01.html"
    text = page.read_text()
    assert text.count("mm by boxer: confidence 0.75, probability 0.875") >= 3
    assert text.count('<rect class="open') == len(left.gate_responses)
    marked = text.count('<rect class="open holds"')
    assert 1 <= marked <= len(read_table(output.labels(".tsv")))
    pictures = {path: path.read_bytes() for path in page.parent.rglob("figures/*")}
    page.unlink()
    regenerate_report(output.scan, config)
    assert page.read_text() == text
    assert {path: path.read_bytes() for path in page.parent.rglob("figures/*")} == pictures


def test_a_minimal_result_has_the_drawing_but_no_tables_not_even_old_ones(head):
    output, config, _ = head
    process_scan(output.scan, config)
    process_scan(output.scan, replace(config, output_level="minimal"))
    assert not [path for kind in EVIDENCE_TABLES for path in output.folder.rglob(f"*_{kind}.*")]
    assert "mm by boxer" in (output.folder / "sub-01.html").read_text()


def test_names_of_detectors_are_never_code_on_a_page(head):
    output, config, _ = head
    process_scan(output.scan, config)
    told = next(output.folder.rglob("*_overview.json"))
    told.write_text(told.read_text().replace("boxer", "<b>x</b>").replace("gater", "<b>y</b>"))
    text = write_page(output.folder, "01").read_text()
    assert "&lt;b&gt;x" in text
    assert "&lt;b&gt;y" in text
    assert "<b>" not in text


def test_the_evidence_of_several_detectors_keeps_their_order():
    one, other = box((0, 0, 0)), box((1, 0, 0), detector="second")
    gate = GateResponse("gater", (0, 0, 0), 0.5, 0.5)
    found = merge_outputs(
        [DetectorOutputs((one,)), DetectorOutputs(), DetectorOutputs((other,), (gate,))]
    )
    assert found == DetectorOutputs((one, other), (gate,))
    assert json.dumps(tabulate_outputs(DetectorOutputs())) == "{}"
