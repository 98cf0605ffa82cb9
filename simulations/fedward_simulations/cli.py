"""The commands of a researcher: ``fedward simulate``, ``fedward study new|compose``, ``fedward data get``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["compose", "data", "new", "simulate"]

_EXIT = {"completed": 0, "degraded": 0, "interrupted": 130, "failed": 1}

simulate = typer.Typer(add_completion=False)
data = typer.Typer(add_completion=False, no_args_is_help=True, help="Download data sets with pinned digests.")
new = typer.Typer(add_completion=False)
compose = typer.Typer(add_completion=False)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Hydra overrides, for example study=heart_disease privacy=none seed=3")
]
ConfigDir = Annotated[Path | None, typer.Option(help="Folder with groups of your own, for example study/mine.yaml")]
SiteColumn = Annotated[str | None, typer.Option("--site", help="One site for each value of this column")]


@simulate.command()
def simulate_command(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    site: SiteColumn = None,
    out: Annotated[Path, typer.Option(help="Where runs/<study>/<time>/ is made")] = Path("runs"),
    *,
    json: Annotated[bool, typer.Option("--json", help="Print result.json and nothing else")] = False,
) -> None:
    """Run a study over simulated hospitals and compare it with each hospital alone and with pooled data."""
    from rich.console import Console  # noqa: PLC0415  (commands load what they use)

    from fedward_server.coordinator import dump  # noqa: PLC0415  (see above)
    from fedward_simulations.console import ProgressLine, show_result  # noqa: PLC0415  (see above)
    from fedward_simulations.run import run  # noqa: PLC0415  (see above)

    with ProgressLine(Console(stderr=True, quiet=json)) as line:
        finished = run(overrides or [], config_dir=config_dir, site_column=site, out=out, watcher=line.watcher())
    if json:
        sys.stdout.write(dump(finished.result).decode("utf-8"))
    else:
        show_result(finished, Console())
    raise typer.Exit(_EXIT[finished.result.status])


@compose.command()
def compose_command(
    file: Annotated[Path, typer.Argument(help="The study file to write")],
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    site: SiteColumn = None,
) -> None:
    """Write the study that these overrides make, its sites named and its noise calibrated, ready to be signed."""
    from fedward_common.study_file import StudyFile  # noqa: PLC0415  (commands load what they use)
    from fedward_simulations.run import compose_plan  # noqa: PLC0415  (see above)

    _, _, study = compose_plan(overrides or [], config_dir=config_dir, site_column=site)
    with file.open("xb") as handle:
        handle.write(StudyFile(study).dump())
    typer.echo(f"{file}: {study.name} {study.digest}")


@new.command()
def new_command(  # noqa: PLR0917  (each is an option of the command line)
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and _")],
    table: Annotated[list[Path], typer.Option(help="CSV or Parquet; once for each hospital")],
    label: Annotated[str, typer.Option(help="Column with the outcome")],
    positive: Annotated[str | None, typer.Option(help="Value that counts as the outcome")] = None,
    patient: Annotated[str | None, typer.Option(help="Column that identifies the patient")] = None,
    time: Annotated[list[str] | None, typer.Option(help="Column with a date or time; left out")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Column to leave out")] = None,
    missing: Annotated[list[str] | None, typer.Option(help="Mark that means missing, for example -1")] = None,
    site: SiteColumn = None,
    folder: Annotated[Path, typer.Option(help="Your folder of groups")] = Path("studies"),
) -> None:
    """Draft a study and its schema from tables of your own, for you to review."""
    from fedward_simulations.drafting import draft_study  # noqa: PLC0415  (commands load what they use)

    written = draft_study(
        name,
        table,
        label=label,
        positive=positive,
        patient=patient,
        ignore=tuple(ignore or ()),
        time=tuple(time or ()),
        missing=tuple(missing or ()),
        site_column=site,
        folder=folder,
    )
    for path in written:
        typer.echo(f"wrote {path}")
    typer.echo("review the lines marked `# review`, then:")
    typer.echo(f"  fedward simulate --config-dir {folder} study={name}")


@data.callback()
def data_root() -> None:
    """Download data sets with pinned digests."""


@data.command("get")
def get_command(
    name: Annotated[str, typer.Argument(help="heart_disease")],
    folder: Annotated[
        Path | None, typer.Option(help="Where to put it; by default FEDWARD_DATA or ~/.fedward/data")
    ] = None,
) -> None:
    """Download a data set from its publisher and check its SHA-256."""
    from fedward_simulations.downloads import fetch  # noqa: PLC0415  (commands load what they use)
    from fedward_simulations.federation import data_folder  # noqa: PLC0415  (see above)

    for path in fetch(name, (folder or data_folder()) / name):
        typer.echo(f"{path}")
