"""One simulation, from overrides to a folder with its result, report and model."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedward_common.errors import SchemaMismatchError
from fedward_common.study import FLTrust, Study
from fedward_conf.compose import compose_study
from fedward_server.checkpoint import write_atomically
from fedward_server.coordinator import Coordinator, Listener, write_result
from fedward_server.evaluation import HoldOut, TorchPredictor
from fedward_server.result import RunResult
from fedward_server.root import RootTrainer, TorchRootTrainer, judged_part, root_rows
from fedward_simulations.baselines import measure_baselines
from fedward_simulations.federation import Federation, assemble, settle
from fedward_simulations.plan import Plan, draft_plan
from fedward_simulations.pool import WorkerPool
from fedward_simulations.predictor import PoolPredictor, PoolRootTrainer

__all__ = ["Finished", "Watcher", "compose_plan", "run"]

_REPORT = "fedward_server.report"
_PLENTY = 4 << 30  # bytes


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who is told what while a simulation runs."""

    started: Callable[[Study], None] = lambda _: None
    rejected: Callable[[str, SchemaMismatchError], None] = lambda _, __: None
    round: Listener = lambda _: None
    phase: Callable[[str], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished simulation and the folder that it left."""

    result: RunResult
    study: Study
    folder: Path


def compose_plan(
    overrides: Sequence[str], *, config_dir: Path | None = None, site_column: str | None = None
) -> tuple[Plan, Federation, Study]:
    """Return the composed plan, its tables, and the contract with its sites named and its noise calibrated.

    Args:
        overrides: see `fedward_conf.compose.compose_study`.
        config_dir: the user's folder of groups.
        site_column: one site for each value of this column.

    Raises:
        FedwardError: with everything that is wrong, and the remedy.
    """
    plan = draft_plan(compose_study(overrides, config_dir=config_dir), site_column=site_column)
    federation = assemble(plan.source, plan.study.cohort, seed=plan.study.seed)
    return plan, federation, plan.with_sites(federation)


def run(
    overrides: Sequence[str],
    *,
    config_dir: Path | None = None,
    site_column: str | None = None,
    out: Path = Path("runs"),
    watcher: Watcher | None = None,
) -> Finished:
    """Run a study over simulated hospitals.

    Returns with whatever came of it: ``result.status`` says whether the run was completed, degraded, interrupted
    or failed. Patients' rows are copied into a temporary folder that is gone afterwards.

    Raises:
        FedwardError: the study, the tables or this computer is at fault; nothing was started.
    """
    watcher = watcher or Watcher()
    plan, federation, study = compose_plan(overrides, config_dir=config_dir, site_column=site_column)
    judged, _ = judged_part(study, federation.hold_out, _nobody)  # a hold-out too small for a root is said at once
    watcher.started(study)
    for site, error in sorted(federation.rejected.items()):
        watcher.rejected(site, error)
    folder = _new_folder(out, study.name)
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedward-", dir=_scratch())))
        pool = _LazyPool(plan, stack)
        homes = settle(federation, study, plan.policy, root / "sites")
        if plan.engine.report:
            threading.Thread(
                target=importlib.import_module, args=(_REPORT,), daemon=True
            ).start()  # while workers wake up
        result = _run_engine(plan, study, federation, homes, folder=folder, scratch=root, pool=pool, watcher=watcher)
        if plan.engine.baselines and result.status in {"completed", "degraded"}:
            watcher.phase("baselines")
            baselines = measure_baselines(study, homes, judged, pool())
            result = result.model_copy(update={"baselines": baselines})
            write_result(folder, study, result)
    if not plan.engine.report:
        return Finished(result, study, folder)
    watcher.phase("report")
    report: str = importlib.import_module(_REPORT).render_report(result, study)
    write_atomically(folder / "report.html", report.encode("utf-8"))
    return Finished(result, study, folder)


class _LazyPool:
    """The workers, started when somebody first asks: daemons and Ray bring their own."""

    def __init__(self, plan: Plan, stack: contextlib.ExitStack) -> None:
        self._plan, self._stack = plan, stack
        self._pool: WorkerPool | None = None

    def __call__(self) -> WorkerPool:
        if self._pool is None:
            self._pool = self._stack.enter_context(WorkerPool(self._plan.engine.workers))
        return self._pool


def _run_engine(  # noqa: PLR0913  (what a run needs, by name)
    plan: Plan,
    study: Study,
    federation: Federation,
    homes: dict[str, Path],
    *,
    folder: Path,
    scratch: Path,
    pool: _LazyPool,
    watcher: Watcher,
) -> RunResult:
    hold_out, name = federation.hold_out, plan.engine.name
    features = hold_out.rows.features
    local = name == "local"
    predictor = PoolPredictor(study, features, scratch, pool()) if local else TorchPredictor(study, features)
    # These sites, their books and their SuperLink end with this process: a journal would have nobody to go on with.
    root = _root_trainer(study, hold_out, scratch, pool if local else None)
    coordinator = Coordinator(study, hold_out, predictor, folder, name, watcher.round, resumable=False, root=root)
    match name:
        case "local":
            from fedward_simulations.engines.local import LocalGrid  # noqa: PLC0415  (one engine is imported)

            grid = LocalGrid(homes, pool())
            coordinator.run(grid, grid.roster, poll_seconds=0)
        case "ray":
            from fedward_simulations.engines.ray import run_on_ray  # noqa: PLC0415  (see above)

            run_on_ray(coordinator, homes, workers=plan.engine.workers)
        case "deployed":
            from fedward_simulations.engines.deployed import Deployed  # noqa: PLC0415  (see above)

            with Deployed(homes, scratch / "logs") as (deployed, context, roster):
                coordinator.server_app(roster)(deployed, context)
    if coordinator.result is None:
        msg = f"engine={name} ended without a result"
        raise RuntimeError(msg)
    return coordinator.result


def _root_trainer(study: Study, hold_out: HoldOut, scratch: Path, pool: _LazyPool | None) -> RootTrainer | None:
    if not isinstance(study.aggregation, FLTrust):
        return None
    rows = root_rows(study, hold_out)
    return TorchRootTrainer(study, rows) if pool is None else PoolRootTrainer(study, rows, scratch, pool())


def _nobody(_: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return np.zeros(0)


def _scratch() -> Path | None:
    """Return memory for the simulated hospitals' folders, where there is plenty: their ledgers sync each round."""
    memory = Path("/dev/shm")  # noqa: S108  (a fresh folder of mode 0700 is made in it)
    try:
        return memory if shutil.disk_usage(memory).free > _PLENTY else None
    except OSError:
        return None


def _new_folder(out: Path, study: str) -> Path:
    """Make and return ``out/<study>/<time>``; a second run in the same second gets a suffix."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 100))):
        folder = out / study / f"{stamp}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    msg = f"no free folder below {out / study}"
    raise FileExistsError(msg)
