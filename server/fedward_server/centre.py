"""The centre's folder: an authority, a launcher's configuration, a roster. Everything that a federation cannot lose.

::

    <home>/
      superlink.json        what the launcher reads
      ca.pem, ca.key        the authority that hospitals pin by its fingerprint
      server.pem            the public listener's certificate and key; renewed by the launcher
      roster.sqlite         which hospital is known by which key
      roster.key, .pub      what signs the roster
      secret                what the coordinator and the launcher share
      state.db              Flower's own state
      studies.sqlite        the book of studies, and runs/ with a folder for each (`fedward_server.studies`)
      access.json           who may do what at the console, as hashes of tokens
      audit.jsonl           the log of decisions, with audit.head and audit.key (`fedward_common.audit`)
"""

from __future__ import annotations

import datetime as dt
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fedward_common.certificates import create_authority, fingerprint, issue_server_certificate, write_private
from fedward_common.enrolment import Invite
from fedward_common.errors import CoordinatorError, InstallationError
from fedward_common.files import replace_file
from fedward_common.signing import create_key, load_public_key, public_text
from fedward_server.roster import Roster
from fedward_server.superlink import SuperLinkConfig, load_config, open_roster
from fedward_server.warden import CERTIFICATE_DAYS

__all__ = ["AUTHORITY_DAYS", "CONSOLE_PORT", "INVITE_DAYS", "create_centre", "invitation", "load_centre", "roster_of"]

AUTHORITY_DAYS: Final = 3650
"""Days that a centre's authority is valid. A hospital pins it, so it outlives every other key here."""
INVITE_DAYS: Final = 7
CONSOLE_PORT: Final = 8470
"""Loopback port of the interface for the central team, unless the centre says otherwise."""

_SECRET_BYTES: Final = 48
_PRIVATE_PORT: Final = 9094


def create_centre(  # noqa: PLR0913  (what an administrator must say, by name)
    home: Path,
    host: str,
    port: int,
    now: dt.datetime,
    *,
    other_hosts: Sequence[str] = (),
    bind: str = "0.0.0.0",  # noqa: S104  (hospitals reach this listener; it speaks TLS and answers the Fleet API alone)
    private_port: int = _PRIVATE_PORT,
    study_keys: Sequence[str] = (),
    console_port: int = CONSOLE_PORT,
) -> Path:
    """Make the folder of a new centre and return its ``superlink.json``.

    Args:
        home: made with mode 0700.
        host: name or address under which hospitals reach this centre; it is part of every invite.
        port: port of the public listener.
        now: aware; certificates are valid from then on.
        other_hosts: further names and addresses for the server's certificate.
        bind: address that the public listener listens on.
        private_port: loopback port of the coordinator's listener.
        study_keys: public keys (``ed25519:…``) that will sign studies; told to hospitals that enrol.
        console_port: loopback port of the interface for the central team.

    Raises:
        InstallationError: there is a centre already.
        SignatureError: a study key is none.
    """
    path = home / "superlink.json"
    if path.exists() or (home / "ca.key").exists():
        msg = f"{home} is a centre already"
        raise InstallationError(msg, remedy="choose another --home; a second authority would shut every hospital out")
    keys = [public_text(load_public_key(key)) for key in study_keys]
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = create_authority(now, days=AUTHORITY_DAYS, name=f"Fedward CA of {host}"[:64])
    server = issue_server_certificate(authority, now, [host, *other_hosts], days=CERTIFICATE_DAYS)
    write_private(home / "ca.key", authority.key_pem())
    replace_file(home / "ca.pem", authority.certificate_pem(), mode=0o644)
    write_private(home / "server.pem", server.certificate_pem + server.key_pem)
    write_private(home / "secret", secrets.token_bytes(_SECRET_BYTES))
    create_key(home / "roster.key")
    settings = {
        "database": "state.db",
        "certificate": "server.pem",
        "certificate_key": "server.pem",
        "secret": "secret",
        "public_host": bind,
        "public_port": port,
        "private_port": private_port,
        "roster": "roster.sqlite",
        "roster_key": "roster.key",
        "ca": "ca.pem",
        "ca_key": "ca.key",
        "study_keys": keys,
        "advertised": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "console": f"127.0.0.1:{console_port}",
    }
    replace_file(path, (json.dumps(settings, indent=2) + "\n").encode())
    return path


def load_centre(home: Path) -> SuperLinkConfig:
    """Return the launcher's configuration in a centre's folder.

    Raises:
        InstallationError: there is none, or it is wrong.
    """
    path = home / "superlink.json"
    if not path.exists():
        msg = f"{home} is no centre: there is no superlink.json"
        raise InstallationError(msg, remedy="fedward server init HOST makes one; or name it with --home")
    return load_config(path)


def roster_of(config: SuperLinkConfig) -> Roster:
    """Return the centre's roster.

    Raises:
        InstallationError: its launcher works without one.
    """
    roster = open_roster(config)
    if roster is None:
        msg = "this centre has no roster"
        raise InstallationError(msg, remedy="set roster, roster_key, ca and advertised in superlink.json")
    return roster


def invitation(config: SuperLinkConfig, site: str, now: dt.datetime, *, days: int = INVITE_DAYS) -> Invite:
    """Return a new invite for `site`; the only copy of its token.

    Raises:
        InstallationError: the configuration lacks the authority or the address.
        CoordinatorError: the address is of no known form.
    """
    roster = roster_of(config)
    host, _, port = config.advertised.rpartition(":")
    if config.ca is None or not port.isdigit() or not host:
        msg = "superlink.json does not say where hospitals reach this centre"
        raise InstallationError(msg, remedy='add "advertised": "HOST:PORT"')
    token = roster.invite(site, now, days=days)
    invite = Invite(host, int(port), site, fingerprint(config.ca.read_bytes()), token)
    if Invite.parse(invite.text()) != invite:
        msg = "the invite would not be readable"
        raise CoordinatorError(msg, remedy="the name of a site has letters, digits, full stop, dash and underscore")
    return invite
