"""From Hydra groups and overrides to plain values; nothing is written, and no key is lost in silence.

Hydra itself drops a misspelt key that has a leading ``+``, and ignores a user's file that has a packaged name.
Here every override reaches the contract, which knows all keys, and a clash of names is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedward_common.contract import nearest
from fedward_common.errors import StudyError, UnknownKeyError

__all__ = ["GROUPS", "compose_study", "options"]

GROUPS = ("study", "cohort", "model", "training", "privacy", "aggregation", "evaluation", "engine", "policy")
_PACKAGE = Path(__file__).parent
_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[A-Za-z0-9_./@-]+)(?:=(?P<value>.*))?", re.DOTALL)


def options(group: str, config_dir: Path | None = None) -> list[str]:
    """Return the names that `group` offers, packaged ones and those of the user's folder."""
    folders = [_PACKAGE / group, *([config_dir / group] if config_dir else [])]
    return sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})


def compose_study(overrides: Sequence[str], *, config_dir: Path | None = None) -> dict[str, Any]:
    """Return the composed values as plain dicts, lists, texts and numbers.

    Args:
        overrides: ``group=option``, ``key.path=value`` or ``~key``, as in Hydra; a leading ``+`` changes nothing.
        config_dir: a folder with groups of the user's own, for example ``study/mine.yaml``.

    Raises:
        StudyError: an override that cannot be read, a group without this option, or two files of one name.
        UnknownKeyError: a key whose first part no composition has.
    """
    if config_dir is not None:
        _refuse_clashes(config_dir)
    prepared = [_prepared(text, config_dir) for text in overrides]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("fedward_conf", version_base="1.3"):
            search = (
                [f"hydra.searchpath=[{_quoted(f'file://{config_dir.resolve()}')}]"] if config_dir is not None else []
            )
            composed = compose("config", overrides=[*search, *prepared])
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        msg = f"the study cannot be composed: {' '.join(str(error).split())}"
        raise StudyError(msg, remedy="check the overrides and the files of --config-dir") from error
    if not isinstance(values, dict):
        msg = "the composed study is not a mapping"
        raise StudyError(msg)
    return {str(key): value for key, value in values.items()}


def _quoted(text: str) -> str:
    """Return `text` as a quoted string of Hydra's grammar, in which a backslash counts before a quote only."""
    return '"' + text.replace('"', '\\"') + '"'


def _refuse_clashes(config_dir: Path) -> None:
    if not config_dir.is_dir():
        msg = f"--config-dir {config_dir} is no folder"
        raise StudyError(msg)
    for group in GROUPS:
        mine = {path.stem for path in (config_dir / group).glob("*.yaml")}
        clash = mine & {path.stem for path in (_PACKAGE / group).glob("*.yaml")}
        if clash:
            name = min(clash)
            msg = f"{config_dir / group / name}.yaml has the name of a packaged file, which would win in silence"
            raise StudyError(msg, remedy=f"rename it, for example {group}/my_{name}.yaml")


def _prepared(text: str, config_dir: Path | None) -> str:
    """Return an override such that a value reaches the contract even where the composition has no such key."""
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        msg = f"{text!r} is no override"
        raise StudyError(msg, remedy="write key.path=value, group=option or ~key")
    key, value, sign = match["key"], match["value"], match["sign"]
    if sign == "~":
        return text
    if value is None:
        msg = f"{text!r} has no value"
        raise StudyError(msg, remedy=f"write {key}=value")
    if key in GROUPS:
        known = options(key, config_dir)
        if value not in known:
            guess = nearest(value, known)
            hint = f"; did you mean {key}={guess}?" if guess else ""
            msg = f"{key}={value}: no such option{hint} There are: {', '.join(known)}"
            raise UnknownKeyError(msg)
        return f"{key}={value}"
    return f"++{key}={value}"
