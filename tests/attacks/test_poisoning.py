"""Poisoned hospitals against the rules of aggregation: the campaign's reduced form, and its attacks by hand."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from fedward_simulations.attacks.poisoning import ATTACKS, POISONED, RULES, Hospitals, accuracy, deal, little_is_enough


@pytest.fixture(scope="module")
def hospitals() -> Hospitals:
    return deal("breast_cancer", seed=1)


def rule(name: str) -> dict[str, object]:
    return {**RULES[name], **({"radius": 1.0} if RULES[name]["rule"] == "centred_clipping" else {})}


def test_ten_hospitals_share_the_rows_and_three_are_poisoned(hospitals: Hospitals) -> None:
    sizes = [len(patients) for patients in hospitals.cohorts.values()]
    assert len(sizes) == 10
    assert sum(sizes) + len(hospitals.hold_out.rows.labels) == 569
    assert max(sizes) - min(sizes) <= 1
    assert len(set(hospitals.poisoned)) == POISONED
    assert set(hospitals.poisoned) <= set(hospitals.cohorts)
    assert deal("breast_cancer", seed=1).poisoned == hospitals.poisoned


def test_scaled_flips_wreck_the_mean_and_no_robust_rule(hospitals: Hospitals) -> None:
    attack = ATTACKS["flipped × 20"]
    clean = accuracy(hospitals, rule("mean"), None)
    assert clean > 0.9
    assert accuracy(hospitals, rule("mean"), attack) < clean - 0.2
    for name in ("median", "trimmed mean", "multi-Krum", "centred clipping"):
        assert accuracy(hospitals, rule(name), attack) > clean - 0.05, name


def test_the_same_seed_gives_the_same_accuracy(hospitals: Hospitals) -> None:
    attack = ATTACKS["colluding"]
    assert accuracy(hospitals, rule("median"), attack) == accuracy(hospitals, rule("median"), attack)


def test_colluders_hide_within_the_deviation_that_baruch_et_al_allow() -> None:
    """Ten sites, three of them colluding: s = 6 - 3, z of (7 - 3) / 7."""
    honest = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
    z = statistics.NormalDist().inv_cdf(4 / 7)
    assert 0.1 < z < 0.2
    expected = honest.mean(axis=0) - z * np.sqrt(((honest - honest.mean(axis=0)) ** 2).mean(axis=0))
    np.testing.assert_allclose(little_is_enough(honest[0], honest), expected, atol=1e-6)
