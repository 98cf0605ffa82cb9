"""What may be said about a failure, and to whom."""

from __future__ import annotations

import pytest

from fedward_common.errors import FedwardError, Refusal, RefusalCode, SchemaMismatchError


def test_refusal_crosses_as_code_and_allow_listed_fields_only() -> None:
    refusal = Refusal(
        RefusalCode.POLICY_LIMIT,
        "the text stays",
        remedy="and so does this",
        fields={"limit": 8.0, "key": "privacy.epsilon", "asked": 9.0},
    )
    assert refusal.crossing() == "policy_limit asked=9.0 key=privacy.epsilon limit=8.0"


def test_refusal_without_fields_crosses_as_its_code() -> None:
    assert Refusal(RefusalCode.INTERNAL, "Mrs Canary, 47").crossing() == "internal_error"


@pytest.mark.parametrize("name", ["value", "patient", "message", "Key", "limit "])
def test_field_that_is_not_allowed_cannot_even_be_made(name: str) -> None:
    with pytest.raises(ValueError, match="may not leave a site"):
        Refusal(RefusalCode.INTERNAL, fields={name: 1})


def test_diagnostics_give_message_and_remedy() -> None:
    assert FedwardError("wrong", remedy="do this").diagnostics() == "wrong\n  remedy: do this"
    assert FedwardError("wrong").diagnostics() == "wrong"


def test_counts_are_copied() -> None:
    counts = {"age: missing": 1}
    error = SchemaMismatchError("m", counts=counts)
    counts["age: missing"] = 2
    assert error.counts == {"age: missing": 1}


def test_codes_are_words_that_a_log_can_be_searched_for() -> None:
    assert all(code.value.replace("_", "").isalpha() and code.value.islower() for code in RefusalCode)
    assert len(set(RefusalCode)) == len(RefusalCode.__members__)
