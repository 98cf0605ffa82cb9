"""Which models may be trained privately: a patient's gradient must depend on that patient and on public weights alone.

Opacus looks at modules with trainable parameters only, so a frozen BatchNorm in training mode passes it: each patient
is normalised by the others, and running statistics follow raw patients and are sent with the model. Here every module
is looked at, frozen or not. What structure cannot tell (a foreign layer, a buffer) is shown by an experiment, when the
caller has an example batch, and refused otherwise.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from fedward_client.dp.normalisation import FixedAffine
from fedward_common.errors import UnsafeModelError

__all__ = ["Example", "checked", "objections"]

Example = tuple[torch.Tensor, ...]
"""A model's inputs: tensors whose first dimension is the patient, at least two. Public or made up, never patients'."""

_TOLERANCE: Final = 1e-6
_NUDGE: Final = 0.1
_SAFE_NORMS: Final = frozenset(
    {nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d}
    | {nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d}
)
_OWN: Final = frozenset({"_parameters", "_buffers", "_modules"})

Found = Iterator[tuple[str, str]]


def checked(model: nn.Module, example: Example | None = None) -> nn.Module:
    """Return `model` itself, which has no `objections`.

    Raises:
        UnsafeModelError: it has some; all are named.
    """
    found = objections(model, example)
    if found:
        msg = "the model cannot be trained privately: " + "; ".join(found)
        remedy = "made_private replaces batch statistics; untie, register or remove what else is named"
        raise UnsafeModelError(msg, remedy=remedy)
    return model


def objections(model: nn.Module, example: Example | None = None) -> list[str]:
    """Return why `model` must not be trained privately, each as ``"dotted.name: reason"``; empty if nothing is found.

    Refused by structure: parameters without a shape, batch statistics (also frozen ones, also in evaluation mode),
    running statistics of an InstanceNorm, one trainable tensor under two names, parametrised trainable weights, and
    trainable tensors or modules that the model does not register. Refused without an example: buffers, unknown
    normalisations.

    With an example, and nothing against the structure, an experiment decides on all else. It runs a copy of `model` in
    training mode on `example` and on the same batch with its first patient replaced. No other patient's output may move
    by more than 1e-6, and nothing that the modules hold may change. Dropout is allowed: both runs draw the same.
    Weights are moved a little, so that zero ones hide nothing. `model`, its mode and torch's generators stay as they
    were.

    Args:
        model: in the mode in which it is handed to an engine.
        example: inputs for ``model(*example)``.

    Raises:
        ValueError: `example` has less than two patients, or its first and last are equal.
    """
    lazy = [f"{name}: has no shape before a first forward pass" for name, p in _tensors(model) if is_lazy(p)]
    if lazy:
        return lazy
    reasons: dict[str, str] = {}
    for check in (_normalisations, _parametrised, _unregistered, _tied):
        for name, reason in check(model):
            reasons.setdefault(name, reason)
    if example is None:
        known = [*reasons]
        unproven = [(n, why) for n, why in _unproven(model) if not any(n == k or n.startswith(f"{k}.") for k in known)]
        reasons.update(unproven)
    elif not reasons:
        for name, reason in _experiment(model, example):
            reasons.setdefault(name, reason)
    return [f"{name or 'the model'}: {reason}" for name, reason in reasons.items()]


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


# ----------------------------------------------------------------------------------------------------------- structure
def _normalisations(model: nn.Module) -> Found:
    """Yield modules that normalise by other patients, or remember them."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            yield name, _batch_norm(module)
        elif isinstance(module, _InstanceNorm) and module.track_running_stats:
            yield name, f"{type(module).__name__} keeps running statistics of raw patients"
        elif _is_foreign_norm(name, module) and any(True for _ in module.buffers()):
            yield name, f"{type(module).__name__} is an unknown normalisation that keeps buffers"


def _batch_norm(module: _BatchNorm) -> str:
    kind = type(module).__name__
    if not module.training:
        return f"{kind} has fixed statistics only until train() is called; fold it (frozen_batch_norm_folded)"
    if any(parameter.requires_grad for parameter in module.parameters()):
        return f"{kind} normalises a patient by the others of the batch"
    return f"{kind} is frozen, but in training mode its statistics still come from the batch's patients"


def _is_foreign_norm(name: str, module: nn.Module) -> bool:
    leaf = not any(True for _ in module.children())
    inside_parametrisation = "parametrizations" in name.split(".")
    known = type(module) in _SAFE_NORMS or isinstance(module, (_BatchNorm, _InstanceNorm))
    return leaf and "norm" in type(module).__name__.lower() and not known and not inside_parametrisation


def _parametrised(model: nn.Module) -> Found:
    """Yield modules whose weight is computed from other tensors: an engine would clip the gradient of the wrong one."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            rules = module.parametrizations
            if any(parameter.requires_grad for parameter in rules.parameters()):
                yield (
                    name,
                    f"its {', '.join(dict(rules.named_children()))} is parametrised; remove_parametrizations first",
                )


def _unregistered(model: nn.Module) -> Found:
    """Yield modules with attributes that train, or contain what trains, unknown to ``model.parameters()``."""
    registered = {id(parameter) for parameter in model.parameters()}
    inside = {id(module) for module in model.modules()}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in _OWN:
                continue
            for part in _parts(value):
                if isinstance(part, torch.Tensor) and part.requires_grad and id(part) not in registered:
                    yield name, f"its attribute {attribute} is trained, but no registered parameter"
                elif isinstance(part, nn.Module) and id(part) not in inside:
                    yield name, f"its attribute {attribute} holds a module that is not registered"


def _parts(value: object) -> Iterator[object]:
    """Yield what `value` consists of: itself, or the members of a list, tuple or mapping, at any depth."""
    if isinstance(value, (list, tuple)):
        for member in value:
            yield from _parts(member)
    elif isinstance(value, Mapping):
        yield from _parts(list(value.values()))
    else:
        yield value


def _tied(model: nn.Module) -> Found:
    """Yield trained parameters that share memory with an earlier one: a patient's gradient would come in two parts."""
    groups: defaultdict[tuple[torch.device, int], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.numel():
            groups[parameter.device, parameter.data_ptr()].append((name, parameter))
    for (first, _), *others in (group for group in groups.values() if any(p.requires_grad for _, p in group)):
        for name, _ in others:
            yield name, f"is the same tensor as {first}; a tied weight must be untied or frozen"


def _unproven(model: nn.Module) -> Found:
    """Yield what only an experiment could show to be harmless."""
    for name, module in model.named_modules():
        buffers = [buffer for buffer, _ in module.named_buffers(recurse=False)]
        if _is_foreign_norm(name, module):
            yield (
                name,
                f"{type(module).__name__} is an unknown normalisation; an example batch must show that it is safe",
            )
        elif buffers and type(module) is not FixedAffine:
            yield name, f"holds the buffers {', '.join(buffers)}; an example batch must show that they stay"


# ---------------------------------------------------------------------------------------------------------- experiment
def _experiment(model: nn.Module, example: Example) -> Found:
    """Yield modules that move other patients' values when the first patient is replaced, or that remember the batch."""
    patients = len(example[0])
    if patients < 2 or all(torch.equal(tensor[0], tensor[-1]) for tensor in example):  # noqa: PLR2004  (a pair)
        msg = "an example needs at least two patients, the first and the last not equal"
        raise ValueError(msg)
    other = tuple(torch.cat([tensor[-1:], tensor[1:]]) for tensor in example)
    subject = copy.deepcopy(model).train()
    devices = sorted({tensor.device for _, tensor in _tensors(model) if tensor.is_cuda}, key=str)
    with torch.no_grad(), torch.random.fork_rng(devices):
        _seed(devices)
        for parameter in subject.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter), alpha=_NUDGE)
        first, held = _trace(subject, example, devices), _held(subject)
        second, held_after = _trace(subject, other, devices), _held(subject)
    yield from _coupled(first, second, patients)
    for key in sorted(held_after.keys() | held.keys()):
        if key not in held or key not in held_after or not _same(held[key], held_after[key]):
            name, _, attribute = key.rpartition(".")
            yield name, f"its {attribute} changes with the batch"


def _seed(devices: list[torch.device]) -> None:
    """Seed the generators that the experiment has forked, and no others."""
    torch.default_generator.manual_seed(0)
    for device in devices:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(0)


Trace = list[tuple[str, list[torch.Tensor]]]


def _trace(model: nn.Module, batch: Example, devices: list[torch.device]) -> Trace:
    """Return every module's output tensors, in the order in which the modules finish: the innermost first."""
    trace: Trace = []

    def note(name: str) -> Any:
        return lambda _module, _inputs, output: trace.append((name, _output_tensors(output)))

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    _seed(devices)  # so that both runs drop the same
    model(*batch)
    for hook in hooks:
        hook.remove()
    return trace


def _output_tensors(output: object) -> list[torch.Tensor]:
    return [part.clone() for part in _parts(output) if isinstance(part, torch.Tensor)]


def _coupled(first: Trace, second: Trace, patients: int) -> Found:
    """Yield the model if its outputs couple patients, under the name of the first module that does."""
    verdicts = [
        (name, _others_stay(a, b, patients)) for (name, a), (_, b) in zip(first, second, strict=False) if a and b
    ]
    if len(first) != len(second):
        yield "", "which modules run depends on the patients"
    elif not verdicts or verdicts[-1][1] is None:
        yield "", "the first dimension of its output is not the patients"
    elif verdicts[-1][1] is False:
        culprit = next(name for name, stay in verdicts if stay is False)
        yield culprit, "a patient's values depend on the other patients of the batch"


def _others_stay(first: list[torch.Tensor], second: list[torch.Tensor], patients: int) -> bool | None:
    """Return whether all but the first patient's values are equal; None where they are not laid out by patient."""
    stay = True
    for a, b in zip(first, second, strict=True):
        if not a.dim() or a.shape != b.shape or len(a) % patients:
            return None
        each = len(a) // patients
        stay &= _same(a[each:], b[each:], _TOLERANCE)
    return stay


def _same(one: torch.Tensor, other: torch.Tensor, tolerance: float = 0.0) -> bool:
    if not tolerance or not one.is_floating_point() or one.dtype != other.dtype:
        return torch.equal(one, other)
    return one.shape == other.shape and torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def _held(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all tensors that the modules hold: parameters, buffers and plain attributes."""
    held: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if key not in _OWN}
        for key, value in {**plain, **module._parameters, **module._buffers}.items():  # noqa: SLF001  (vars has them too)
            for index, part in enumerate(_parts(value)):
                if isinstance(part, torch.Tensor):
                    held[f"{name}.{key}{f'[{index}]' if index else ''}"] = part.detach().clone()
    return held
