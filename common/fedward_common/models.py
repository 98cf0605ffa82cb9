"""The model factory: a name in the study becomes a network, built from public facts alone.

A `torch.nn.Module` built here has no buffers and no batch statistics, so its parameters are the whole model
and one patient's gradient depends on that patient alone.

What crosses borders, and is released, is the shared part: all parameters, but of a study with FedBN those of the
normalisation, which stay at each site. A packed vector is of the shared part unless it is called whole.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from fedward_common.canonical import canonical_json
from fedward_common.study import FedBN, Linear, Mlp, Study
from fedward_common.tables import feature_count

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "ParameterSpec",
    "build_model",
    "initial_weights",
    "load_weights",
    "parameter_spec",
    "parted",
    "weights_of",
    "whole",
]


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """Names and shapes of the parameters, in the order in which they are packed into one vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    @property
    def digest(self) -> str:
        """SHA-256 that two sides compare instead of lists of names."""
        return hashlib.sha256(canonical_json([list(self.names), [list(s) for s in self.shapes]])).hexdigest()

    def split(self, vector: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return the named arrays that the packed `vector`, shape (size,), holds; views, not copies."""
        arrays, start = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            count = int(np.prod(shape))
            arrays[name] = vector[start : start + count].reshape(shape)
            start += count
        return arrays


def _linear(_: Any, inputs: int) -> nn.Module:
    from torch import nn  # noqa: PLC0415  (the coordinator of a simulation stays free of torch)

    return nn.Sequential(nn.Linear(inputs, 1))


def _mlp(spec: Any, inputs: int) -> nn.Module:
    from torch import nn  # noqa: PLC0415  (see _linear)

    layers: list[nn.Module] = []
    width = inputs
    for hidden in spec.hidden:
        layers += [nn.Linear(width, hidden), *([nn.LayerNorm(hidden)] if spec.norm == "layer" else [])]
        layers += [nn.ReLU() if spec.activation == "relu" else nn.Tanh()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, 1))


_FACTORIES: Final[dict[type, Callable[[Any, int], nn.Module]]] = {Linear: _linear, Mlp: _mlp}


def _shapes(study: Study) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and shapes without torch, in the order of `Module.named_parameters`."""
    model = study.model
    normed = isinstance(model, Mlp) and model.norm == "layer"
    widths = [feature_count(study.cohort), *(model.hidden if isinstance(model, Mlp) else ()), 1]
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        place = (2 + normed) * index
        shapes += [(f"{place}.weight", (outputs, inputs)), (f"{place}.bias", (outputs,))]
        if normed and index < len(widths) - 2:
            shapes += [(f"{place + 1}.weight", (outputs,)), (f"{place + 1}.bias", (outputs,))]
    return shapes


def _normalising(study: Study, name: str) -> bool:
    """Return whether a parameter is one of a normalisation's."""
    return isinstance(study.model, Mlp) and study.model.norm == "layer" and int(name.split(".", maxsplit=1)[0]) % 3 == 1


def _stays(study: Study) -> npt.NDArray[np.bool_]:
    """Return which entries of the whole packed vector stay at a site, shape (parameters,)."""
    local = isinstance(study.aggregation, FedBN)
    sizes = [(local and _normalising(study, name), int(np.prod(shape))) for name, shape in _shapes(study)]
    return np.concatenate([np.full(size, stays) for stays, size in sizes])


def parameter_spec(study: Study) -> ParameterSpec:
    """Return the shared parameters of this study's model; but for FedBN all of those of `build_model`."""
    local = isinstance(study.aggregation, FedBN)
    shared = [(name, shape) for name, shape in _shapes(study) if not (local and _normalising(study, name))]
    names, shapes = zip(*shared, strict=True)
    return ParameterSpec(names, shapes)


def parted(study: Study, vector: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the shared and the local part of a whole packed vector; the local one is empty but for FedBN."""
    stays = _stays(study)
    return (vector[~stays], vector[stays]) if stays.any() else (vector, vector[:0])


def whole(
    study: Study, shared: npt.NDArray[np.float32], local: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Return the whole packed vector of a shared part and a site's local one; None: as the model begins."""
    stays = _stays(study)
    if not stays.any():
        return shared
    vector = _beginning(study)
    vector[~stays] = shared
    if local is not None:
        vector[stays] = local
    return vector


def build_model(study: Study) -> nn.Module:
    """Return the study's network: input (…, features), output (…, 1) logits. Its weights are not yet set."""
    return _FACTORIES[type(study.model)](study.model, feature_count(study.cohort))


def initial_weights(study: Study) -> npt.NDArray[np.float32]:
    """Return the first global model, its shared part packed, shape (size,): a function of the study alone.

    A linear model starts at zero, its loss being convex. Else weights are uniform in ±1/√(inputs) (the bound of
    He et al. 2015 for a = √5) and biases zero, drawn by NumPy's PCG64 from ``study.seed``: equal on every
    platform and independent of torch's version. A normalisation begins at scale one.
    """
    return parted(study, _beginning(study))[0]


def _beginning(study: Study) -> npt.NDArray[np.float32]:
    """Return the first model, whole."""
    if isinstance(study.model, Linear):
        return np.zeros(sum(int(np.prod(shape)) for _, shape in _shapes(study)), dtype=np.float32)
    generator = np.random.Generator(np.random.PCG64(study.seed))
    parts = []
    for name, shape in _shapes(study):
        if name.endswith("bias"):
            parts.append(np.zeros(shape).ravel())
        elif _normalising(study, name):
            parts.append(np.ones(shape).ravel())
        else:
            bound = 1 / np.sqrt(shape[-1])
            parts.append(generator.uniform(-bound, bound, size=shape).ravel())
    return np.concatenate(parts).astype(np.float32)


def load_weights(model: nn.Module, vector: npt.NDArray[np.float32]) -> None:
    """Copy the whole packed `vector` into the parameters of `model`, in place."""
    import torch  # noqa: PLC0415  (see _linear)

    with torch.no_grad():
        start = 0
        for parameter in model.parameters():
            count = parameter.numel()
            chunk = torch.from_numpy(vector[start : start + count].copy())
            parameter.copy_(chunk.view_as(parameter))
            start += count


def weights_of(model: nn.Module) -> npt.NDArray[np.float32]:
    """Return all parameters of `model`, packed: a new float32 array of shape (size,)."""
    import torch  # noqa: PLC0415  (see _linear)

    parameters: list[torch.Tensor] = [p.detach().reshape(-1) for p in model.parameters()]
    return torch.cat(parameters).to(torch.float32).cpu().numpy().copy()
