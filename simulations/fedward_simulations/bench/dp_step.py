"""Time and memory of a step of DP-SGD over those of a step without privacy, for each clipping engine.

    python -m fedward_simulations.bench.dp_step [--json] [--threads N] [--rounds N] [--device cuda] [--model NAME]

All sides train copies of one model on the same batch, in turn within each round, in one process; the figure is the
ratio of the medians (`best`: of the shortest). A step without privacy is forward pass, mean loss, backward pass and
SGD; a private one is `clipped_sum` of the whole batch at once, Gaussian noise on every parameter and SGD. `cpu` is the
processor time of the process, which other processes disturb less than they do the wall clock.

Memory is what torch's allocator holds at the peak of a step: what the step allocates (torch's profiler on a CPU, the
allocator's own maximum on CUDA) over parameters and batch. Scratch memory of the kernels' libraries is not in it.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from fedward_client.dp.choose import choose
from fedward_client.dp.noise import noised
from fedward_client.dp.sums import Records, clipped_sum
from fedward_common.errors import StudyError
from fedward_simulations.bench.harness import machine, report

__all__ = ["Network", "Transformer", "main"]

_GOALS: Final = {"cpu": (1.35, 1.15), "cuda": (1.25, 1.15)}
_ENGINES: Final = ("bookkeeping", "ghost", "hooks")
_PATIENTS: Final = 32
_RATE: Final = 1e-3

Step = Callable[[], object]


class _Block(nn.Module):
    """Pre-norm attention and a feed-forward layer four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normal = self.norms[0](hidden)
        parts = [f(normal).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)]
        mixed = functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        hidden = hidden + self.out(mixed)
        result: torch.Tensor = hidden + self.narrow(functional.gelu(self.wide(self.norms[1](hidden))))
        return result


class Transformer(nn.Module):
    """Four layers over tokens, with one logit."""

    def __init__(self, *, width: int = 256, length: int = 128, words: int = 1000, layers: int = 4) -> None:
        super().__init__()
        self.shape = (length, words)
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(_Block(width, 4) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return a logit for each row of tokens."""
        places = torch.arange(tokens.shape[1], device=tokens.device).repeat(len(tokens), 1)
        hidden = self.blocks(self.words(tokens) + self.places(places))
        result: torch.Tensor = self.head(self.norm(hidden).mean(dim=1))
        return result

    def batch(self) -> torch.Tensor:
        """Return random tokens, shape (patients, 1, positions)."""
        return torch.randint(0, self.shape[1], (_PATIENTS, 1, self.shape[0]))


class _Residual(nn.Module):
    """Two convolutions of three by three beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(8, outputs), nn.GroupNorm(8, outputs)])
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.second(functional.relu(self.norms[0](self.first(images))))
        result: torch.Tensor = functional.relu(self.norms[1](hidden) + self.short(images))
        return result


class Network(nn.Module):
    """A residual network with group normalisation, for colour images of 64 by 64."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, 1, 1), nn.GroupNorm(8, 32)
        self.blocks = nn.Sequential(_Residual(32, 32, 1), _Residual(32, 64, 2), _Residual(64, 128, 2))
        self.head = nn.Linear(128, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return a logit for each image."""
        hidden = self.blocks(functional.relu(self.norm(self.stem(images))))
        result: torch.Tensor = self.head(hidden.mean(dim=(2, 3)))
        return result

    def batch(self) -> torch.Tensor:
        """Return random images, shape (patients, 1, 3, 64, 64)."""
        return torch.randn(_PATIENTS, 1, 3, 64, 64)


_MODELS: Final[dict[str, Callable[[], Transformer | Network]]] = {"transformer": Transformer, "cnn": Network}


def _losses(model: nn.Module, records: Records) -> torch.Tensor:
    logits = model(records[0].flatten(0, 1)).view(records[1].shape)
    return functional.binary_cross_entropy_with_logits(logits, records[1], reduction="none").mean(dim=1)


def _plain_step(model: nn.Module, records: Records) -> None:
    for parameter in model.parameters():
        parameter.grad = None
    _losses(model, records).mean().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=_RATE)


def _private_step(model: nn.Module, engine: str, records: Records) -> Step:
    made = choose(model, _losses, engine)  # type: ignore[arg-type]

    def step() -> None:
        sums = clipped_sum(made, model, records, 1.0, micro_batch=_PATIENTS).gradient
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), noised(sums, 1.0, "gaussian"), strict=True):
                parameter.sub_(gradient, alpha=_RATE / _PATIENTS)

    return step


@dataclass
class _Side:
    """One way to make a step, and what was measured of it."""

    step: Step
    held: int
    wall: list[float]
    cpu: list[float]
    peak: int = 0


def _sides(model: nn.Module, records: Records) -> dict[str, _Side]:
    held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *records])
    sides = {"plain": _Side(lambda: _plain_step(model, records), held, [], [])}
    for engine in _ENGINES:
        twin = copy.deepcopy(model)
        try:
            sides[engine] = _Side(_private_step(twin, engine, records), held, [], [])
        except StudyError as error:
            warnings.warn(error.diagnostics(), stacklevel=1)
    return sides


def _peak_bytes(step: Step, device: str) -> int:
    """Return the most bytes that a step holds at once, over what was held before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return int(torch.cuda.max_memory_allocated() - before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    result = profile.profiler.kineto_results if profile.profiler else None
    events = [event for event in result.events() if event.name() == "[memory]"] if result else []
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _measure(name: str, device: str, rounds: int) -> dict[str, object]:
    """Return one model's figures."""
    torch.manual_seed(0)
    model = _MODELS[name]()
    labels = torch.randint(0, 2, (_PATIENTS, 1)).to(torch.float32)
    records = tuple(tensor.to(device) for tensor in (model.batch(), labels))
    sides = _sides(model.to(device), records)
    wait: Step = torch.cuda.synchronize if device == "cuda" else lambda: None
    for side in sides.values():
        side.step()
        side.peak = side.held + _peak_bytes(side.step, device)
    for _ in range(rounds):
        for side in sides.values():
            wait()
            began, used = time.perf_counter(), time.process_time()
            side.step()
            wait()
            side.wall.append(time.perf_counter() - began)
            side.cpu.append(time.process_time() - used)
    plain = sides["plain"]
    return {
        engine: {
            "seconds": round(statistics.median(side.wall), 4),
            "time": round(statistics.median(side.wall) / statistics.median(plain.wall), 3),
            "best": round(min(side.wall) / min(plain.wall), 3),
            "cpu": round(statistics.median(side.cpu) / statistics.median(plain.cpu), 3),
            "megabytes": round(side.peak / 1e6, 1),
            "memory": round(side.peak / plain.peak, 3),
        }
        for engine, side in sides.items()
    }


def _lines(name: str, figures: dict[str, object], device: str) -> list[str]:
    lines = [f"{name:12}   seconds   time ×  best ×   cpu ×   peak MB   memory ×"]
    for engine, found in figures.items():
        f: dict[str, float] = found  # type: ignore[assignment]
        ratios = f"{f['time']:9.2f}{f['best']:8.2f}{f['cpu']:8.2f}"
        lines.append(f"  {engine:12}{f['seconds']:8.3f}{ratios}{f['megabytes']:10.1f}{f['memory']:11.2f}")
    goal = _GOALS[device]
    return [*lines, f"  goal               ≤ {goal[0]:.2f}                             ≤ {goal[1]:.2f}", ""]


def main() -> None:
    """Measure both models and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    parser.add_argument("--rounds", type=int, default=9, help="rounds, each with one step of every side")
    parser.add_argument("--threads", type=int, default=1, help="of the arithmetic")
    parser.add_argument("--device", choices=sorted(_GOALS), default="cpu")
    parser.add_argument("--model", choices=sorted(_MODELS), action="append", help="by default, all")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here")
    torch.set_num_threads(options.threads)
    before = os.getloadavg()[0]
    found = {name: _measure(name, options.device, options.rounds) for name in options.model or sorted(_MODELS)}
    card = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    load = f"{before:.2f} before, {os.getloadavg()[0]:.2f} after"
    figures = {**found, "threads": options.threads, "device": card, "patients": _PATIENTS, "load": load}
    lines = [line for name, rows in found.items() for line in _lines(name, rows, options.device)]
    lines.append(f"{_PATIENTS} patients, {options.rounds} rounds, {options.threads} threads, {card}, load {load}")
    report({**figures, "machine": machine()}, lines, as_json=options.json)


if __name__ == "__main__":
    main()
