"""How many scans at a time, how long it will take, and what the methods section says."""

import pytest

from bids_cmb.anatomy.segmentation import CAPSULE_MM, DEEP_WHITE_MM
from bids_cmb.config import Config
from bids_cmb.networks.backend import choose_engine
from bids_cmb.workflow.methods import describe_run
from bids_cmb.workflow.participant import MB_PER_SCAN, MB_WITH_NETWORKS, choose_workers
from bids_cmb.workflow.status import format_count, format_duration


@pytest.fixture
def config(tmp_path):
    quick = {"detector": ("radial",), "anatomy": "none"}
    return lambda **settings: Config(
        tmp_path, tmp_path / "out", ("participant",), **{**quick, **settings}
    )


def test_cores_memory_and_scans_bound_the_number_of_workers(config):
    plenty = {"n_cpus": 8, "mem_mb": 100 * MB_PER_SCAN}
    assert choose_workers(config(**plenty), 50) == 8
    assert choose_workers(config(**plenty), 3) == 3
    assert choose_workers(config(**plenty, omp_nthreads=2), 50) == 4
    assert choose_workers(config(n_cpus=8, mem_mb=2 * MB_PER_SCAN), 50) == 2
    assert choose_workers(config(n_cpus=8, mem_mb=10), 50) == 1
    assert choose_workers(config(n_cpus=1, omp_nthreads=4), 50) == 1


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
def test_memory_bounds_the_number_of_workers_by_what_the_engine_needs(config, monkeypatch, engine):
    monkeypatch.setenv("BIDS_CMB_ENGINE", engine)
    memory = 2 * MB_WITH_NETWORKS[engine]
    assert choose_workers(config(n_cpus=8, mem_mb=memory, detector=("two-stage",)), 50) == 2
    assert choose_workers(config(n_cpus=8, mem_mb=memory - 1, detector=("two-stage",)), 50) == 1
    shared = {"n_cpus": 8, "detector": ("two-stage",), "share_networks": "on"}
    memory = MB_WITH_NETWORKS[choose_engine()] + 3 * MB_PER_SCAN
    assert choose_workers(config(**shared, mem_mb=memory), 50) == 3
    # One more than cores, since they wait for it in turn.
    assert choose_workers(config(**shared, mem_mb=100 * memory), 50) == 9


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3, "a few seconds"), (44, "about 40 s"), (600, "about 10 min"), (9000, "about 2.5 h")],
)
def test_an_estimate_is_as_coarse_as_it_is_sure(seconds, said):
    assert format_duration(seconds) == said


def test_the_noun_agrees_with_its_number():
    counts = [format_count(number, "scan") for number in (0, 1, 2)]
    assert counts == ["0 scans", "1 scan", "2 scans"]


def test_the_methods_name_the_brain_the_thresholds_and_the_count_rule(config):
    assert "The brain was outlined by intensity and shape." in describe_run(config(anatomy="none"))
    seen = describe_run(config(anatomy="network"))
    assert "The brain was outlined by the anatomy network." in seen
    assert "SynthSeg" in seen  # the network's citation
    assert "`ensemble`" in describe_run(config(detector=("ensemble",), anatomy="network"))
    assert "skull-stripped" in describe_run(config(skip_brain_extraction=True))
    assert "masks were given" in describe_run(config(derivatives=("masks",)))
    assert "at least 0.31" in describe_run(config(threshold=0.31))
    assert "flagged as large or vessel" in describe_run(config(exclude_flags=("large", "vessel")))
    assert "Every lesion was counted" in describe_run(config(exclude_flags=()))


def test_the_methods_say_what_deep_white_matter_is_and_after_whom(config):
    text, references = describe_run(config(anatomy="network")).split("# References")
    assert f"counts as deep within {DEEP_WHITE_MM:g} mm of a lateral ventricle" in text
    assert f"within {CAPSULE_MM:g} mm of a deep nucleus [3]." in text
    assert "\n3. Chen J, " in references
    assert "Chen J, " not in describe_run(config(anatomy="none"))


def test_every_reference_of_the_methods_has_a_doi(config):
    references = describe_run(config()).split("# References")[1].strip().splitlines()
    assert len(references) >= 4
    assert all("doi:10." in line for line in references)
