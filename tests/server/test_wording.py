"""How the report writes numbers."""

from __future__ import annotations

import pytest

from fedward_server.wording import number


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"), (1.0, "1.00"), (0.9479, "0.948"), (0.99961, "1.00"), (7.9991, "8.00"), (-0.05, "-0.0500"),
        (12.345, "12.3"), (2980.958, "2,980"), (999_499, "999,000"), (0.0001, "0.000100"), (1e-5, "1.00 × 10⁻⁵"),
        (2.688e43, "2.69 × 10⁴³"),
    ],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_trimmed_numbers_have_no_needless_zeros() -> None:
    assert [number(x, trim=True) for x in (8.0, 0.5, 1e-4, 1e-5, 100.0)] == ["8", "0.5", "0.0001", "1 × 10⁻⁵", "100"]
