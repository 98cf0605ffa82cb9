"""What a person sees of a simulation: a progress line while it runs, a table at its end."""

from __future__ import annotations

from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedward_common.errors import SchemaMismatchError
from fedward_common.study import DpSgd, Study
from fedward_server.result import Figures, RoundResult, RunResult
from fedward_simulations.run import Finished, Watcher

__all__ = ["ProgressLine", "show_result"]

_PHASES = {"baselines": "each hospital alone, and pooled", "report": "writing the report"}
_SHOWN_SITES = 12


class ProgressLine:
    """One line on standard error: round, sites, metrics and ε; plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._rounds = 0

    def __enter__(self) -> Self:
        """Start drawing."""
        self._bar.start()
        self._task = self._bar.add_task("preparing", total=None, status="")
        return self

    def __exit__(self, *_: object) -> None:
        """Take the line away."""
        self._bar.stop()

    def watcher(self) -> Watcher:
        """Return what `run` tells this line."""
        return Watcher(started=self._started, rejected=self._rejected, round=self._round, phase=self._phase)

    def _update(self, description: str, status: str, *, completed: int | None = None) -> None:
        if self._task is not None:
            self._bar.update(
                self._task, description=description, status=status, completed=completed, total=self._rounds or None
            )

    def _started(self, study: Study) -> None:
        self._rounds = study.training.rounds
        self._update(study.name, "starting the hospitals", completed=0)
        if not self._console.is_terminal:
            self._console.print(f"{study.name}: {len(study.sites)} sites, {self._rounds} rounds")

    def _rejected(self, site: str, error: SchemaMismatchError) -> None:
        self._console.print(f"[yellow]{site} is left out:[/] {error.message}", highlight=False)

    def _round(self, entry: RoundResult) -> None:
        total = len(entry.sites) + len(entry.missing)
        parts = [f"round {entry.round}/{self._rounds}", f"{len(entry.sites)}/{total} sites"]
        parts += [
            f"{name} {value:.3f}" for name in ("auroc", "accuracy") if (value := entry.central.get(name)) is not None
        ]
        if entry.epsilon is not None:
            parts.append(f"ε {entry.epsilon:.2f}")
        line = " · ".join(parts)
        self._update("training", line, completed=entry.round)
        step = max(1, self._rounds // 5)
        if not self._console.is_terminal and (entry.round % step == 0 or entry.round == self._rounds):
            self._console.print(line, highlight=False)

    def _phase(self, name: str) -> None:
        self._update(_PHASES.get(name, name), "", completed=self._rounds)


def show_result(finished: Finished, console: Console) -> None:
    """Print the comparison, the hospitals and where the files are."""
    result = finished.result
    if result.central:
        console.print(_comparison(result))
    console.print(_hospitals(result))
    console.print(_closing(finished), highlight=False)


def _estimate(figures: Figures, name: str) -> str:
    estimate = figures.get(name)
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({_short(estimate.low)}–{_short(estimate.high)})"


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _comparison(result: RunResult) -> Table:
    title = f"{result.study.name}: on the central hold-out, with bootstrap intervals"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for column in ("trained on", "AUROC", "accuracy", "mean of centres"):
        table.add_column(column, no_wrap=True)
    rows = [(f"{site} alone", figures) for site, figures in sorted(result.baselines.local.items())]
    hidden = rows[_SHOWN_SITES:]
    for name, figures in rows[:_SHOWN_SITES]:
        table.add_row(name, *_cells(figures))
    if hidden:
        table.add_row(f"… {len(hidden)} more in result.json")
    table.add_row("federated", *_cells(result.central), style="bold")
    if result.baselines.pooled is not None:
        table.add_row("pooled (sim. only)", *_cells(result.baselines.pooled))
    return table


def _cells(figures: Figures) -> list[str]:
    return [_estimate(figures, name) for name in ("auroc", "accuracy", "accuracy_mean_of_centres")]


def _hospitals(result: RunResult) -> Table:
    table = Table(title="Hospitals", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for column in ("site", "patients", "rounds", "ε", "δ", "status", "reason"):
        table.add_column(column, overflow="fold")
    sites = list(result.sites.items())
    troubled = [item for item in sites if item[1].status != "completed"]
    shown = sites if len(sites) <= _SHOWN_SITES else (troubled or sites)[:_SHOWN_SITES]
    for name, site in shown:
        epsilon = "–" if site.epsilon is None else f"{site.epsilon:.3f}"
        delta = "–" if site.delta is None else f"{site.delta:g}"
        patients = "–" if site.patients is None else str(site.patients)
        table.add_row(name, patients, str(site.rounds), epsilon, delta, site.status, site.reason or "")
    if len(shown) < len(sites):
        table.add_row(f"… {len(sites) - len(shown)} more", "", "", "", "", "", "in result.json")
    return table


def _closing(finished: Finished) -> str:
    result, privacy = finished.result, finished.study.privacy
    lines = [f"{result.status}" + (f": {result.reason}" if result.reason else "") + f" in {result.seconds:.1f} s"]
    if isinstance(privacy, DpSgd):
        lines.append(f"privacy: ε {privacy.epsilon:g} at δ {privacy.delta:g} for each patient, over the whole study")
    else:
        lines.append("privacy: none; this model may reveal its patients")
    report = finished.folder / "report.html"
    lines.append(f"report: {report}" if report.exists() else f"result: {finished.folder / 'result.json'}")
    return "\n".join(lines)
