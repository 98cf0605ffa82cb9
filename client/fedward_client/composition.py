"""The worst ε over a site's groups of patients: the same arithmetic that the centre plans and reports with."""

from fedward_common.privacy import Mechanism
from fedward_common.privacy_groups import composed, worst_epsilon
from fedward_common.renyi import renyi_bounds

__all__ = ["Mechanism", "composed", "renyi_bounds", "worst_epsilon"]
