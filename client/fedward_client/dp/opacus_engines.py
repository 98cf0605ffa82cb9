"""The two engines that stand on Opacus: per-sample gradients held by hooks, and ghost clipping with a second backward.

Both attach Opacus' hooks for the length of a call and leave the model as they found it. Clipping, and what becomes of
values that are not finite, is ours: Opacus 1.6 lets one such record into the sum.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
from opacus.grad_sample.gsm_base import OPACUS_PARAM_MONKEYPATCH_ATTRS
from torch import nn

from fedward_client.dp.sums import Part, PatientLosses, Records, clip_factors, trainable
from fedward_common.errors import StudyError

__all__ = ["GhostEngine", "HooksEngine"]

_MODULE_MARKS: Final = ("activations", "max_batch_len", "ft_compute_sample_grad", "autograd_grad_sample_hooks")
_MAKES_ITS_OWN: Final = "ft_compute_sample_grad"
_ALLOWED: Final = 0.02


class HooksEngine:
    """See `fedward_client.dp.sums.Engine`: Opacus' hooks, which hold every patient's gradient at once.

    The first micro-batch of at least two patients is checked: of one patient's loss, everyone else's gradients must be
    zero, and the patient's own must be what autograd finds.

    Args:
        model: whose gradients these are; in training mode whenever a sum is asked for.
        losses: each patient's loss.

    Raises:
        StudyError: Opacus cannot compute the model's per-sample gradients; the message names the layer.
    """

    name = "hooks"

    def __init__(self, model: nn.Module, losses: PatientLosses) -> None:
        _refuse(self.name, [str(error) for error in GradSampleModule.validate(model, strict=False)])
        self._model, self._losses = model, losses
        self._hooks = _Hooks(model, GradSampleHooks(model, batch_first=True, loss_reduction="sum", strict=True))
        self._proved = False
        self._padding = {  # rows that autograd leaves at zero and Opacus does not
            f"{name}.weight".removeprefix("."): module.padding_idx
            for name, module in model.named_modules()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None
        }

    def part(self, records: Records, clip_norm: float) -> Part:
        """See `Engine.part`.

        Raises:
            StudyError: a layer does not keep patients first, mixes them, or gets other gradients than autograd's.
        """
        if len(records[0]) > 1 and not self._proved:
            with torch.random.fork_rng([records[0].device] if records[0].is_cuda else []):
                self._prove(tuple(tensor[:2] for tensor in records))
            self._proved = True
        gradients, losses = self._gradients(records, None)
        with torch.no_grad():
            squares = torch.stack([_squares(gradient) for gradient in gradients if gradient is not None]).sum(dim=0)
            factors, counted = clip_factors(squares, clip_norm)
            sums = [
                torch.zeros(p.shape, dtype=torch.float32, device=p.device)
                if gradient is None
                else _weighted(gradient, factors.to(torch.float32), counted).view_as(p)
                for p, gradient in zip(trainable(self._model), gradients, strict=True)
            ]
        return Part(tuple(sums), losses)

    def _gradients(
        self, records: Records, probe: list[torch.Tensor | None] | None
    ) -> tuple[list[torch.Tensor | None], torch.Tensor]:
        """Return each parameter's per-patient gradients, shape (patients, numbers), float32, and the losses.

        Args:
            records: the micro-batch.
            probe: if given, only the last patient's loss is differentiated, and autograd's gradients are put here.
        """
        patients = len(records[0])
        with self._hooks.attached(), torch.enable_grad():
            losses = _run(self._model, self._losses, records)
            start = torch.ones_like(losses)
            if probe is not None:
                start[:-1] = 0
            torch.autograd.backward(losses, start)
            found: list[torch.Tensor | None] = []
            for name, parameter in _named(self._model):
                sample = parameter.grad_sample  # type: ignore[attr-defined]
                if sample is not None and len(sample) % patients:
                    _refuse(self.name, [f"{name}: {len(sample)} gradients for {patients} patients"])
                if sample is not None and name in self._padding:
                    sample[:, self._padding[name]] = 0
                by_record = None if sample is None else sample.to(torch.float32).view(patients, -1, parameter.numel())
                if by_record is not None and by_record.shape[1] > 1:
                    by_record = by_record.sum(dim=1, keepdim=True)
                found.append(None if by_record is None else by_record.squeeze(1))
                if probe is not None:
                    probe.append(parameter.grad)
        return found, losses.detach()

    def _prove(self, records: Records) -> None:
        expected: list[torch.Tensor | None] = []
        found, _ = self._gradients(records, expected)
        names = [name for name, _ in _named(self._model)]
        for name, gradients, whole in zip(names, found, expected, strict=True):
            if whole is None or not bool(torch.isfinite(whole).all()):
                continue
            own = torch.zeros_like(whole) if gradients is None else gradients[-1].view_as(whole)
            foreign = gradients is not None and bool((torch.isfinite(gradients[:-1]) & (gradients[:-1] != 0)).any())
            if foreign or float((own - whole).norm()) > _ALLOWED * float(whole.norm()) + 1e-6:
                _refuse(self.name, [f"{name}: one patient's gradient is not what autograd finds"])


class GhostEngine:
    """See `fedward_client.dp.sums.Engine`: Opacus' fast gradient clipping, two backward passes.

    Its unit is the first dimension: a model that has a patient's records side by side there is refused. A norm is what
    float32 makes of it: tokens crafted to cancel can hide a larger one, as they cannot from the other engines.

    Args:
        model: whose gradients these are; in training mode whenever a sum is asked for.
        losses: each patient's loss.

    Raises:
        StudyError: the model has layers for which Opacus' norms are not exact; the message names them.
    """

    name = "ghost"

    def __init__(self, model: nn.Module, losses: PatientLosses) -> None:
        _refuse(self.name, [*map(str, GradSampleModule.validate(model, strict=False)), *_inexact(model)])
        self._model, self._losses = model, losses
        made = GradSampleHooksFastGradientClipping(model, batch_first=True, loss_reduction="sum", strict=True)
        self._hooks = _Hooks(model, made)

    def part(self, records: Records, clip_norm: float) -> Part:
        """See `Engine.part`.

        Raises:
            StudyError: a layer does not have exactly the patients as its first dimension.
        """
        with self._hooks.attached(), torch.enable_grad():
            losses = _run(self._model, self._losses, records)
            torch.autograd.backward(losses, torch.ones_like(losses), retain_graph=True)
            squares = self._squares(len(records[0]))
            self._hooks.silence()
            factors, counted = clip_factors(squares, clip_norm)
            for parameter in self._model.parameters():
                parameter.grad = None
            if bool(counted.all()):
                torch.autograd.backward(losses, factors.to(losses.dtype))
            elif bool(counted.any()):  # again without those whose NaN a zero factor does not remove
                again = self._losses(self._model, tuple(tensor[counted] for tensor in records))
                torch.autograd.backward(again, factors[counted].to(again.dtype))
            sums = tuple(
                torch.zeros(p.shape, dtype=torch.float32, device=p.device) if p.grad is None else p.grad.clone()
                for p in trainable(self._model)
            )
        return Part(sums, losses.detach())

    def _squares(self, patients: int) -> torch.Tensor:
        parts = []
        for name, parameter in _named(self._model):
            norms = getattr(parameter, "_norm_sample", None)
            if norms is None and parameter.grad is None:
                continue
            if norms is None or norms.shape != (patients,):
                _refuse(self.name, [f"{name}: its layer's first dimension is not the patients"])
            parts.append(norms.to(torch.float64).square())  # type: ignore[union-attr]
        return torch.stack(parts).sum(dim=0)


class _Hooks:
    """Opacus' hooks, made once (for some layers that copies them) and attached when needed."""

    def __init__(self, model: nn.Module, hooks: Any) -> None:
        self._model, self._hooks = model, hooks
        self._modules = list(hooks.iterate_submodules(model))
        self._made = {m: getattr(m, _MAKES_ITS_OWN) for m in self._modules if hasattr(m, _MAKES_ITS_OWN)}
        hooks.cleanup()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hook the model; afterwards it is as before, whatever happens.

        Raises:
            ValueError: the model is not in training mode, in which alone Opacus' hooks work.
        """
        if not all(module.training for module in self._modules):
            msg = "Opacus' hooks need the model in training mode"
            raise ValueError(msg)
        kept = [(parameter, parameter.grad) for parameter in self._model.parameters()]
        handles = []
        try:
            for parameter, _ in kept:
                parameter.grad = None
                parameter.grad_sample, parameter._forward_counter = None, 0  # type: ignore[attr-defined]  # noqa: SLF001
            for module in self._modules:
                if module in self._made:
                    module.ft_compute_sample_grad = self._made[module]
                handles.append(module.register_forward_hook(self._hooks.capture_activations_hook))
                back = partial(self._hooks.capture_backprops_hook, loss_reduction="sum", batch_first=True)
                handles.append(module.register_full_backward_hook(back))
            self._hooks.enable_hooks()
            with warnings.catch_warnings():  # a first layer's input needs no gradient, and torch says so at each step
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                yield
        finally:
            self._hooks.disable_hooks()
            for handle in handles:
                handle.remove()
            self._forget(kept)

    def silence(self) -> None:
        """Let what runs from here on pass the hooks unseen."""
        self._hooks.disable_hooks()

    def _forget(self, kept: list[tuple[nn.Parameter, torch.Tensor | None]]) -> None:
        for parameter, gradient in kept:
            parameter.grad = gradient
            for mark in {*OPACUS_PARAM_MONKEYPATCH_ATTRS, "_norm_sample"}:
                vars(parameter).pop(mark, None)
        for module in self._model.modules():
            for mark in _MODULE_MARKS:
                vars(module).pop(mark, None)


def _run(model: nn.Module, losses: PatientLosses, records: Records) -> torch.Tensor:
    found = losses(model, records)
    if found.shape != records[0].shape[:1]:
        msg = f"losses of shape {tuple(found.shape)}, expected ({len(records[0])},)"
        raise ValueError(msg)
    return found


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _squares(gradients: torch.Tensor) -> torch.Tensor:
    """Return the squared norms of the rows, float64; in pieces, so that the error is that of a piece."""
    pieces = gradients.tensor_split(max(1, gradients.shape[1] // 4096), dim=1)
    return torch.stack([torch.linalg.vector_norm(p, dim=1).to(torch.float64).square() for p in pieces]).sum(dim=0)


def _weighted(gradients: torch.Tensor, factors: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    if not bool(counted.all()):
        gradients = torch.where(counted[:, None], gradients, torch.zeros_like(gradients))
    return factors @ gradients


def _inexact(model: nn.Module) -> list[str]:
    """Return the layers, with their names, whose norms Opacus' ghost clipping does not compute exactly."""
    found = []
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and id(parameter) in seen:
            found.append(f"{name}: the same parameter as {seen[id(parameter)]}")
        if parameter.requires_grad and parameter.dtype != torch.float32:
            found.append(f"{name}: sums would be taken in {parameter.dtype}")
        seen[id(parameter)] = name
    for name, module in model.named_modules():
        if not any(p.requires_grad for p in module.parameters(recurse=False)):
            continue
        if type(module) not in GradSampleModule.GRAD_SAMPLERS:
            found.append(f"{name or '(the model itself)'}: no norms for {type(module).__name__}")
        elif isinstance(module, nn.Embedding) and module.padding_idx is not None:
            found.append(f"{name or '(the model itself)'}: its norm would count the padding token")
    return found


def _refuse(engine: str, problems: list[str]) -> None:
    """Raise if there are problems.

    Raises:
        StudyError: with all of them.
    """
    if problems:
        message = f"the {engine} engine cannot train this model: {'; '.join(problems)}"
        raise StudyError(message, remedy="choose privacy.engine=auto, or change the model")
