"""A study at a whole centre on loopback, something that goes wrong meanwhile, and the verdict on what is left.

As `fedward_simulations.faults.stage`, but with all that a centre has: roster, enrolment, launcher and the process of
the run. Every site must count in every round; without privacy the model must have the bits of the same study where
nothing goes wrong, and with it the books of each site are added up anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from fedward_common.study import Study
from fedward_simulations.engines.centre import Installation
from fedward_simulations.faults.kill_book import Flaw, flaws_of_site, read_book
from fedward_simulations.federation import settle
from fedward_simulations.run import compose_plan, run

__all__ = ["SITES", "rehearse_installed"]

SITES: Final = ("north", "south", "east", "west")
"""Who takes part."""

_STUDY: Final = (
    "study=breast_cancer", "model=linear", "training.local_steps=4", "training.learning_rate=0.5",
    "aggregation.deadline_seconds=120", "engine=deployed", "evaluation.bootstrap=100",
)  # fmt: skip
_PRIVATE: Final = ("privacy=dp", "training.sampling_rate=0.2")
_PLAIN: Final = ("privacy=none",)


def rehearse_installed(
    folder: Path,
    act: Callable[[Installation, Path], int | None],
    *,
    rounds: int,
    seed: int,
    private: bool,
    excused: Callable[[int, str], bool] | None = None,
    environment: Callable[[str], Mapping[str, str]] = lambda _: {},
) -> list[Flaw]:
    """Run a study at four sites and return what is wrong in the end.

    Args:
        folder: does not exist yet.
        act: given the installation and the run's folder, sees to the run's process until the run is over, does to it
            what it wants to, and returns the process's exit code; None: it took too long.
        rounds: of the study.
        seed: of the study.
        private: whether it is trained under differential privacy.
        excused: whether a site may be missing in a round, asked once all is over; None: no site may, in no round.
        environment: see `Installation`.
    """
    folder.mkdir(parents=True)
    overrides = [*_STUDY, *(_PRIVATE if private else _PLAIN), f"training.rounds={rounds}", f"seed={seed}"]
    plan, federation, study = compose_plan(overrides)
    homes = settle(federation, study, plan.policy, folder / "sites")
    approved = {site: json.loads((home / "approvals.json").read_bytes()) for site, home in homes.items()}
    with Installation(folder, homes, environment) as installation:
        run_folder = installation.submit(study)
        code = act(installation, run_folder)
    flaws = list(_flaws_of_run(run_folder, study, code, excused))
    if not private and excused is None:
        flaws += _other_bits(run_folder, folder / "reference", overrides)
    for site, home in homes.items():
        flaws += flaws_of_site(read_book(home, site), [], approved[site], []) if private else []
    return flaws


def _flaws_of_run(
    folder: Path, study: Study, code: int | None, excused: Callable[[int, str], bool] | None
) -> Iterator[Flaw]:
    def flaw(what: str) -> Flaw:
        return Flaw("run_stopped", "centre", what)

    if code != 0 or not (folder / "result.json").exists():
        yield flaw(f"the run's process ended with {code} and left no result")
        return
    result = json.loads((folder / "result.json").read_bytes())
    if result["status"] != ("completed" if excused is None else "degraded"):
        yield flaw(f"the run is {result['status']}: {result['reason']}")
    if [entry["round"] for entry in result["rounds"]] != list(range(1, study.training.rounds + 1)):
        yield flaw(f"{len(result['rounds'])} of {study.training.rounds} rounds are in the result")
    for entry in result["rounds"]:
        wanted = {site for site in study.sites if excused is None or not excused(entry["round"], site)}
        for site in sorted(wanted - set(entry["sites"])):
            yield flaw(f"round {entry['round']} lacks {site}: {entry['missing'].get(site)}")


def _other_bits(folder: Path, reference: Path, overrides: Sequence[str]) -> list[Flaw]:
    """Return a flaw if the model is not that of the same study that nobody disturbs."""
    calm = [*(item for item in overrides if not item.startswith("engine")), "engine=local", "engine.report=false"]
    expected = run([*calm, "engine.baselines=false"], out=reference).result.model
    with suppress(FileNotFoundError):
        model = json.loads((folder / "result.json").read_bytes())["model"]
        if expected is not None and model is not None and model["sha256"] == expected.sha256:
            return []
    return [Flaw("run_stopped", "centre", "the model has other bits than an undisturbed run's")]
