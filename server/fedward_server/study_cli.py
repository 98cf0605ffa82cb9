"""The commands of a study's author: ``fedward study key|sign|verify|show``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedward_common.signing import create_key, key_fingerprint, load_private_key, public_text
from fedward_common.study_file import StudyFile, read_study_file

__all__ = ["key", "show", "sign", "verify"]

key = typer.Typer(add_completion=False)
sign = typer.Typer(add_completion=False)
verify = typer.Typer(add_completion=False)
show = typer.Typer(add_completion=False)

StudyPath = Annotated[Path, typer.Argument(help="A study file, for example runs/…/study.json")]


@key.command()
def key_command(
    file: Annotated[Path, typer.Argument(help="Where to write the private key; FILE.pub beside it")],
) -> None:
    """Make an Ed25519 key for signing studies."""
    if file.exists():
        typer.echo(f"error: {file} is there already; a key is never overwritten", err=True)
        raise typer.Exit(1)
    public = public_text(create_key(file).public_key())
    typer.echo(f"{file} (keep it), {file.with_suffix('.pub')} (give it away)")
    typer.echo(f"fingerprint: {key_fingerprint(public)}")


@sign.command()
def sign_command(
    file: StudyPath, key: Annotated[Path, typer.Option(help="The private key, made by `fedward study key`")]
) -> None:
    """Add a signature to a study file."""
    from fedward_server.checkpoint import write_atomically  # noqa: PLC0415  (commands load what they use)

    signed = read_study_file(file).signed(load_private_key(key))
    write_atomically(file, signed.dump())
    typer.echo(f"{file}: {len(signed.signatures)} signatures over {signed.study.digest}")


@verify.command()
def verify_command(
    file: StudyPath, key: Annotated[list[Path], typer.Option(help="A trusted public key file (.pub); may be repeated")]
) -> None:
    """Check that a trusted key signed exactly this study."""
    signer = read_study_file(file).verify([path.read_text(encoding="ascii").strip() for path in key])
    typer.echo(f"good: signed by {signer} ({key_fingerprint(signer)})")


@show.command()
def show_command(file: StudyPath) -> None:
    """Print a study as a person reads it."""
    typer.echo(_described(read_study_file(file)))


def _described(file: StudyFile) -> str:
    import yaml  # noqa: PLC0415  (commands load what they use)

    contract = file.study.contract()
    text = yaml.safe_dump(contract, sort_keys=False, allow_unicode=True, width=110)
    signers = "".join(f"# signed by {s.key}\n" for s in file.signatures) or "# not signed\n"
    return f"# digest {file.study.digest}\n{signers}{text}"
