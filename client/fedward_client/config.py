"""``site.yaml``: the hospital's name, its policy and its register of cohorts; read, made and added to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from fedward_client.cohorts import TableEntry
from fedward_client.policy import Policy
from fedward_common.contract import Contract, quantity, validated
from fedward_common.errors import LocalDataError
from fedward_common.study import SITE_NAME

__all__ = ["SiteConfig", "commented_site", "create_site", "load_site", "register_cohort", "write_site"]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class SiteConfig(Contract):
    """``site.yaml``."""

    site: str = quantity("the hospital's name in studies", pattern=SITE_NAME)
    policy: Policy = Policy()
    cohorts: dict[Annotated[str, Field(pattern=SITE_NAME)], TableEntry] = quantity(
        "registered tables, by name", default_factory=dict
    )


def load_site(home: Path) -> SiteConfig:
    """Return what ``site.yaml`` in `home` says.

    Raises:
        FedwardError: it is missing or wrong; the message names the key.
    """
    path = home / "site.yaml"
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506  (a safe loader, in C)
    except (OSError, yaml.YAMLError) as error:
        msg = f"{path} cannot be read"
        raise LocalDataError(msg, remedy="restore site.yaml; without a policy nothing is admitted") from error
    return validated(SiteConfig, data if isinstance(data, dict) else {}, where=str(path))


def write_site(home: Path, config: SiteConfig) -> None:
    """Write ``site.yaml`` of a new site into `home`, which is made with mode 0700."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / "site.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def create_site(home: Path, site: str) -> None:
    """Make the folder of a new hospital, with a policy in which every limit is explained.

    Raises:
        LocalDataError: there is a ``site.yaml`` already.
    """
    path = home / "site.yaml"
    if path.exists():
        msg = f"{path} is there already"
        raise LocalDataError(msg, remedy="choose another --home, or keep what is there")
    validated(SiteConfig, {"site": site})
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(commented_site(site), encoding="utf-8")


def commented_site(site: str) -> str:
    """Return the text of a new ``site.yaml``: every limit of the policy at its default, with its meaning and unit."""
    lines = [f"site: {site}", "policy:"]
    for name, field in Policy.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        unit = f" [{extra['unit']}]" if extra.get("unit") else ""
        default = yaml.safe_dump(field.default).split("\n", maxsplit=1)[0]
        lines += [f"  # {field.description}{unit}", f"  {name}: {default}"]
    return "\n".join([*lines, "# tables, by name: fedward client cohort add NAME FILE", "cohorts: {}", ""])


def register_cohort(home: Path, name: str, entry: TableEntry) -> None:
    """Add a table to ``site.yaml``, keeping the file's comments.

    Raises:
        LocalDataError: the name is taken.
    """
    config = load_site(home)
    if name in config.cohorts:
        msg = f"a cohort {name!r} is registered already"
        raise LocalDataError(msg, remedy="choose another name")
    everything = {k: v.model_dump(mode="json") for k, v in {**config.cohorts, name: entry}.items()}
    validated(SiteConfig, {"site": config.site, "cohorts": everything})
    path = home / "site.yaml"
    text = path.read_text(encoding="utf-8")
    head = text[: text.index("\ncohorts:") + 1] if "\ncohorts:" in text else text
    path.write_text(head + yaml.safe_dump({"cohorts": everything}, sort_keys=True), encoding="utf-8")
