"""Which layers can be booked, and what in a model cannot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, Protocol

from torch import nn

from fedward_client.dp.bookkeeping.attention import Attention
from fedward_client.dp.bookkeeping.conv import Conv
from fedward_client.dp.bookkeeping.embedding import Embedding
from fedward_client.dp.bookkeeping.linear import Linear
from fedward_client.dp.bookkeeping.norms import GroupNorm, LayerNorm, RmsNorm

__all__ = ["Layer", "Rule", "layers", "unsupported"]


class Rule(Protocol):
    """How one kind of layer is run and booked."""

    @property
    def parameters(self) -> frozenset[str]:
        """Names of the parameters that the rule books; a layer with any other trainable one of its own is refused."""

    def refusal(self, layer: Any, /) -> str:
        """Return why this layer cannot be booked; empty if it can."""

    def forward(self, layer: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Do what the layer's own ``forward`` does, given the layer's name and the tape before its arguments."""


_RULES: Final[dict[type[nn.Module], Rule]] = {
    nn.Linear: Linear(),
    nn.Embedding: Embedding(),
    nn.Conv1d: Conv(),
    nn.Conv2d: Conv(),
    nn.Conv3d: Conv(),
    nn.LayerNorm: LayerNorm(),
    nn.RMSNorm: RmsNorm(),
    nn.GroupNorm: GroupNorm(),
    nn.InstanceNorm1d: GroupNorm(),
    nn.InstanceNorm2d: GroupNorm(),
    nn.InstanceNorm3d: GroupNorm(),
    nn.MultiheadAttention: Attention(),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with trainable parameters, and its rule."""

    name: str
    module: nn.Module
    rule: Rule


def _rule(module: nn.Module) -> Rule | None:
    """Return the rule of a module that runs exactly what a known layer runs."""
    if "forward" in vars(module):
        return None
    for kind, rule in _RULES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return rule
    return None


def layers(model: nn.Module) -> list[Layer]:
    """Return the layers whose gradients are booked."""
    found = []
    for name, module in model.named_modules():
        rule = _rule(module)
        if rule is not None and any(p.requires_grad for p in module.parameters()):
            found.append(Layer(name or "(the model itself)", module, rule))
    return found


def unsupported(model: nn.Module) -> list[str]:
    """Return what keeps the model from being booked exactly, each with its name in the model; empty if nothing does.

    Layers without trainable parameters are never named: they run as they are.
    """
    return _tied(model) + [
        reason for name, module in model.named_modules() if (reason := _reason(name or "(the model itself)", module))
    ]


def _reason(name: str, module: nn.Module) -> str:
    own = {key for key, parameter in module.named_parameters(recurse=False) if parameter.requires_grad}
    rule = _rule(module)
    if rule is None:
        kind = type(module).__name__
        return f"{name} ({kind}): parameters {', '.join(sorted(own))} outside a layer that can be booked" if own else ""
    if own - rule.parameters:
        return f"{name} ({type(module).__name__}): unknown parameters {', '.join(sorted(own - rule.parameters))}"
    trained = any(p.requires_grad for p in module.parameters())
    reason = rule.refusal(module) if trained else ""
    return f"{name} ({type(module).__name__}): {reason}" if reason else ""


def _tied(model: nn.Module) -> list[str]:
    named = list(model.named_parameters(remove_duplicate=False))
    count = Counter(id(p) for _, p in named if p.requires_grad)
    tied: list[str] = [name for name, p in named if count[id(p)] > 1]
    shared = _shared_memory(p for _, p in model.named_parameters() if p.requires_grad)
    return ([f"{', '.join(tied)}: one parameter under several names"] if tied else []) + shared


def _shared_memory(parameters: Any) -> list[str]:
    """Return a refusal if two parameters are views of one memory."""
    places = Counter(p.untyped_storage().data_ptr() for p in parameters if p.numel() and p.device.type != "meta")
    return ["two parameters share their memory"] if any(times > 1 for times in places.values()) else []
