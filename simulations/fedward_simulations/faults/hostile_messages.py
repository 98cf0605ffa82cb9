"""Hostile messages against one production site: those that somebody thought of, and as many as hypothesis draws.

``python -m fedward_simulations.faults.hostile_messages --examples 10000 --seed 1 --json``. Every hostile message must
be refused with a code, be in the site's log once, and neither train nor debit; every one that a mutation left honest
must be accepted, and does not count. Exit code 1 if any was not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

import structlog
from hypothesis import HealthCheck, Phase, given, seed, settings

from fedward_common.models import parameter_spec
from fedward_simulations.bench.harness import machine
from fedward_simulations.faults.attack import Case, attempt, besieged
from fedward_simulations.faults.hostile_cases import CASES
from fedward_simulations.faults.mutations import Mutation, mutations
from fedward_simulations.faults.reference import Meaning, meaning_of
from fedward_simulations.faults.target import NODE, SiteDownError, Target, Verdict

__all__ = ["Figures", "Siege", "campaign", "main", "scratch"]

_EXAMPLES: Final = 10_000
_SHOWN: Final = 20


@dataclass
class Figures:
    """What a campaign came to.

    Attributes:
        messages: hostile messages sent.
        refused: of these, how many were refused with a code, logged once, not trained on and not debited.
        honest: messages that a mutation left honest; all were accepted unless `failures` says so.
        by_code: refusals by code.
        failures: what was sent, and what was wrong with the answer.
        seconds: wall time.
    """

    messages: int = 0
    refused: int = 0
    honest: int = 0
    by_code: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, name: str, verdict: Verdict, objections: list[str]) -> None:
        """Count one hostile message."""
        self.messages += 1
        self.by_code[verdict.code or "accepted"] = self.by_code.get(verdict.code or "accepted", 0) + 1
        if objections:
            self.failures.append(f"{name}: {', '.join(objections)}")
        else:
            self.refused += 1


class Siege:
    """One site after the other under mutated messages; another one follows where one went down.

    Args:
        folder: an empty folder for the sites' homes.
        figures: counted in.
    """

    def __init__(self, folder: Path, figures: Figures | None = None) -> None:
        self._folder = folder
        self.figures = figures or Figures()
        self._stack = ExitStack()
        self._sites = 0

    def __enter__(self) -> Self:
        self._settle()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def target(self) -> Target:
        """The site that stands."""
        return self._target

    def judge(self, mutation: Mutation) -> list[str]:
        """Send one mutated message and return what is wrong with the answer."""
        target = self._target
        spent = [round_ for _, round_ in target.debits()]
        content = target.task(max(spent, default=0) + 1) if mutation.task else target.roll_call()
        sent, cached = mutation.apply(content, target.parcel)
        meaning, from_cache = (
            meaning_of(parcel, target.study, NODE, self._parameters, spent) for parcel in (sent, cached)
        )
        try:
            verdict = target.deliver(sent)
        except SiteDownError as error:
            self.figures.messages += 1
            self.figures.failures.append(f"{mutation!r}: {error}")
            with suppress(SiteDownError):
                self._stack.close()
            self._settle()
            return [str(error)]
        if meaning is Meaning.HOSTILE and verdict.code is None:
            meaning = from_cache
        if meaning is Meaning.HOSTILE:
            objections = verdict.objections()
            self.figures.count(repr(mutation), verdict, objections)
            return objections
        return self._honest(mutation, meaning, verdict)

    def _honest(self, mutation: Mutation, meaning: Meaning, verdict: Verdict) -> list[str]:
        self.figures.honest += 1
        due = (1, 1) if meaning is Meaning.TASK else (0, 0)
        objections = [*verdict.faults]
        if verdict.code is not None:
            objections.append(f"{meaning.value} was refused: {verdict.code}")
        elif (verdict.trained, verdict.debited) != due or len(verdict.decisions) != 1:
            objections.append(f"{meaning.value}: {verdict.trained} trained, {verdict.debited} debited")
        if objections:
            self.figures.failures.append(f"{mutation!r}: {', '.join(objections)}")
        return objections

    def _settle(self) -> None:
        self._sites += 1
        folder = self._folder / f"site-{self._sites}"
        folder.mkdir()
        self._target = self._stack.enter_context(besieged(folder))
        self._parameters = parameter_spec(self._target.study).size
        self._target.deliver(self._target.roll_call())


def judge_case(name: str, case: Case, verdict: Verdict) -> list[str]:
    """Return what is wrong with the answer to an attack that somebody thought of."""
    objections = verdict.objections()
    if verdict.code != case.code:
        objections.append(f"{name} is refused as {verdict.code}, not as {case.code}")
    return objections


def campaign(folder: Path, *, examples: int, draws: int, cases: Mapping[str, Case] = CASES) -> Figures:
    """Run the attacks that have a name, each against a site of its own, then `examples` drawn ones.

    Args:
        folder: an empty folder.
        examples: how many are drawn.
        draws: seed of the draws.
        cases: the attacks with a name.
    """
    figures, began = Figures(), time.monotonic()
    for name, case in cases.items():
        with tempfile.TemporaryDirectory(dir=folder) as home:
            try:
                with besieged(Path(home), case) as target:
                    verdict = attempt(case, target)
                figures.count(name, verdict, judge_case(name, case, verdict))
            except SiteDownError as error:
                figures.messages += 1
                figures.failures.append(f"{name}: {error}")
    with Siege(folder, figures) as siege:

        @seed(draws)
        @settings(
            max_examples=examples, deadline=None, database=None, derandomize=False,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(mutations())
        def draw(mutation: Mutation) -> None:
            siege.judge(mutation)

        draw()
        findings = siege.target.log.verify()
        figures.failures += [f"the log of decisions: {finding.what}" for finding in findings]
    figures.seconds = round(time.monotonic() - began, 1)
    figures.by_code = dict(sorted(figures.by_code.items(), key=lambda item: -item[1]))
    return figures


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield an empty folder in memory, where there is some: a site syncs its books with every message."""
    memory = Path("/dev/shm")  # noqa: S108  (a fresh folder of mode 0700 is made in it)
    with tempfile.TemporaryDirectory(prefix="fedward-faults-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign and print its figures; return 1 if any hostile message was not refused as it must be."""
    parser = argparse.ArgumentParser(prog="python -m fedward_simulations.faults.hostile_messages", description=__doc__)
    parser.add_argument("--examples", type=int, default=_EXAMPLES, help="messages that are drawn")
    parser.add_argument("--seed", type=int, default=1, help="of the draws")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    with open(os.devnull, "w", encoding="ascii") as nothing, scratch() as folder:  # noqa: PTH123
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(nothing))
        figures = campaign(folder, examples=options.examples, draws=options.seed)
    if options.json:
        sys.stdout.write(json.dumps(asdict(figures)) + "\n")
    else:
        _tell(figures)
    return 1 if figures.failures else 0


def _tell(figures: Figures) -> None:
    lines = [f"{figures.refused} of {figures.messages} hostile messages refused, logged once, without effect"]
    lines.append(f"{figures.honest} that a mutation left honest, {figures.seconds:.0f} s")
    lines += [f"  {count:6} {code}" for code, count in figures.by_code.items()]
    lines += figures.failures[:_SHOWN]
    lines += [f"… and {len(figures.failures) - _SHOWN} more"] if len(figures.failures) > _SHOWN else []
    sys.stdout.write("\n".join([*lines, machine()]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
