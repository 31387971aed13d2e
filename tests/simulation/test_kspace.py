"""K-space keeps places and means, its noise and ghosts are those of scanners; SWI darkens veins."""

import numpy as np
import pytest

from bids_cmb.simulation import kspace


def test_k_space_keeps_places_and_means():
    image = np.random.default_rng(3).normal(size=(12, 15)) + 2j
    np.testing.assert_allclose(
        kspace.from_kspace(kspace.to_kspace(image, (12, 15)), (12, 15)), image
    )
    wave = 5 + np.cos(2 * np.pi * 2 * np.arange(32) / 32)[:, None] * np.ones(20)
    small = kspace.from_kspace(kspace.to_kspace(wave, (16, 10)), (16, 10))
    np.testing.assert_allclose(small, wave[::2, ::2], atol=1e-12)
    np.testing.assert_allclose(
        kspace.from_kspace(kspace.to_kspace(wave, (16, 10)), (32, 20)), wave, atol=1e-12
    )


def test_an_edge_rings_by_nine_percent_unless_k_space_is_windowed():
    edge = np.zeros((256, 8))
    edge[64:192] = 1
    for rolloff, least, most in ((0.0, 0.07, 0.11), (1.0, -0.01, 0.02)):
        seen = kspace.to_kspace(edge, (64, 8)) * kspace.tukey_window((64, 8), rolloff)
        over = kspace.from_kspace(seen, (256, 8)).real.max() - 1
        assert least < over < most


@pytest.mark.parametrize("rolloff", [0.0, 0.5])
def test_noise_is_rician_with_the_deviation_asked_for(rng, rolloff):
    window = kspace.tukey_window((128, 120), rolloff)
    image = kspace.from_kspace(kspace.thermal_noise(rng, window, 4.0), (256, 240))
    assert image.real.std() == pytest.approx(4, rel=0.03)
    assert np.abs(image).mean() == pytest.approx(4 * np.sqrt(np.pi / 2), rel=0.03)
    assert (np.abs(100 + image) ** 2).mean() == pytest.approx(100**2 + 2 * 4**2, rel=0.01)


def test_a_ghost_moves_signal_but_neither_makes_nor_loses_any(rng):
    factor = kspace.ghost_phase(rng, 96, 0.4)
    np.testing.assert_allclose(np.abs(factor), 1, rtol=1e-5)
    image = np.zeros((96, 96))
    image[30:60, 40:60] = 1
    ghosted = kspace.from_kspace(kspace.to_kspace(image, (96, 96)) * factor, (96, 96))
    assert (np.abs(ghosted) ** 2).sum() == pytest.approx(600, rel=1e-4)
    assert np.abs(ghosted)[30:60, :20].max() > 0.01


def test_the_high_pass_keeps_a_vein_and_drops_a_ramp():
    x, y = np.meshgrid(np.arange(128), np.arange(128), indexing="ij")
    phase = 6 * np.sin(x / 60) + 4 * np.cos(y / 50) + 1.0 * ((x - 64) ** 2 + (y - 64) ** 2 <= 4)
    image = np.exp(1j * phase)
    high = kspace.high_pass_phase(image, kspace.to_kspace(image, image.shape), 32)
    assert high[64, 64] == pytest.approx(1, abs=0.35)
    assert np.abs(high[20:50, 20:50]).max() < 0.3


def test_swi_darkens_veins_of_either_handedness_and_no_calcification():
    magnitude = np.full((3, 1), 100.0)
    phase = np.array([[0.8], [-0.8], [0.0]])  # a vein along B0, a calcification, nothing
    right, left = (kspace.make_swi(magnitude, hand * phase, phase_sign=hand) for hand in (1, -1))
    np.testing.assert_array_equal(right, left)
    assert right[:, 0] == pytest.approx([100 * (1 - 0.8 / np.pi) ** 4, 100, 100])
    wrong = kspace.make_swi(magnitude, phase, phase_sign=-1)
    assert wrong[1, 0] < wrong[0, 0] == 100
