"""What several of a hospital's commands take."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fedward_common.person import account

__all__ = ["DEFAULT_HOME", "AsJson", "By", "Home", "StudyName", "now"]

Home = Annotated[Path, typer.Option(envvar="FEDWARD_HOME", help="The site's folder")]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Its name, or the beginning of its digest")]
By = Annotated[str, typer.Option(help="Who decides; the account is noted as well", default_factory=account)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else")]
DEFAULT_HOME = Path("/var/lib/fedward")


def now() -> str:
    """Return the time stamp of a decision, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
