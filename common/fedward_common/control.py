"""SCAFFOLD's control variates (Karimireddy et al. 2020): what both sides derive from an update, option II.

A site's variate after a round is ``c_i - c + (x - y) / (steps * rate)``: x is the global model, y the site's own. The
update y - x, the number of steps and the rate are known to the centre, and so is the c that it sent: it derives the
change of each variate, and of their mean, from the updates alone. No second vector leaves a site.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedward_common.study import Scaffold, Study

__all__ = ["controlled", "variate_change"]

Vector = npt.NDArray[np.float64]


def controlled(study: Study) -> bool:
    """Return whether the study's tasks carry the centre's control variate behind the model."""
    return isinstance(study.aggregation, Scaffold)


def variate_change(study: Study, change: Vector, control: npt.NDArray[Any]) -> Vector:
    """Return what is added to a site's variate, or to the sites' mean, for an update or the mean update.

    Args:
        study: its local steps and learning rate.
        change: y - x as it was sent, that is in fixed point, decoded.
        control: c as it was sent, float32.
    """
    training = study.training
    moved: Vector = -control.astype(np.float64) - change / (training.local_steps * training.learning_rate)
    return moved
