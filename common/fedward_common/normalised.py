"""FedNova (Wang et al. 2020): how much of a local gradient is in an update, and what makes updates comparable.

After t steps of SGD with momentum r an update is the rate times the sum of the steps' gradients, of which the k-th
counts ``(1 - r**(t - k + 1)) / (1 - r)``: the paper's vector a. A site sends its update as it would be at this vector's
length for the study's own ``local_steps``; the centre puts the mean length back. Both follow from the study and the
site's number of patients, which is its weight: nothing more is sent.
"""

from __future__ import annotations

import math

from fedward_common.study import FedNova, Study

__all__ = ["accumulated", "normaliser", "reference_length"]


def accumulated(steps: int, momentum: float) -> float:
    """Return the sum of the entries of a, for so many steps: without momentum the number of steps."""
    return math.fsum((1 - momentum**k) / (1 - momentum) for k in range(1, steps + 1)) if momentum else float(steps)


def reference_length(study: Study) -> float:
    """Return `accumulated` for the study's ``local_steps``: the length at which updates are sent."""
    return accumulated(study.training.local_steps, study.training.momentum)


def normaliser(study: Study, patients: int) -> float:
    """Return the factor on the update of a site with so many patients before it is sent; 1 but for FedNova."""
    if not isinstance(study.aggregation, FedNova):
        return 1.0
    return reference_length(study) / accumulated(study.steps_of(patients), study.training.momentum)
