"""kill -9 of a site's daemon, its nursery or its child, again and again, while a real private study runs.

    python -m fedward_simulations.faults.kills [--kills N] [--seed N] [--json]

A SuperLink, a coordinator and three daemons train on loopback. A supervisor starts a dead daemon again at once, as
systemd does with Restart=always. Each kill is aimed, by the seed, at a site, at one of its processes and at a moment:
any time, or a few milliseconds after a message came, the log or the ledger grew, a child was forked, a reply was kept.
In one round one site is struck, once or twice: the study's quorum lets one of three be away. The round waits for its
kills (`fedward_simulations.faults.killer`), however slow the computer is. Afterwards the books alone are judged
(`fedward_simulations.faults.kill_book`); whatever is wrong is listed, and the exit code is 1.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, cast

from flwr.app import Message
from flwr.serverapp import Grid

from fedward_common.study import Study
from fedward_server.checkpoint import read_checkpoint
from fedward_server.coordinator import Coordinator
from fedward_server.evaluation import TorchPredictor
from fedward_server.rounds import Roster
from fedward_simulations.engines.deployed import Deployed
from fedward_simulations.faults.kill_book import (
    RULES,
    Flaw,
    flaws_of_run,
    flaws_of_site,
    read_book,
)
from fedward_simulations.faults.killer import Kill, Killer, Supervisor, volleys_of
from fedward_simulations.faults.stage import Ear, main_of
from fedward_simulations.federation import settle
from fedward_simulations.run import compose_plan

__all__ = ["campaign"]

_STUDY: Final = (
    "study=breast_cancer", "model=linear", "privacy=dp", "training.local_steps=4", "training.sampling_rate=0.2",
    "training.learning_rate=0.5", "aggregation.quorum=2", "aggregation.deadline_seconds=180", "engine=deployed",
    "cohort.source.hospitals.north=0.4", "cohort.source.hospitals.south=0.3", "cohort.source.hospitals.east=0.3",
    "~cohort.source.hospitals.west", "evaluation.bootstrap=100",
)  # fmt: skip
_TAIL: Final = 3
_HOLD_S: Final = 0.2
_HEARTBEAT_S: Final = 60.0  # a daemon takes half a minute to start on a computer with four times its load


class _Ear(Ear):
    """A grid that notes what arrives and keeps a round open for the killer.

    Args:
        grid: the run's.
        roster: site names by node.
        study: what is trained.
        killer: whose volleys the rounds wait for.
    """

    def __init__(self, grid: Grid, roster: Roster, study: Study, killer: Killer) -> None:
        super().__init__(grid, roster, study, opens=killer.open)
        self._killer = killer
        self._asked: dict[str, str] = {}
        self._held: dict[str, Message] = {}

    def push_named(self, messages: Iterable[Message], note: Callable[[list[str]], None]) -> list[str]:
        """Send messages, the first of a round once its volley watches; the first roll call is round 0."""
        sent = list(messages)
        identifiers = super().push_named(sent, note)
        self._asked |= {key: self.roster[m.metadata.dst_node_id] for key, m in zip(identifiers, sent, strict=True)}
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return what has arrived, but not from a site whose volley is not over."""
        wanted = list(message_ids)
        waiting = [key for key in wanted if key not in self._held]
        for reply in super().pull_messages(waiting) if waiting else ():
            key = reply.metadata.reply_to_message_id
            self._held[key] = reply
            self._killer.answered(self._asked[key], itself=not reply.has_error())
        patience = 0.0 if waiting else _HOLD_S
        free = [key for key in self._held if key in wanted and not self._killer.holds(self._asked[key], patience)]
        return [self._held.pop(key) for key in free]


def campaign(folder: Path, kills: int, seed: int, *, daemons: float = 0.4) -> dict[str, Any]:
    """Run a study under `kills` kills; return what was done, what came of it and every flaw in the books.

    Args:
        folder: an empty folder; the sites' folders are in ``folder/sites`` afterwards.
        kills: how many.
        seed: of the plan.
        daemons: see `volleys_of`.
    """
    started = time.monotonic()
    volleys = volleys_of(kills, seed, daemons=daemons)
    rounds = len(volleys) + len(volleys) // 2 + 3 * _TAIL
    plan, federation, study = compose_plan([*_STUDY, f"training.rounds={rounds}", f"seed={seed}"])
    homes = settle(federation, study, plan.policy, folder / "sites")
    approved = {site: json.loads((home / "approvals.json").read_bytes()) for site, home in homes.items()}
    (folder / "run").mkdir()
    predictor = TorchPredictor(study, federation.hold_out.rows.features)
    coordinator = Coordinator(study, federation.hold_out, predictor, folder / "run", "deployed")
    deployed = Deployed(homes, folder / "logs", heartbeat_s=_HEARTBEAT_S)
    with ExitStack() as stack:
        grid, _, roster = stack.enter_context(deployed)
        supervisor = stack.enter_context(Supervisor(homes, folder / "logs", deployed.processes))
        killer = stack.enter_context(Killer(homes, volleys, supervisor.strike, supervisor.working))
        ear = _Ear(grid, roster, study, killer)
        coordinator.run(cast("Grid", ear), roster)
    result = json.loads((folder / "run" / "result.json").read_bytes())
    checkpoint = folder / "run" / "checkpoint.safetensors"
    flaws = flaws_of_run(
        result,
        ear.arrivals,
        rounds=rounds,
        checkpoint=read_checkpoint(checkpoint).round if checkpoint.exists() else 0,
        last_kill=max((kill.round for kill in killer.kills), default=0),
    )
    for site, home in homes.items():
        marks = [kill.mark for kill in killer.kills if kill.site == site]
        flaws += flaws_of_site(read_book(home, site), ear.arrivals, approved[site], marks)
    if len(killer.kills) != kills:
        flaws.append(Flaw("run_stopped", "centre", f"{len(killer.kills)} of {kills} kills were done"))
    flaws += [Flaw("run_stopped", site, "the daemon ended by itself") for site in supervisor.own_ends]
    return _figures(killer.kills, result, homes) | {
        "seed": seed,
        "shots_too_late": killer.missed,
        "updates_arrived": len(ear.arrivals),
        "daemon_starts_again": supervisor.restarts,
        "flaws": {rule: [f"{flaw.site}: {flaw.what}" for flaw in flaws if flaw.rule == rule] for rule in RULES},
        "seconds": round(time.monotonic() - started, 1),
    }


def _figures(kills: Sequence[Kill], result: Mapping[str, Any], homes: Mapping[str, Path]) -> dict[str, Any]:
    rounds = result["rounds"]
    last = max((kill.round for kill in kills), default=0)
    missing = Counter(str(why).split(" ", 1)[0] for entry in rounds for why in entry["missing"].values())
    changes = Counter(line.event for site, home in homes.items() for line in read_book(home, site).journal)
    return {
        "kills": len(kills),
        "by_target": _counted(kill.shot.target for kill in kills),
        "by_aim": _counted(kill.shot.aim for kill in kills),
        "by_last_entry": _counted(kill.entry for kill in kills),
        "by_last_entry_and_mail": _counted(f"{kill.entry}, mail: {kill.mail}" for kill in kills),
        "by_site": _counted(kill.site for kill in kills),
        "status": result["status"],
        "rounds_committed": len(rounds),
        "rounds_after_the_last_kill": sum(entry["round"] > last for entry in rounds),
        "updates_accepted": sum(len(entry["sites"]) for entry in rounds),
        "updates_missing": dict(sorted(missing.items())),
        "rounds_debited": changes["reserved"],
        "rounds_released": changes["released"],
    }


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


if __name__ == "__main__":
    main_of(__doc__, campaign, kills=200)
