"""What every test gets: reproducible properties, and one core for torch."""

from __future__ import annotations

import os

# Before torch is imported: two threads that spin for each other make small tensors ten times slower on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

# Statistics and properties are part of the checks that every change must pass: the same draws each time, no deadline
# (two shared cores), and no example database in the checkout. `HYPOTHESIS_PROFILE=explore` looks for new examples.
settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
