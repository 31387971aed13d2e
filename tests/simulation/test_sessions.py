"""Between two sessions a head moves and microbleeds come and fade; nothing else changes."""

from dataclasses import replace

import numpy as np
import pytest
from grids import OBLIQUE
from nibabel.affines import apply_affine

from bids_cmb.bids.tables import read_table
from bids_cmb.imaging.registration import measure_rotation_deg
from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation import dataset as dataset_module
from bids_cmb.simulation import sessions
from bids_cmb.simulation.lesion_priors import load_priors
from bids_cmb.simulation.protocols import load_presets
from bids_cmb.simulation.sessions import (
    MAX_SHIFT_MM,
    change_microbleeds,
    choose_other_protocol,
    move_scan,
    sample_motion,
)
from bids_cmb.simulation.simulate import Person, SimulatedScan


@pytest.fixture
def person(terrain, whole):
    return Person(None, terrain.labels, terrain, whole[0], 70.0, "whole", "made up")


def microbleeds(person):
    return {source.object_id for source in person.sources if source.kind == "microbleed"}


def test_microbleeds_come_and_fade_and_all_else_stays(person, monkeypatch):
    monkeypatch.setattr(sessions, "FADE_PROBABILITY", 0.5)
    monkeypatch.setattr(sessions, "NOTHING_NEW_PROBABILITY", 0.0)
    later, change = change_microbleeds(np.random.default_rng(5), person, load_priors())
    assert change.new
    assert microbleeds(later) == microbleeds(person) | set(change.new)
    assert not set(change.new) & {source.object_id for source in person.sources}
    assert set(change.faded) <= microbleeds(person)
    for before, after in zip(person.sources, later.sources, strict=False):
        if before.object_id in change.faded:
            assert after.susceptibility_ppm <= 0.3 * before.susceptibility_ppm
            assert after.spin_fraction >= 0.7
        else:
            assert after is before


def test_new_microbleeds_lie_clear_of_those_that_are_there(person, monkeypatch):
    monkeypatch.setattr(sessions, "NOTHING_NEW_PROBABILITY", 0.0)
    monkeypatch.setattr(sessions, "MEAN_FURTHER_NEW", 8.0)
    later, change = change_microbleeds(np.random.default_rng(5), person, load_priors())
    old, new = (
        np.array([s.points.mean(axis=0) for s in later.sources if s.object_id in numbers])
        for numbers in (microbleeds(person), change.new)
    )
    if len(old):
        distance = np.linalg.norm(old[:, None] - new[None], axis=-1)
        assert distance.min() > 3


def test_a_moved_scan_carries_its_truth_along(rng):
    image = Volume(rng.random((8, 8, 6)).astype(np.float32), OBLIQUE)
    row = dict(zip(("x_mm", "y_mm", "z_mm"), image.world(np.array([4, 4, 3])), strict=True))
    scan = SimulatedScan(
        image, None, None, image, image, image, image, [{**row, "i": 4}], [row], None, {}
    )
    motion = sample_motion(rng)
    assert 0 < measure_rotation_deg(motion) < 15
    assert np.abs(motion[:3, 3]).max() <= MAX_SHIFT_MM
    moved = move_scan(scan, motion)
    place = [moved.lesion_table[0][f"{axis}_mm"] for axis in "xyz"]
    np.testing.assert_allclose(moved.image.index(place), [4, 4, 3], atol=0.05)
    np.testing.assert_allclose(place, apply_affine(motion, list(row.values())), atol=0.01)
    assert moved.image.data is image.data
    assert moved.lesion_table[0]["i"] == 4


def test_the_other_protocol_has_the_same_contrast(rng):
    presets = load_presets()
    first = presets["adni-t2star"]
    for others in (list(presets.values()), []):
        for _ in range(5):
            assert choose_other_protocol(rng, first, others).contrast == "T2starw"
    assert choose_other_protocol(rng, first, [presets["ukb-swi"]]) is first


def test_every_session_has_its_scan_and_its_truth(tmp_path, monkeypatch, blank, person):
    """Every second participant changes its protocol; the tables tell of both."""
    row = {"x_mm": 0.0, "y_mm": 0.0, "z_mm": 0.0, "certainty": "definite", "identity": 3}
    facts = {"head": "x", "age": 70, "sex": "F", "dress": "whole", "snr": 20.0}
    labels = Volume(np.zeros(blank.shape, np.uint16), blank.affine)

    def scan(_rng, _person, protocol, _priors, **_):
        parts = (blank, None, None, labels, labels, labels, labels, [row], [], protocol)
        return SimulatedScan(*parts, facts)

    monkeypatch.setattr(dataset_module, "make_procedural_head", lambda _: None)
    monkeypatch.setattr(dataset_module, "sample_person", lambda *_: replace(person, sources=[]))
    monkeypatch.setattr(dataset_module, "scan_person", scan)
    plan = dataset_module.DatasetPlan(2, 1, protocols=["adni-t2star", "mars-t2star"], sessions=2)
    numbers = dataset_module.simulate_dataset(tmp_path / "out", plan)
    assert numbers == [1, 1, 1, 1]
    protocols = [
        [row["protocol"] for row in read_table(tmp_path / f"out/{name}/{name}_sessions.tsv")]
        for name in ("sub-01", "sub-02")
    ]
    assert protocols == [["adni-t2star"] * 2, ["mars-t2star", "adni-t2star"]]
    anat = "sub-02/ses-2/anat/sub-02_ses-2"
    assert (tmp_path / f"out/{anat}_T2starw.nii.gz").is_file()
    truth = tmp_path / f"out/derivatives/truth/{anat}_space-orig_seg-CMB_desc-truth_dseg.tsv"
    [lesion] = read_table(truth)
    assert lesion["identity"] == "3"
