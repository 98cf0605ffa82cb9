"""The commands of the central team: ``fedward server study …``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fedward_common.errors import CoordinatorError, LocalDataError
from fedward_server.studies.lifecycle import ENDED, Wish
from fedward_server.studies.remote import DEFAULT_URL, TOKEN_FILE, Remote, read_token

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The studies of this centre.")

Url = Annotated[str, typer.Option(envvar="FEDWARD_URL", help="Where the centre's interface is")]
TokenFile = Annotated[Path, typer.Option(help="File of mode 0600 with your token; FEDWARD_TOKEN comes first")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The study's number, from `list`")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else")]

_WAIT_S: Final = 20.0
_GOOD: Final = frozenset({"completed", "degraded"})
_FILES: Final = ("result.json", "privacy.json", "report.html", "model.safetensors")


def _centre(url: str, file: Path) -> Remote:
    return Remote(url, read_token(os.environ, file))


@app.command("submit")
def submit_command(
    file: Annotated[Path, typer.Argument(help="A signed study file")],
    hold_out: Annotated[str | None, typer.Option(help="Name of a file in the centre's folder hold-outs")] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = TOKEN_FILE,
) -> None:
    """Hand a signed study in; it starts as soon as its hospitals are free."""
    try:
        content = file.read_bytes()
    except OSError as error:
        msg = f"{file} cannot be read ({error.strerror})"
        raise LocalDataError(msg, remedy="fedward study compose and fedward study sign make one") from error
    with _centre(url, token_file) as centre:
        query = {"hold_out": hold_out} if hold_out else {}
        entry = centre.post("/studies", content=content, **query)
    typer.echo(_line(entry))


@app.command("list")
def list_command(as_json: AsJson = False, url: Url = DEFAULT_URL, token_file: TokenFile = TOKEN_FILE) -> None:
    """List the studies, the newest last."""
    with _centre(url, token_file) as centre:
        entries = centre.get("/studies")["studies"]
    if as_json:
        typer.echo(json.dumps(entries))
        return
    for entry in entries:
        typer.echo(_line(entry))
    if not entries:
        typer.echo("no study yet: fedward server study submit FILE")


@app.command("show")
def show_command(id_: Id, as_json: AsJson = False, url: Url = DEFAULT_URL, token_file: TokenFile = TOKEN_FILE) -> None:
    """Show one study and where it stands."""
    with _centre(url, token_file) as centre:
        found = centre.get(f"/studies/{id_}")
    typer.echo(json.dumps(found) if as_json else _page(found))


@app.command("watch")
def watch_command(id_: Id, url: Url = DEFAULT_URL, token_file: TokenFile = TOKEN_FILE) -> None:
    """Print a line whenever something happens, until the study has ended; exit code 1 if it came to no good end."""
    seen, said = "", ""
    with _centre(url, token_file) as centre:
        while True:
            found = centre.get(f"/studies/{id_}", seen=seen, wait=_WAIT_S)
            seen, line = found["version"], _progress(found)
            if line != said:
                typer.echo(line)
                said = line
            if found["study"]["state"] in ENDED:
                raise typer.Exit(0 if found["study"]["state"] in _GOOD else 1)


@app.command("pause")
def pause_command(id_: Id, url: Url = DEFAULT_URL, token_file: TokenFile = TOKEN_FILE) -> None:
    """Let a study ask no hospital anything after its open round."""
    _wish(id_, "pause", url, token_file)


@app.command("resume")
def resume_command(id_: Id, url: Url = DEFAULT_URL, token_file: TokenFile = TOKEN_FILE) -> None:
    """Let a paused study go on as soon as its hospitals are free."""
    _wish(id_, "resume", url, token_file)


@app.command("stop")
def stop_command(id_: Id, url: Url = DEFAULT_URL, token_file: TokenFile = TOKEN_FILE) -> None:
    """End a study after its last committed round, for good; its result has what there is."""
    _wish(id_, "stop", url, token_file)


def _wish(id_: str, wish: Wish, url: str, token_file: Path) -> None:
    with _centre(url, token_file) as centre:
        typer.echo(_line(centre.post(f"/studies/{id_}/wish", value={"wish": wish})))


@app.command("result")
def result_command(
    id_: Id,
    out: Annotated[Path | None, typer.Option(help="A folder for result, statement, report and model")] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = TOKEN_FILE,
) -> None:
    """Print what a study came to; with --out, fetch its files."""
    with _centre(url, token_file) as centre:
        result = centre.get(f"/studies/{id_}/result")
        fetched = _fetch(centre, id_, out, model=result["model"] is not None) if out else []
    if as_json:
        typer.echo(json.dumps(result))
        return
    typer.echo(_outcome(result))
    for path in fetched:
        typer.echo(f"  {path}")


def _fetch(centre: Remote, id_: str, out: Path, *, model: bool) -> list[Path]:
    """Write a run's files into `out`; nothing is overwritten."""
    names = _FILES if model else _FILES[:-1]
    paths = [out / name for name in names]
    if there := [path for path in paths if path.exists()]:
        msg = f"{there[0]} is there already"
        raise LocalDataError(msg, remedy="give another folder; nothing is overwritten")
    contents = [centre.fetch(f"/studies/{id_}/files/{name}") for name in names]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
    except OSError as error:
        msg = f"{out} cannot be written ({error.strerror})"
        raise CoordinatorError(msg, remedy="give a folder of yours") from error
    return paths


def _line(entry: dict[str, Any]) -> str:
    reason = f"  {entry['reason']}" if entry["reason"] else ""
    return f"{entry['id']} {entry['state']:11s} {entry['name']:24s} {entry['submitted_by']}{reason}"


def _progress(found: dict[str, Any]) -> str:
    entry, status = found["study"], found["status"]
    text = f"{entry['id']} {entry['state']}"
    if status is not None and entry["state"] not in ENDED:
        text += f": {status['state']}, round {status['round']} of {status['rounds']}"
        waiting = sorted(name for name, site in status["sites"].items() if site["state"] == "waiting")
        text += f", waiting for {', '.join(waiting)}" if waiting else ""
        text += f": {status['reason']}" if status["reason"] else ""
    return text + (f" ({entry['reason']})" if entry["reason"] else "")


def _page(found: dict[str, Any]) -> str:
    entry, status = found["study"], found["status"]
    lines = [
        f"{entry['name']}  {entry['id']}",
        f"  state      {entry['state']}" + (f": {entry['reason']}" if entry["reason"] else ""),
        f"  digest     {entry['digest']}",
        f"  submitted  {entry['submitted_at']} by {entry['submitted_by']}",
        *(
            f"  {word:9s}  {entry[key]}"
            for word, key in (("started", "started_at"), ("ended", "ended_at"))
            if entry[key]
        ),
    ]
    if status is None:
        lines.append(f"  hospitals  {', '.join(entry['sites'])}")
        return "\n".join(lines)
    why = f": {status['reason']}" if status["reason"] else ""
    lines.append(f"  round      {status['round']} of {status['rounds']}{why}")
    for name in entry["sites"]:
        site = status["sites"].get(name)
        reason = f": {site['reason']}" if site and site["reason"] else ""
        lines.append(f"  {name:24s} {site['state'] if site else 'not asked yet'}{reason}")
    return "\n".join(lines)


def _outcome(result: dict[str, Any]) -> str:
    reason = f": {result['reason']}" if result["reason"] else ""
    lines = [f"{result['study']['name']}  {result['status']}{reason}", f"  rounds     {len(result['rounds'])}"]
    for name, site in result["sites"].items():
        why = f": {site['reason']}" if site["reason"] else ""
        epsilon = f", epsilon {site['epsilon']:.3g}" if site["epsilon"] is not None else ""
        lines.append(f"  {name:24s} {site['status']}, {site['rounds']} rounds{epsilon}{why}")
    for name, figure in result["central"].items():
        if figure["value"] is not None and "." not in name:
            lines.append(f"  {name:24s} {figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})")
    lines.append(f"  model      {result['model']['sha256'] if result['model'] else 'none was released'}")
    return "\n".join(lines)
