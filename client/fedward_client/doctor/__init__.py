"""``fedward client doctor``: is everything there that a round needs, and if not, what to do.

`rules` judges measured values and touches nothing; `network`, `machine` and `files` measure; `examine` runs all of them
side by side, each alone with its own limit of time.
"""

from __future__ import annotations

from fedward_client.doctor.examine import CHECKS, Check, examine
from fedward_client.doctor.place import Place
from fedward_client.doctor.rules import Finding, Level, as_json, failed, summary

__all__ = ["CHECKS", "Check", "Finding", "Level", "Place", "as_json", "examine", "failed", "summary"]
