"""What several detectors leave behind besides the probability."""

from bids_cmb.detection.outputs import (
    Box,
    DetectorOutputs,
    GateResponse,
    merge_outputs,
    tabulate_outputs,
)


def box(x, detector="first"):
    return Box(detector, (x, 0.0, 0.0), (5.0, 5.0, 5.0), 2, 0.75, 0.875)


def test_the_outputs_of_several_detectors_keep_their_order():
    one, other = box(0.0), box(1.0, "second")
    gate = GateResponse("gater", (0.0, 0.0, 0.0), 0.5, 0.5)
    found = merge_outputs(
        [DetectorOutputs((one,)), DetectorOutputs(), DetectorOutputs((other,), (gate,))]
    )
    assert found == DetectorOutputs((one, other), (gate,))
    assert [row["detector"] for row in tabulate_outputs(found)["boxes"]] == ["first", "second"]
    assert tabulate_outputs(DetectorOutputs()) == {}
