"""From composed values to what a simulation needs: the contract, and beside it what no contract carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fedward_client.policy import Policy
from fedward_common.contract import Contract, quantity, validated
from fedward_common.errors import StudyError
from fedward_common.privacy import calibrated
from fedward_common.study import Study
from fedward_simulations.federation import Federation, Source

__all__ = ["EngineSettings", "Plan", "draft_plan"]


class EngineSettings(Contract):
    """How the sites are run."""

    name: Literal["local", "ray", "deployed"]
    workers: int = quantity("processes that train", "processes", default=2, ge=1, le=256)
    baselines: bool = quantity("also train each hospital alone, and all rows in one place", default=True)
    report: bool = quantity("also write report.html", default=True)


class _Origin(Contract):
    source: Source


class _Beside(Contract):
    """What stands beside the contract, nested as a person writes it, so that messages name the whole path."""

    engine: EngineSettings
    policy: Policy
    cohort: _Origin


class Plan(Contract):
    """One simulation: `study` is what the hospitals are asked, the rest is how they are simulated.

    Until the tables are known `study` names two sites that are none.
    """

    study: Study
    engine: EngineSettings
    policy: Policy
    source: Source
    standing: dict[str, Any] = quantity("quorum and required sites, until the sites are known", default_factory=dict)

    def with_sites(self, federation: Federation) -> Study:
        """Return the study with the federation's sites named, and its noise calibrated.

        Raises:
            StudyError: quorum or required sites do not go with the sites that there are.
        """
        contract = self.study.contract() | {"sites": sorted(federation.tables)}
        return calibrated(Study.of(contract | {"aggregation": contract["aggregation"] | self.standing}))


def draft_plan(values: Mapping[str, Any], *, site_column: str | None = None) -> Plan:
    """Return the plan in composed values; the study's sites are filled in once the tables are known.

    Raises:
        StudyError: a key or value that the contract has no place for; every one is named.
    """
    rest = dict(values)
    cohort = dict(rest.pop("cohort", None) or {})
    if cohort.get("source") is None:
        msg = "cohort.source is missing"
        raise StudyError(msg, remedy="it says where the simulated hospitals' tables are")
    origin = {"source": dict(cohort.pop("source")) | ({"site_column": site_column} if site_column else {})}
    beside = {"engine": rest.pop("engine", {}), "policy": rest.pop("policy", {}), "cohort": origin}
    settings = validated(_Beside, beside)
    rest, standing = _set_aside(rest)
    study = Study.of({"sites": ["a", "b"], **rest, "cohort": cohort.pop("schema", {}), **_misplaced(cohort)})
    return Plan(
        study=study,
        engine=settings.engine,
        policy=settings.policy,
        source=settings.cohort.source,
        standing=standing,
    )


def _set_aside(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values without what only a study with its sites can be asked, and that."""
    aggregation = values.get("aggregation")
    if not isinstance(aggregation, Mapping):
        return values, {}
    quorum, required = aggregation.get("quorum"), aggregation.get("required_sites")
    standing: dict[str, Any] = {}
    if isinstance(quorum, int) and quorum > 1:
        standing["quorum"] = quorum
    if isinstance(required, list):
        standing["required_sites"] = required
    kept = {key: value for key, value in aggregation.items() if key not in standing}
    return values | {"aggregation": kept}, standing


def _misplaced(cohort: Mapping[str, Any]) -> dict[str, Any]:
    """Turn keys beside `cohort.schema` and `cohort.source` into unknown keys of the study: they are reported."""
    return {f"cohort.{key}": value for key, value in cohort.items()}
