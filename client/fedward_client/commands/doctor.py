"""Is everything there that a round needs: ``fedward client doctor``."""

from __future__ import annotations

import json
import logging
import os
import pwd
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer

from fedward_client.commands.options import DEFAULT_HOME, Home

__all__ = ["doctor"]

_COLOURS = {"PASS": typer.colors.GREEN, "WARN": typer.colors.YELLOW, "FAIL": typer.colors.RED}


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for a machine")] = False,
    only: Annotated[list[str] | None, typer.Option(help="One check, by name; may be given several times")] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Check network, certificates, clock, computer, files, ledger and log; exit code 1 when something fails.

    Every finding that is not PASS comes with a remedy. Nothing is changed, here or at the coordinator.
    """
    from fedward_client.doctor import CHECKS, Level, Place, examine, failed, summary  # noqa: PLC0415  (a second)
    from fedward_client.doctor import as_json as told  # noqa: PLC0415

    _become_owner(home)
    _quieten()
    names = [check.name for check in CHECKS]
    if unknown := sorted(set(only or ()) - set(names)):
        msg = f"no check is called {', '.join(unknown)}; there are: {', '.join(names)}"
        raise typer.BadParameter(msg, param_hint="--only")
    checks = [check for check in CHECKS if not only or check.name in only]
    findings = []
    for finding in examine(Place(home), checks):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{typer.style(finding.level, _COLOURS[finding.level])}  {finding.check:<13}{finding.what}")
            if finding.level is not Level.PASS:
                typer.echo(f"{'':19}remedy: {finding.remedy}")
    if as_json:
        typer.echo(json.dumps(told(findings), indent=1))
    else:
        counts = summary(findings)
        typer.echo(f"\n{counts['PASS']} passed, {counts['WARN']} warnings, {counts['FAIL']} failed")
    raise typer.Exit(1 if failed(findings) else 0)


def _become_owner(home: Path) -> None:
    """Go on as the account that owns `home` when root calls: what the daemon may not read is not to be called fine.

    No file that is made on the way is then root's, which would shut the daemon out.
    """
    if os.geteuid() != 0 or not home.exists():
        return
    owner = home.stat()
    if owner.st_uid == 0:
        return
    os.initgroups(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid)
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)


def _quieten() -> None:
    """Let findings alone speak: only errors are logged, to standard error."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
