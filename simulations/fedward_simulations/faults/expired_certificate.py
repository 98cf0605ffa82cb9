"""The centre's certificate expires in the middle of a study, and is renewed later.

    python -m fedward_simulations.faults.expired_certificate [--seed N] [--json]

Between two rounds the launcher takes up a certificate that expired yesterday, as where nobody renewed it, and one site
starts again: it does not connect any more, and says why in its log; the rounds go on without it. The others, whose
connections stand, take part all the time. Then the certificate is renewed by the launcher's own code, without a restart
of anything: the site connects and takes part to the end. Rounds wait while the scene is changed, so that it is known
which of them the site has to miss.
"""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedward_common.certificates import certificate_hosts, issue_server_certificate, load_authority
from fedward_common.errors import InstallationError
from fedward_common.files import replace_file
from fedward_server.centre import load_centre
from fedward_server.result import RunResult
from fedward_server.run_status import RunStatus, read_status, write_wish
from fedward_server.superlink import SuperLinkConfig
from fedward_server.warden import Certificates
from fedward_simulations.engines.centre import Installation
from fedward_simulations.faults.centre_stage import SITES, rehearse_installed
from fedward_simulations.faults.stage import await_true, main_of

__all__ = ["Expiry", "campaign"]

_CONNECTED: Final = '"connected"'
_BACK_WITHIN: Final = 5
_RUN_S: Final = 300.0
_EXPIRED: Final = "the coordinator's certificate has expired"


@dataclass
class Expiry:
    """The certificate expires behind round `struck`, while `who` starts again; it is renewed some rounds later.

    Attributes:
        away: the first round that the site misses, and the last one that it may miss: in the round after it is back
            it says who it is, and nobody waits for that.
        missed: the rounds that it missed.
    """

    who: str
    struck: int
    away: tuple[int, int] = (0, 0)
    missed: list[int] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def act(self, installation: Installation, run_folder: Path) -> int | None:
        """See `rehearse_installed`."""
        config = load_centre(installation.home)
        log, superlink = (installation.logs / f"{name}.log" for name in (self.who, "superlink"))
        process = installation.start_application(run_folder)
        await_true(lambda: _status(run_folder).round >= self.struck, _RUN_S)
        first = _paused(run_folder) + 1
        _expire(config)
        await_true(lambda: _count(superlink, "certificate_reloaded") == 1)
        connected = _count(log, _CONNECTED)
        daemon = installation.start_site(self.who)
        await_true(lambda: _count(log, _EXPIRED) > 0)
        write_wish(run_folder, "run")
        await_true(lambda: _status(run_folder).round >= first, _RUN_S)
        self.away = first, _paused(run_folder) + _BACK_WITHIN
        _renew(config)
        await_true(lambda: _count(log, _CONNECTED) > connected)
        self.notes |= {
            "lines_that_say_why": _count(log, _EXPIRED),
            "reloaded": _count(superlink, "certificate_reloaded"),
        }
        write_wish(run_folder, "run")
        await_true(lambda: process.ended, _RUN_S)
        self.notes["site_started_again"] = daemon.ended
        self.missed = _missed(run_folder, self.who)
        return process.exit_code

    def excuses(self, round_: int, site: str) -> bool:
        """Return whether the site cannot take part in a round."""
        return site == self.who and self.away[0] <= round_ <= self.away[1]


def campaign(folder: Path, seed: int, *, rounds: int = 30) -> dict[str, Any]:
    """Return the figures of a study without privacy and of one with it."""
    draw = random.Random(seed)  # noqa: S311  (a plan, no secret)
    figures: dict[str, Any] = {"seed": seed, "rounds": rounds, "flaws": []}
    for private in (False, True):
        kind = "private" if private else "plain"
        fault = Expiry(draw.choice(SITES), draw.randint(1, rounds // 3))
        flaws = rehearse_installed(
            folder / kind, fault.act, rounds=rounds, seed=seed, private=private, excused=fault.excuses
        )
        figures[kind] = {"who": fault.who, "rounds_missed": fault.missed, **fault.notes}
        figures["flaws"] += [f"{kind}: {flaw.rule} at {flaw.site}: {flaw.what}" for flaw in flaws]
        if fault.away[0] not in fault.missed or fault.away[1] >= rounds:
            figures["flaws"].append(f"{kind}: nothing happened in the middle of the study")
    return figures


def _renew(config: SuperLinkConfig) -> None:
    """Let the launcher's own code renew the certificate."""
    if config.ca is None:
        raise _no_authority()
    Certificates(config.ca, config.ca_key, config.certificate, config.certificate_key).renew(dt.datetime.now(dt.UTC))


def _expire(config: SuperLinkConfig) -> None:
    """Put a certificate of the centre's authority in place that was valid until yesterday."""
    if config.ca is None or config.ca_key is None:
        raise _no_authority()
    began = dt.datetime.now(dt.UTC) - dt.timedelta(days=3)
    hosts = certificate_hosts(config.certificate.read_bytes())
    issued = issue_server_certificate(load_authority(config.ca, config.ca_key), began, hosts, days=2)
    replace_file(config.certificate, issued.certificate_pem + issued.key_pem)


def _no_authority() -> InstallationError:
    return InstallationError("this centre has no authority of its own", remedy="fedward server init makes one")


def _missed(folder: Path, site: str) -> list[int]:
    result = RunResult.model_validate_json((folder / "result.json").read_bytes())
    return [entry.round for entry in result.rounds if site not in entry.sites]


def _paused(folder: Path) -> int:
    """Let no further round begin; return how many have closed."""
    write_wish(folder, "pause")
    await_true(lambda: _status(folder).state == "paused")
    return _status(folder).round


def _status(folder: Path) -> RunStatus:
    while (status := read_status(folder)) is None:
        await_true(lambda: read_status(folder) is not None)
    return status


def _count(log: Path, words: str) -> int:
    return log.read_text(encoding="utf-8", errors="replace").count(words) if log.exists() else 0


if __name__ == "__main__":
    main_of(__doc__, campaign)
