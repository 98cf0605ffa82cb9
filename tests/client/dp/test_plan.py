"""The plan is the only door, gives what was debited and no more, and its noise is what was paid for."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fedward_client
from fedward_client.cohorts import Patients
from fedward_client.dp import plan as plan_module
from fedward_client.dp.plan import PrivacyPlan, PrivateSteps
from fedward_client.dp.sums import ClippedSum
from fedward_client.losses import patient_losses
from fedward_common.errors import StudyError, UnsafeModelError
from fedward_common.models import build_model
from fedward_common.privacy import round_spend
from fedward_common.study import Study
from tests.builders import patients_of, private_study, small_study

WIDE = {"name": "mlp", "hidden": [2000]}


def plan_of(study: Study) -> PrivacyPlan:
    found = PrivacyPlan.of(study)
    assert found is not None
    return found


def steps_of(study: Study, patients: Patients | None = None, *, zero: bool = False) -> PrivateSteps:
    model = build_model(study)
    if zero:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    return plan_of(study).open(model, patient_losses, patients or patients_of(study))


def flat(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def without_noise(total: ClippedSum, _sigma: float, _tier: str) -> tuple[torch.Tensor, ...]:
    return total.tensors


def test_a_study_without_privacy_has_no_plan() -> None:
    assert PrivacyPlan.of(small_study()) is None


def test_an_uncalibrated_study_has_no_plan() -> None:
    study = small_study(privacy={"mechanism": "dp_sgd", "epsilon": 8, "delta": 1e-4, "clip_norm": 1})
    with pytest.raises(StudyError, match="not calibrated"):
        PrivacyPlan.of(study)


def test_a_plan_costs_what_the_ledger_debits() -> None:
    study = private_study(training={"local_steps": 7, "sampling_rate": 0.25})
    assert plan_of(study).spend == round_spend(study)


def test_no_step_beyond_the_debited_ones() -> None:
    steps = steps_of(private_study(training={"local_steps": 3}))
    for _ in range(3):
        steps.gradient()
    with pytest.raises(RuntimeError, match="3 noised steps that were debited are used up"):
        steps.gradient()


@pytest.mark.parametrize("tier", ["gaussian", "discrete_gaussian"])
@pytest.mark.parametrize(("loss", "share"), [("withheld", 0.0), ("noised", 0.19)])
def test_the_gradient_s_noise_is_what_was_paid_for(tier: str, loss: str, share: float) -> None:
    """A clip so small that the gradient is nothing beside the noise: σ · C / (√(1 - share) · expected)."""
    privacy: Mapping[str, object] = {
        "noise_multiplier": 5.0, "clip_norm": 1e-3, "noise": tier, "loss": loss, "loss_share": share or 0.05,
    }  # fmt: skip
    study = private_study(model=WIDE, training={"sampling_rate": 0.5}, privacy=privacy)
    found = flat(steps_of(study, patients_of(study, rows=20)).gradient())
    assert float(found.std()) == pytest.approx(5.0 * 1e-3 / 10 / math.sqrt(1 - share), rel=0.03)


def test_the_loss_s_noise_is_what_was_paid_for() -> None:
    """What a patient moves, gradient and loss together, over the noise of each, is 1 / σ: one event of the ledger."""
    privacy = {"noise_multiplier": 3.0, "loss": "noised", "loss_share": 0.36, "loss_bound": 50.0}
    study = private_study(privacy=privacy)
    plan = plan_of(study)
    assert 1 / plan.gradient_noise**2 + 1 / plan.loss_noise**2 == pytest.approx(1 / 3.0**2)
    found = np.array([steps_of(study, zero=True)._noised_loss(torch.zeros(5)) for _ in range(400)])
    assert found.std() == pytest.approx(50.0 * 3.0 / 0.6, rel=5.5 / math.sqrt(2 * 400))


def test_a_patient_s_loss_counts_at_most_its_bound_and_a_nan_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "noised", without_noise)
    steps = steps_of(private_study(privacy={"loss": "noised", "loss_bound": 2.0}))
    hostile = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -5.0, 0.5])
    assert steps._noised_loss(hostile) == pytest.approx(2.0 + 2.0 + 0.5)


def test_the_released_loss_is_the_mean_over_steps_and_stays_in_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    study = private_study(privacy={"loss": "noised"}, training={"local_steps": 2})
    with monkeypatch.context() as patched:
        patched.setattr(plan_module, "noised", without_noise)
        steps = steps_of(study, zero=True)
        assert math.isnan(steps.mean_loss)
        steps.gradient()
        steps.gradient()
        assert steps.mean_loss == pytest.approx(math.log(2), rel=1e-5)
    loud = private_study(privacy={"loss": "noised", "noise_multiplier": 1e4})
    for _ in range(20):
        steps = steps_of(loud)
        steps.gradient()
        assert 0.0 <= steps.mean_loss <= 2.0


def test_a_withheld_loss_is_no_number() -> None:
    steps = steps_of(private_study())
    steps.gradient()
    assert math.isnan(steps.mean_loss)


@pytest.mark.parametrize("engine", ["auto", "bookkeeping", "ghost", "hooks"])
def test_every_engine_gives_the_same_gradient(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "noised", without_noise)
    torch.manual_seed(3)
    model = build_model(private_study(model={"name": "mlp", "hidden": [5]}))
    found = []
    for name in ("bookkeeping", engine):
        study = private_study(model={"name": "mlp", "hidden": [5]}, privacy={"engine": name, "clip_norm": 0.1})
        steps = plan_of(study).open(model, patient_losses, patients_of(study))
        found.append(flat(steps.gradient()))
        assert name in {"auto", steps.engine}
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-7)


def test_a_patient_with_fifty_records_costs_what_one_with_one_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "noised", without_noise)
    study = private_study(model={"name": "mlp", "hidden": [5]}, privacy={"clip_norm": 0.1})
    torch.manual_seed(3)
    model, one = build_model(study), patients_of(study, rows=10)
    fifty = Patients(*(np.repeat(a, 50, axis=1) for a in (one.features, one.labels, one.mask)))
    rng = np.random.default_rng(1)
    fifty.features[4] = rng.normal(size=fifty.features[4].shape) * 100
    fifty.labels[4] = rng.random(50) < 0.5
    gone = Patients(fifty.features.copy(), fifty.labels, fifty.mask)
    gone.features[4] = np.nan
    found = [flat(plan_of(study).open(model, patient_losses, rows).gradient()) for rows in (fifty, gone)]
    assert 0 < float((found[0] - found[1]).norm()) <= 0.1 / 10 * (1 + 1e-4)


def test_drawn_records_and_views_reach_the_sampler() -> None:
    study = private_study(training={"records_per_patient": 2})
    rows = Patients(*(np.repeat(a, 9, axis=1) for a in vars_of(patients_of(study))))
    features, _, _ = steps_of(study, rows)._sampler.draw()
    assert features.shape[1] == 2


def vars_of(patients: Patients) -> tuple[np.ndarray, ...]:
    return patients.features, patients.labels, patients.mask


def test_an_empty_batch_gives_noise_and_counts_as_a_step() -> None:
    steps = steps_of(private_study(training={"sampling_rate": 1e-9, "local_steps": 1}))
    assert float(flat(steps.gradient()).abs().min()) > 0
    with pytest.raises(RuntimeError):
        steps.gradient()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_with_batch_statistics_has_no_steps(*, frozen: bool) -> None:
    model = nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[1].requires_grad_(not frozen)
    study = private_study()
    with pytest.raises(UnsafeModelError, match="1: BatchNorm1d"):
        plan_of(study).open(model, patient_losses, patients_of(study))


def test_nothing_but_the_plan_builds_a_sampler_an_engine_or_noise() -> None:
    """Whoever could would train beside the accounting."""
    root = Path(fedward_client.__file__).parent
    doors = {"sampling": {"dp/plan.py"}, "noise": {"dp/plan.py"}, "choose": {"dp/plan.py"}}
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        for module in _imports(path):
            part = module.removeprefix("fedward_client.dp.")
            if part in doors and not name.startswith(f"dp/{part}"):
                assert name in doors[part], f"{name} imports {module}"


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found
