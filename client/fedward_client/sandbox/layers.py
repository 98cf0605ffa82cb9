"""The layers of the sandbox, and the report of which of them hold on this computer."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from fedward_common.contract import Contract, quantity

__all__ = ["EVERY_LAYER", "Layer", "Sandbox"]


class Layer(StrEnum):
    """What keeps a child in.

    `GUARD` is put on only where nothing of the kernel's holds: it stops Python code, not machine code.
    """

    NAMESPACE = "namespace"
    LANDLOCK = "landlock"
    SECCOMP = "seccomp"
    GUARD = "python guard"


EVERY_LAYER: Final = frozenset(Layer)

_NETWORK: Final = (Layer.NAMESPACE, Layer.SECCOMP, Layer.GUARD)
_FILES: Final = (Layer.LANDLOCK, Layer.GUARD)


class Sandbox(Contract):
    """Which layers hold on this computer, and which do not and why."""

    holds: tuple[Layer, ...] = quantity("layers that were tried and hold", default=())
    missing: dict[Layer, str] = quantity(
        "why the others do not; nothing for one that is not needed or was not to be tried", default_factory=dict
    )
    landlock: int = quantity(
        "version of the kernel's Landlock interface, 0 where there is none. Below 2 a file cannot be moved between "
        "folders, below 4 TCP is not limited by it, below 6 signals are not",
        default=0,
        ge=0,
    )

    @property
    def network(self) -> str:
        """The strongest layer between a child and the network, or ``none``."""
        return next((layer.value for layer in _NETWORK if layer in self.holds), "none")

    @property
    def files(self) -> str:
        """The layer between a child and the files that are not its cohort's, or ``none``."""
        return next((layer.value for layer in _FILES if layer in self.holds), "none")

    @property
    def by_kernel(self) -> bool:
        """Whether the kernel itself keeps a child from the network and from files."""
        return {self.network, self.files}.isdisjoint({Layer.GUARD.value, "none"})

    def describe(self) -> str:
        """Return the report on one line, for a log: what holds first, then what is missing and why."""
        network = " + ".join(layer.value for layer in _NETWORK if layer in self.holds) or "none"
        files = f"landlock {self.landlock}" if Layer.LANDLOCK in self.holds else self.files
        why = "; ".join(f"no {layer.value}: {reason}" for layer, reason in self.missing.items())
        return f"network: {network}; files: {files}" + (f"; {why}" if why else "")
