"""What changed between two versions of a study, for the person who approves: pure rules over two contracts.

Each change names the field, its meaning and both values, and says, where the field alone decides it, whether the new
value is looser or tighter for the patients' privacy: looser is towards a limit that a site's policy has, or reads more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel

from fedward_common.canonical import canonical_json
from fedward_common.study import SINGLE_UPDATE_RULES, Study

__all__ = ["GROUPS", "Change", "changes", "in_words"]

Group = Literal["data read", "model", "training", "privacy", "aggregation", "other"]
Effect = Literal["looser", "tighter", ""]
GROUPS: Final[tuple[Group, ...]] = ("data read", "model", "training", "privacy", "aggregation", "other")
_GROUP_OF: Final[Mapping[str, Group]] = {
    "cohort": "data read", "model": "model", "training": "training", "privacy": "privacy", "aggregation": "aggregation",
}  # fmt: skip
_LOOSER_WHEN_LARGER: Final = frozenset({
    "privacy.epsilon", "privacy.delta", "privacy.clip_norm", "training.rounds", "training.local_steps",
    "training.sampling_rate", "cohort.max_rows_per_patient",
})  # fmt: skip
_TIGHTER_WHEN_LARGER: Final = frozenset({"privacy.noise_multiplier", "aggregation.quorum"})

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One field that two versions have differently; a version that has no such field, or null, has None.

    Attributes:
        group: what it belongs to.
        key: as a study is written, for example ``privacy.epsilon``.
        meaning: the field's description in the study's reference; empty where the name is the author's own.
        old: plain JSON value before.
        new: plain JSON value now.
        effect: for the patients' privacy; empty where the field alone does not say.
    """

    group: Group
    key: str
    meaning: str
    old: Any
    new: Any
    effect: Effect

    def sentence(self) -> str:
        """Return the change on one line."""
        tail = f"  [{self.effect} for privacy]" if self.effect else ""
        if self.old is None:
            return f"{self.key}: new: {in_words(self.new)}{tail}"
        if self.new is None:
            return f"{self.key}: gone: {in_words(self.old)}{tail}"
        return f"{self.key}: {in_words(self.old)} → {in_words(self.new)}{tail}"


def changes(old: Study, new: Study) -> list[Change]:
    """Return every field in which `new` differs from `old`, by group and key; none exactly if the digests are equal.

    A column that only one version has is one change, whatever it declares.
    """
    found = []
    for path, before, after in _differences(old.contract(), new.contract(), ()):
        meaning = _meaning(new, path) or _meaning(old, path)
        group = _GROUP_OF.get(path[0], "other")
        found.append(Change(group, ".".join(path), meaning, before, after, _effect(path, before, after)))
    return sorted(found, key=lambda change: (GROUPS.index(change.group), change.key))


def in_words(value: Any) -> str:
    """Return a plain JSON value as people read it; of a mapping, what is neither empty nor false."""
    if isinstance(value, dict):
        said = {key: item for key, item in value.items() if item or type(item) in (int, float)}
        return ", ".join(f"{key} {in_words(item)}" for key, item in said.items())
    if isinstance(value, list):
        return "[" + ", ".join(in_words(item) for item in value) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if value != "" else "(empty)"


def _differences(old: Any, new: Any, path: Path) -> Iterator[tuple[Path, Any, Any]]:
    """Yield path, old and new value of each leaf that differs, as canonical JSON tells values apart: 1 is not 1.0."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), (*path, name))
    elif canonical_json(old) != canonical_json(new):
        yield path, old, new


def _effect(path: Path, old: Any, new: Any) -> Effect:
    match path:
        case ("cohort", "columns", _):
            return _looser(old is None, new is None)
        case ("cohort", "patient"):
            return _looser(new is None, old is None)
        case ("aggregation", "rule"):
            return _looser(new in SINGLE_UPDATE_RULES, old in SINGLE_UPDATE_RULES)
        case ("privacy",) | ("privacy", "mechanism"):
            return _looser(_protects(old) and not _protects(new), _protects(new) and not _protects(old))
    key = ".".join(path)
    if old is None or new is None or key not in _LOOSER_WHEN_LARGER | _TIGHTER_WHEN_LARGER:
        return ""
    larger, smaller = new > old, new < old
    return _looser(larger, smaller) if key in _LOOSER_WHEN_LARGER else _looser(smaller, larger)


def _looser(looser: object, tighter: object) -> Effect:
    if bool(looser) == bool(tighter):
        return ""
    return "looser" if looser else "tighter"


def _protects(privacy: Any) -> bool:
    mechanism = privacy.get("mechanism") if isinstance(privacy, dict) else privacy
    return mechanism not in (None, "none")


def _meaning(study: Study, path: Path) -> str:
    """Return the description and unit of the field that `path` names, or nothing where this version has none."""
    here: Any = study
    description = ""
    for name in path:
        if isinstance(here, BaseModel):
            fields = type(here).model_fields
            attribute = next((n for n, field in fields.items() if name in (n, field.alias)), None)
            if attribute is None:
                return ""
            extra = fields[attribute].json_schema_extra
            unit = str(extra.get("unit", "")).strip("()") if isinstance(extra, dict) else ""
            description = fields[attribute].description or ""
            description += f", in {unit}" if unit and unit not in description.split() else ""
            here = getattr(here, attribute)
        else:
            description, here = "", here.get(name) if isinstance(here, Mapping) else None
    return description
