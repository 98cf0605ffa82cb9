"""``site.yaml``: the hospital's name, its policy and its register of cohorts; read, made and added to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import yaml
from pydantic import Field, field_validator

from fedward_client.cohorts import CohortEntry
from fedward_client.loopback import DEFAULT_ADDRESS, loopback
from fedward_client.policy import Policy
from fedward_client.syslog_message import AuditSettings
from fedward_common.contract import Contract, nearest, quantity, validated
from fedward_common.errors import InstallationError, LocalDataError, StudyError
from fedward_common.files import replace_file
from fedward_common.study import SITE_NAME

__all__ = [
    "SiteConfig",
    "commented_site",
    "create_site",
    "load_site",
    "local_time",
    "register_cohort",
    "require_free",
    "trust_signers",
    "write_site",
]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_HEADINGS: Final = {
    "studies": "who may ask, and who decides",
    "require_privacy": "privacy",
    "require_secure_aggregation": "what may leave",
    "max_parameters": "work",
}
"""Titles of the policy's parts in a new ``site.yaml``, by the key that each begins with."""


class SiteConfig(Contract):
    """``site.yaml``."""

    site: str = quantity("the hospital's name in studies", pattern=SITE_NAME)
    local_page: str | None = quantity("loopback address of page, health and metrics; none: not served", default=None)
    audit: AuditSettings = AuditSettings()
    policy: Policy = Policy()
    cohorts: dict[Annotated[str, Field(pattern=SITE_NAME)], CohortEntry] = quantity(
        "registered data sets, by name", default_factory=dict
    )

    @field_validator("local_page")
    @classmethod
    def _for_this_computer(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                loopback(text)
            except InstallationError as error:
                raise ValueError(error.message) from None
        return text


def load_site(home: Path) -> SiteConfig:
    """Return what ``site.yaml`` in `home` says.

    Raises:
        FedwardError: it is missing or wrong; the message names the key.
    """
    path = home / "site.yaml"
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506  (a safe loader, in C)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read"
        raise LocalDataError(msg, remedy="restore site.yaml; without a policy nothing is admitted") from error
    data = data if isinstance(data, dict) else {}
    try:
        config = validated(SiteConfig, data, where=str(path))
    except StudyError as error:
        raise LocalDataError(error.message, remedy="correct the named keys; nothing is admitted until then") from error
    _require_every_limit(data.get("policy"), path)
    local_time(config.policy, datetime.now(UTC))
    return config


def _require_every_limit(written: object, path: Path) -> None:
    """Return if the file writes every limit out: none is in force that nobody has read, after an upgrade neither."""
    missing = dict(_missing(Policy(), written if isinstance(written, Mapping) else {}))
    if missing:
        names = ", ".join(f"policy.{key}" for key in missing) if written is not None else "policy"
        lines = "; ".join(f"{key}: {value}" for key, value in missing.items())
        msg = f"{path}: not there is {names}"
        raise LocalDataError(msg, remedy=f"write every limit out under `policy`; the defaults are: {lines}")


def _missing(limits: Contract, written: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name in type(limits).model_fields:
        value = getattr(limits, name)
        if name not in written:
            default = value.model_dump(mode="json") if isinstance(value, Contract) else value
            yield f"{prefix}{name}", _in_yaml(default)
        elif isinstance(value, Contract):
            yield from _missing(value, written[name], f"{prefix}{name}.")


def local_time(policy: Policy, now: datetime) -> datetime:
    """Return `now` in the site's time zone.

    Raises:
        LocalDataError: this computer knows no such time zone.
    """
    if policy.time_zone == "UTC":
        return now.astimezone(UTC)
    try:
        return now.astimezone(ZoneInfo(policy.time_zone))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        guess = nearest(policy.time_zone, available_timezones())
        msg = f"policy.time_zone = {policy.time_zone!r} in site.yaml is no time zone of this computer"
        raise LocalDataError(msg, remedy=f"did you mean {guess!r}?" if guess else "write it as Area/City") from error


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
    replace_file(path, commented_site(site).encode("utf-8"))


def commented_site(site: str) -> str:
    """Return the text of a new ``site.yaml``: every limit of the policy at its default, with its meaning and unit."""
    lines = [f"site: {site}", "# page, health and metrics for this computer alone; take the line out for none"]
    lines += [f"local_page: {DEFAULT_ADDRESS}", "# a copy of the log of decisions for a syslog receiver, over TLS:"]
    lines += ["# audit: {syslog: siem.hospital.example:6514, ca: siem-ca.pem}", "policy:", *_commented(Policy(), "  ")]
    return "\n".join([*lines, "# data sets, by name: fedward client cohort add NAME FILE", "cohorts: {}", ""])


def _commented(limits: Contract, indent: str) -> Iterator[str]:
    for name, field in type(limits).model_fields.items():
        value = getattr(limits, name)
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        unit = f" [{extra['unit']}]" if extra.get("unit") else ""
        if name in _HEADINGS:
            yield f"\n{indent}# ---- {_HEADINGS[name]}"
        yield f"{indent}# {field.description}{unit}"
        if isinstance(value, Contract):
            yield f"{indent}{name}:"
            yield from _commented(value, f"{indent}  ")
        else:
            yield f"{indent}{name}: {_in_yaml(value)}"


def _in_yaml(value: Any) -> str:
    """Return a value on one line of YAML."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.split("\n", maxsplit=1)[0]


def trust_signers(home: Path, signers: Mapping[str, str]) -> None:
    """Add keys to ``policy.signers`` in ``site.yaml``, keeping the file's comments; what is there already stays.

    Args:
        home: the site's folder.
        signers: names, and public keys (``ed25519:…``) or fingerprints (``sha256:…``).

    Raises:
        LocalDataError: a name is taken by another key, a key has no such form, or the file has no line ``signers:``.
    """
    config = load_site(home)
    known = config.policy.signers
    for name, key in signers.items():
        if known.get(name, key) != key:
            msg = f"policy.signers.{name} in site.yaml is another key"
            raise LocalDataError(msg, remedy="choose another name, or take the old key out of site.yaml first")
    path = home / "site.yaml"
    line = f"  signers: {_in_yaml({**known, **signers})}\n"
    old = path.read_text(encoding="utf-8")
    new = re.sub(r"^  signers:.*\n(?: {3,}.*\n|\n)*", lambda _: line, old, count=1, flags=re.MULTILINE)
    try:
        changed = validated(SiteConfig, yaml.load(new, Loader=_LOADER), where=str(path))  # noqa: S506  (see load_site)
    except (StudyError, yaml.YAMLError) as error:
        msg = f"the key cannot be written into {path}"
        raise LocalDataError(msg, remedy="a key reads ed25519:… (its .pub file), a fingerprint sha256:…") from error
    if changed.policy.signers != {**known, **signers}:
        msg = f"{path} has no line `signers:` of its own under `policy`"
        raise LocalDataError(msg, remedy="add the key by hand, under policy.signers")
    replace_file(path, new.encode("utf-8"), mode=path.stat().st_mode & 0o777)


def register_cohort(home: Path, name: str, entry: CohortEntry) -> None:
    """Add a data set to ``site.yaml``, keeping the file's comments.

    Raises:
        LocalDataError: the name is taken, or none.
    """
    config = load_site(home)
    require_free(config, name)
    everything = {k: _as_written(v) for k, v in {**config.cohorts, name: entry}.items()}
    validated(SiteConfig, {"site": config.site, "cohorts": everything})
    path = home / "site.yaml"
    text = path.read_text(encoding="utf-8")
    block = re.search(r"^cohorts:.*\n?(?:[ \t].*\n?|\n)*", text, flags=re.MULTILINE)
    start, end = block.span() if block else (len(text), len(text))
    new = text[:start] + yaml.safe_dump({"cohorts": everything}, sort_keys=False, allow_unicode=True) + text[end:]
    replace_file(path, new.encode("utf-8"), mode=path.stat().st_mode & 0o777)


def require_free(config: SiteConfig, name: str) -> None:
    """Return if a data set may be registered as `name`.

    Raises:
        LocalDataError: the name is taken, or none.
    """
    if name in config.cohorts:
        msg = f"a cohort {name!r} is registered already"
        raise LocalDataError(msg, remedy="choose another name")
    if not re.fullmatch(SITE_NAME, name):
        msg = f"{name!r} is no name for a cohort"
        raise LocalDataError(msg, remedy="letters, digits, _, . and -, a letter or digit first, at most 63")


def _as_written(entry: CohortEntry) -> dict[str, Any]:
    """Return an entry as the file holds it: its kind, and what is not as it is by itself."""
    return {"kind": entry.kind, **entry.model_dump(mode="json", exclude_defaults=True)}
