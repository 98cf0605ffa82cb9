"""The numbers of other people's accountants beside ours, and the reason where there is none."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib.machinery import ModuleSpec

import pytest

from fedward_common.errors import StudyError
from fedward_common.privacy import Spend, epsilon_of
from fedward_common.privacy_check import CrossCheck, cross_check


@pytest.mark.parametrize(
    ("spends", "delta"),
    [
        ([Spend(1.0, 256 / 10_000, 1953)], 1e-5),
        ([Spend(10.0, 1.0, 100)], 1e-5),
        ([Spend(2.0, 0.1, 100), Spend(1.5, 0.05, 50), Spend(8.0, 1.0, 4)], 1e-4),
    ],
)
def test_four_accountants_confirm_the_epsilon(spends: list[Spend], delta: float) -> None:
    found = cross_check(spends, delta)

    assert found.pld == epsilon_of(spends, delta)
    assert found.prv is not None
    assert found.google is not None
    assert found.rdp is not None
    assert abs(found.prv - found.pld) <= 0.02
    assert abs(found.google - found.pld) <= 0.02
    assert found.pld < found.rdp < found.pld * 1.3
    assert found.agrees
    assert not found.absent


def test_a_number_that_contradicts_is_no_agreement() -> None:
    good = CrossCheck(1e-5, 2.0, google=2.01, prv=2.01, rdp=2.2)
    assert good.agrees
    assert replace(good, prv=2.05).agrees is False
    assert replace(good, prv=1.95).agrees is False
    assert replace(good, google=1.9).agrees is False
    assert replace(good, google=2.5).agrees is True
    assert replace(good, rdp=1.99).agrees is False


def test_nothing_spent_is_zero_everywhere() -> None:
    assert cross_check([Spend(1.0, 0.0, 5)], 1e-5) == CrossCheck(1e-5, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("spends", "delta", "reason"),
    [
        ([Spend(1 + k / 10, 0.1, 1) for k in range(17)], 1e-5, "17 kinds of steps"),
        ([Spend(5.0, 0.01, 2_000_000)], 1e-5, "2000000 steps"),
        ([Spend(0.3, 0.5, 5000)], 1e-5, "an epsilon above 50"),
        ([Spend(4.0, 0.1, 10)], 1e-18, "a delta outside"),
    ],
)
def test_what_the_others_cannot_answer_has_a_reason_and_ours(spends: list[Spend], delta: float, reason: str) -> None:
    found = cross_check(spends, delta)

    assert found.pld > 0
    assert (found.google, found.prv, found.rdp) == (None, None, None)
    assert set(found.absent) == {"google", "prv", "rdp"}
    assert all(why.startswith(reason) for why in found.absent.values())


def test_without_opacus_the_statement_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "opacus" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)

    found = cross_check([Spend(4.0, 0.1, 10)], 1e-5)

    assert found.prv is None
    assert "not installed" in found.absent["prv"]
    assert found.google is not None
    assert found.agrees


def test_no_privacy_cost_is_refused() -> None:
    with pytest.raises(StudyError, match="no privacy cost"):
        cross_check([Spend(-1.0, 0.1, 10)], 1e-5)
