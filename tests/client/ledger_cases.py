"""Studies, patients and limits for the tests of ledger, budget, log and evidence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fedward_client.books import Limits, Terms
from fedward_client.budget import Budget
from fedward_common.errors import Refusal, RefusalCode
from fedward_common.privacy import Spend

NOW = "2026-11-23T12:00:00+00:00"
DELTA = 1e-4
LIFETIME_DELTA = 1e-3
SPEND = Spend(4.0, 1.0, 2)
TERMS = Terms(3, SPEND, DELTA)
LIMITS = Limits(8.0, 16.0, LIFETIME_DELTA)
A, B, C = "a" * 64, "b" * 64, "c" * 64
ICU, WARD = range(40), range(100, 140)


def code_of(call: Callable[[], object]) -> RefusalCode:
    """Return the code of the refusal that `call` ends with."""
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value.reason


def people(codes: Iterable[int]) -> npt.NDArray[np.uint8]:
    """Return the identities of the patients with these codes, uint8, shape (patients, 16)."""
    digests = [hashlib.sha256(f"patient {code}".encode()).digest()[:16] for code in codes]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)


def granted(budget: Budget, study: str = A, codes: Iterable[int] = ICU, **changes: Any) -> None:
    """Let `budget` open the account of `study` for these patients; `changes` replace arguments of `Budget.grant`."""
    values: dict[str, Any] = {"cohort": "icu", "terms": TERMS, "limits": LIMITS, "now": NOW}
    budget.grant(study=study, identities=people(codes), **(values | changes))


def reserved(budget: Budget, round_: int, study: str = A, codes: Iterable[int] = ICU, **changes: Any) -> int:
    """Let `budget` debit one round to these patients; `changes` replace arguments of `Budget.reserve`."""
    values: dict[str, Any] = {"cohort": "icu", "limits": LIMITS, "now": NOW}
    return budget.reserve(study=study, round_=round_, identities=people(codes), **(values | changes))


def released(budget: Budget, round_: int, study: str = A, **changes: Any) -> None:
    """Let `budget` note that one round leaves."""
    values: dict[str, Any] = {"cohort": "icu", "sha256": f"{round_:064x}", "size": 10 * round_, "now": NOW}
    budget.commit(study=study, round_=round_, **(values | changes))
