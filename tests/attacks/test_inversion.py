"""Patients' records come out of an update without privacy; under ε = 1 nobody can tell whose update it was.

Each identification test picks the true record among 20: chance is 1 in 20, and the bound that ε sets on any attack is
`identification_bound`. What succeeds without privacy is a function of seeds; what is noised is turned away wrongly once
in 1e7, by the binomial tail at that bound.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from fedward_client.trainer import train_round
from fedward_common.study import Study
from fedward_simulations.attacks.audit import ALARM
from fedward_simulations.attacks.campaign import DELTA, ONE_STEP, inversions
from fedward_simulations.attacks.data import DIGIT_SHAPE, Pool, digits
from fedward_simulations.attacks.inversion import (
    CANDIDATES,
    Attack,
    Identification,
    divided,
    identify,
    imprint_weights,
    imprinted,
    matched,
)
from fedward_simulations.attacks.statistics import gdp_of_epsilon, identification_bound
from fedward_simulations.attacks.target import NO_PRIVACY, attack_study, dp_sgd

NARROW = {"name": "mlp", "hidden": [32]}
WIDE = {"name": "mlp", "hidden": [256]}
SMOOTH = {"name": "mlp", "hidden": [64], "activation": "tanh"}
PUBLIC = 400
BOUND = identification_bound(gdp_of_epsilon(1.0, DELTA), CANDIDATES)


def study_of(model: dict[str, Any], *, private: bool) -> Study:
    return attack_study(DIGIT_SHAPE, model, ONE_STEP, dp_sgd(1.0, DELTA) if private else NO_PRIVACY)


def attacked(study: Study, attack: Attack, trials: int) -> Identification:
    rows, labels = digits()
    pool = Pool(rows[PUBLIC:], labels[PUBLIC:], np.arange(len(rows) - PUBLIC))
    return identify(study, train_round, attack, pool, trials=trials)


def at_chance(found: Identification) -> bool:
    """Return whether ε = 1 explains the hits, which a correct release denies once in 1e7, and no record came back."""
    return found.hits <= binom.isf(ALARM, found.trials, BOUND) and bool((found.errors > 0.25).all())


def test_one_patients_picture_is_divided_out_of_an_update_without_privacy() -> None:
    found = attacked(study_of(NARROW, private=False), Attack(divided, 1), trials=40)
    assert found.hits == found.trials
    assert found.errors.max() < 1e-3


def test_one_patients_picture_is_not_divided_out_under_epsilon_one() -> None:
    assert at_chance(attacked(study_of(NARROW, private=True), Attack(divided, 1), trials=100))


def test_pictures_of_eight_patients_are_divided_out_of_an_update_without_privacy() -> None:
    found = attacked(study_of(WIDE, private=False), Attack(divided, 8), trials=20)
    assert found.hits >= 18
    assert np.median(found.errors) < 1e-3


def test_a_hostile_coordinators_weights_imprint_pictures_of_32_patients_without_privacy() -> None:
    """Chance would give 20 of 40 hits once in 1e14."""
    study = study_of(WIDE, private=False)
    found = attacked(study, Attack(imprinted, 32, imprint_weights(study, digits()[0][:PUBLIC])), trials=40)
    assert found.hits >= 20
    assert (found.errors < 0.05).mean() > 0.5


def test_a_hostile_coordinators_weights_imprint_nothing_under_epsilon_one() -> None:
    study = study_of(WIDE, private=True)
    attack = Attack(imprinted, 32, imprint_weights(study, digits()[0][:PUBLIC]))
    assert at_chance(attacked(study, attack, trials=60))


def test_matching_gradients_finds_a_picture_without_privacy() -> None:
    found = attacked(study_of(SMOOTH, private=False), Attack(matched, 1), trials=4)
    assert found.hits == found.trials
    assert found.errors.max() < 0.05
    assert found.psnr > 25


def test_matching_gradients_finds_nothing_under_epsilon_one() -> None:
    """8 hits of 8 are not explained by ε = 1, and no guess is nearer than half of what the mean record is."""
    found = attacked(study_of(SMOOTH, private=True), Attack(matched, 1), trials=8)
    assert at_chance(found)
    assert (found.errors > 0.5 * found.baseline).all()


def test_guesses_that_know_nothing_are_right_once_in_twenty() -> None:
    """The decoys are fair: an attack that always guesses the mean record, or white noise, is at chance."""
    study, generator = study_of(NARROW, private=False), np.random.default_rng(0)
    found = attacked(study, Attack(lambda *_: generator.uniform(-1, 1, (3, 64)), 2), trials=300)
    low, high = binom.interval(1 - 1e-6, 300, 1 / CANDIDATES)
    assert low <= found.hits <= high


@pytest.mark.campaign
def test_inversion_at_full_length() -> None:
    """Every attack succeeds without privacy; under ε = 1 and 8 none exceeds the bound, each but once in 1e7."""
    found = list(inversions())
    assert len(found) == 15
    for figure in found:
        if "no privacy" in figure.name:
            assert figure.values["identified_low"] > 0.5, figure.line
        else:
            trials = 40 if "matching" in figure.name else 400
            assert figure.values["identified"] * trials <= binom.isf(ALARM, trials, figure.values["bound"]), figure.line
            assert figure.values["exact"] == 0, figure.line
