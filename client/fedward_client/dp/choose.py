"""Which clipping engine a model gets."""

from __future__ import annotations

from typing import Literal

from torch import nn

from fedward_client.dp.bookkeeping import BookkeepingEngine, unsupported
from fedward_client.dp.sums import Engine, PatientLosses

__all__ = ["Wanted", "choose"]

Wanted = Literal["auto", "bookkeeping", "ghost", "hooks"]


def choose(model: nn.Module, losses: PatientLosses, wanted: Wanted) -> Engine:
    """Return the wanted engine, or with ``auto`` the fastest that is exact for the model.

    That is book-keeping wherever it can be used, and else Opacus' hooks; ghost clipping was never faster than
    book-keeping, and can do nothing that it cannot (``fedward_simulations.bench.dp_step``). Opacus, whose import takes
    seconds, is imported only when it is used.

    Args:
        model: built, its ``requires_grad`` flags set.
        losses: each patient's loss.
        wanted: the study's ``privacy.engine``.

    Raises:
        StudyError: the engine cannot train the model exactly; the message names the layers.
    """
    if wanted == "bookkeeping" or (wanted == "auto" and not unsupported(model)):
        return BookkeepingEngine(model, losses)
    from fedward_client.dp.opacus_engines import GhostEngine, HooksEngine  # noqa: PLC0415  (three seconds)

    return GhostEngine(model, losses) if wanted == "ghost" else HooksEngine(model, losses)
