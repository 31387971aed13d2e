"""What detectors leave behind besides the probability is kept in tables."""

from dataclasses import replace

import pytest
from phantoms import stripped

from bids_cmb.bids.paths import Output
from bids_cmb.bids.scan import Scan
from bids_cmb.bids.tables import read_columns, read_table
from bids_cmb.config import Config
from bids_cmb.detection.ensemble import detect
from bids_cmb.detection.outputs import Box, DetectorOutputs, GateResponse
from bids_cmb.files import read_json
from bids_cmb.imaging import nifti
from bids_cmb.workflow import scan as participant
from bids_cmb.workflow.scan import process_scan

CENTRES = ((10.0, -20, 5), (0.0, 12, -7))


@pytest.fixture
def ball(tmp_path, monkeypatch):
    """A ball on disk, whose detector gives boxes and gate responses; and how to read it."""
    path = tmp_path / "sub-01_T2starw.nii.gz"
    nifti.save(stripped(3), path)
    scan = Scan(path, path.name, "anat", "T2starw", (("sub", "01"),))
    left = DetectorOutputs(
        tuple(Box("boxer", centre, (5.0, 5.0, 6.0), 2, 0.75, 0.875) for centre in CENTRES),
        tuple(GateResponse("gater", (0.0, 0, 6.0 * k), 0.25, 0.125) for k in range(3)),
    )

    def leaving(*asked):
        return replace(detect(*asked), outputs=left)

    monkeypatch.setattr(participant, "detect", leaving)
    config = Config(
        tmp_path, tmp_path / "out", ("participant",), detector=("radial",), anatomy="none",
        skip_brain_extraction=True, report="none",
    )  # fmt: skip
    return Output(config.output_dir, scan), config, left


def test_what_detectors_leave_behind_is_kept_and_not_in_a_minimal_result(ball):
    output, config, left = ball
    process_scan(output.scan, config)
    for kind, count in (("boxes", len(left.boxes)), ("gate", len(left.gate_responses))):
        rows, said = read_table(output.evidence(kind)), read_json(output.evidence(kind, ".json"))
        assert len(rows) == count
        assert list(rows[0]) == list(read_columns(kind))
        assert set(said) == {*read_columns(kind), "Description", "Sources", "SpatialReference"}
        assert output.evidence(kind).name in (output.mask(".json")).read_text()
    first = read_table(output.evidence("boxes"))[0]
    centre = [float(first[axis]) for axis in ("x_mm", "y_mm", "z_mm")]
    assert centre == pytest.approx(CENTRES[0], abs=0.01)
    process_scan(output.scan, replace(config, output_level="minimal"))
    assert not [*output.folder.rglob("*_boxes.*"), *output.folder.rglob("*_gate.*")]
