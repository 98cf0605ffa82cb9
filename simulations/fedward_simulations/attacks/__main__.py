"""The attacks' figures.

python -m fedward_simulations.attacks [--json] [audits|memberships|inversions ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Final

from fedward_simulations.attacks.campaign import Figure, audits, inversions, memberships
from fedward_simulations.bench.harness import report

__all__ = ["main"]

_PARTS: Final[dict[str, Callable[[], Iterator[Figure]]]] = {
    "audits": audits,
    "memberships": memberships,
    "inversions": inversions,
}


def main() -> None:
    """Run the parts that are named, all by default, and print their figures."""
    parser = argparse.ArgumentParser(prog="python -m fedward_simulations.attacks", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*_PARTS, []], default=[])
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    options = parser.parse_args()
    found = [figure for part in options.parts or _PARTS for figure in _PARTS[part]()]
    report({figure.name: figure.values for figure in found}, [figure.line for figure in found], as_json=options.json)


if __name__ == "__main__":
    main()
