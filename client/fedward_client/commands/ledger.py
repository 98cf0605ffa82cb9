"""What patients have spent: ``fedward client ledger``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import typer

from fedward_client.approvals import Approvals
from fedward_client.budget import Budget, reconcile
from fedward_client.commands.options import DEFAULT_HOME, AsJson, By, Home, StudyName, now
from fedward_client.config import load_site
from fedward_client.ledger import Ledger
from fedward_client.paid import forget
from fedward_common.errors import FedwardError, LocalDataError
from fedward_common.study_file import read_study_file

__all__ = ["app", "overview_of"]

_HEADINGS: Final = (
    "study",
    "name",
    "ε spent",
    "ε granted",
    "δ",
    "rounds",
    "reserved",
    "released",
    "account",
    "cohorts",
)
_NUMBERS: Final = range(2, 8)

app = typer.Typer(add_completion=False, help="What patients have spent.")


@app.callback(invoke_without_command=True)
def ledger(
    context: typer.Context,
    as_json: AsJson = False,  # noqa: FBT002  (a flag of the command line)
    home: Home = DEFAULT_HOME,
) -> None:
    """Show what each cohort's patients have spent, by study, and what is left of their lifetime's budget."""
    if context.invoked_subcommand is not None:
        return
    found = overview_of(home)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for line in _lines(found):
            typer.echo(line)
    raise typer.Exit(1 if found["doubts"] else 0)


@app.command("reconcile")
def ledger_reconcile(by: By, home: Home = DEFAULT_HOME) -> None:
    """After a file was restored, deleted or damaged: enter again what the log knows, so that work can go on.

    Rounds of patients whom the ledger no longer knows are charged to everybody. Nothing is ever given back.
    """
    done = reconcile(home, person=by, now=now())
    if not done.entered and not done.logged and not done.renewed:
        typer.echo("ledger and log are in step: nothing was changed")
        return
    typer.echo(f"entered into the ledger again: {done.entered}; logged that the log lacked: {done.logged}")
    typer.echo("look at what is left now: fedward client ledger")


@app.command("close")
def ledger_close(study: StudyName, by: By, home: Home = DEFAULT_HOME) -> None:
    """End a study's account for good: what it spent stays, the rounds that it never ran no longer count."""
    found = Approvals(home).find(study).study
    if not Budget(home).close(study=found.digest, person=by, now=now()):
        msg = f"{found.name} has no open account"
        raise LocalDataError(msg, remedy="fedward client ledger shows the accounts")
    forget(home, found.digest)
    typer.echo(f"closed: {found.name} {found.digest[:12]}; it cannot be opened again")


def overview_of(home: Path) -> dict[str, Any]:
    """Return the ledger of the site in `home` as plain values, as ``--json`` prints it.

    Keys: ``limit`` (ε of a lifetime) at ``delta``; ``doubts`` (why the budget is not trusted; empty if it is);
    ``cohorts`` with patients, ``spent``, ``promised`` (all rounds of open accounts), ``left`` and each study's share;
    ``studies`` with their accounts.
    """
    config, budget = load_site(home), Budget(home)
    limit, delta = config.policy.max_epsilon_lifetime, config.policy.max_delta
    found: dict[str, Any] = {"limit": limit, "delta": delta, "doubts": budget.doubts(), "cohorts": [], "studies": []}
    try:
        book = budget.ledger
    except FedwardError:  # it is damaged, and `doubts` says so
        return found
    known = book.cohorts()
    names = dict.fromkeys([*config.cohorts, *known])
    found["cohorts"] = [_cohort(book, name, known, limit, delta) for name in names]
    found["studies"] = [asdict(summary) | {"name": _name(home, summary.study)} for summary in book.summaries()]
    return found


def _cohort(book: Ledger, name: str, known: dict[str, int], limit: float, delta: float) -> dict[str, Any]:
    spent, promised = book.spent(name, delta), book.planned(name, delta)
    shares = [asdict(entry) for entry in book.entries(name)]
    facts = {"name": name, "patients": known.get(name), "spent": spent, "promised": promised}
    return facts | {"left": max(0.0, limit - promised), "studies": shares}


def _name(home: Path, digest: str) -> str:
    try:
        return read_study_file(home / "studies" / f"{digest}.json").study.name
    except FedwardError:
        return ""


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"NOT TRUSTED  {doubt}" for doubt in found["doubts"]]
    if lines:
        lines.append("no budget is granted until: fedward client ledger reconcile")
    accounts = {account["study"]: account for account in found["studies"]}
    for cohort in found["cohorts"]:
        lines += _cohort_lines(cohort, accounts, found["limit"], found["delta"])
    if not found["cohorts"]:
        lines.append("no cohort is registered and nothing was spent")
    return lines


def _cohort_lines(cohort: dict[str, Any], accounts: dict[str, Any], limit: float, delta: float) -> list[str]:
    people = f" ({cohort['patients']:,} patients)" if cohort["patients"] else ""
    spent, promised = f"{cohort['spent']:.3f} of {limit:g}", f"{cohort['promised']:.3f}"
    lines = [f"{cohort['name']}{people}, at δ {delta:g}"]
    lines.append(f"  spent ε {spent}; with every round that was granted {promised}; left {cohort['left']:.3f}")
    if not cohort["studies"]:
        return [*lines, "  no study has used it under this name"]
    rows = [_HEADINGS, *(_row(share, accounts[share["study"]]) for share in cohort["studies"])]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEADINGS))]
    return [*lines, *("  " + _aligned(row, widths) for row in rows)]


def _row(share: dict[str, Any], account: dict[str, Any]) -> tuple[str, ...]:
    epsilons = (f"{share['epsilon']:.3f}", f"{account['granted_epsilon']:.3f}", f"{account['delta']:g}")
    counts = (str(account[key]) for key in ("rounds", "reserved", "released"))
    state = "closed" if account["closed"] else "open"
    return (share["study"][:12], account["name"], *epsilons, *counts, state, ", ".join(account["cohorts"]))


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    cells = (
        text.rjust(width) if place in _NUMBERS else text.ljust(width)
        for place, (text, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join(cells).rstrip()
