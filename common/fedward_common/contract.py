"""How a contract is validated: frozen, no unknown key, every message names the key, its unit and its limit."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from fedward_common.errors import StudyError, UnknownKeyError

__all__ = ["Contract", "nearest", "plain", "quantity", "validated"]

_LIMITS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


class Contract(BaseModel):
    """Base of every part of a contract: immutable, closed to unknown keys, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


def quantity(description: str, unit: str = "", *, later: bool = False, **limits: Any) -> Any:
    """Return a field with a unit that error messages repeat; `limits` are pydantic's (``ge``, ``le``, …).

    `later` marks a field that the last release did not have; see `plain`.
    """
    extra: dict[str, Any] = ({"unit": unit} if unit else {}) | ({"later": True} if later else {})
    return pydantic.Field(description=description, json_schema_extra=extra or None, **limits)


def plain(contract: Contract) -> dict[str, Any]:
    """Return a contract as plain JSON values: every default written out, but for those of `later` fields.

    So the contract of whoever does not use what a release has added is the same, byte for byte, in that release and in
    the last one, which would refuse the key.
    """
    values = contract.model_dump(mode="json", by_alias=True)
    _leave_out_later(contract, values)
    return values


def _leave_out_later(part: object, values: Any) -> None:
    match part:
        case Contract():
            for name, field in type(part).model_fields.items():
                key, value, extra = field.alias or name, getattr(part, name), field.json_schema_extra
                later = isinstance(extra, dict) and bool(extra.get("later"))
                if later and value == field.get_default(call_default_factory=True):
                    del values[key]
                else:
                    _leave_out_later(value, values[key])
        case Mapping():
            for value, dumped in zip(part.values(), values.values(), strict=True):
                _leave_out_later(value, dumped)
        case tuple() | list():
            for value, dumped in zip(part, values, strict=True):
                _leave_out_later(value, dumped)


def nearest(word: str, valid: typing.Iterable[str]) -> str | None:
    """Return the valid word most like `word`, whatever its case, or None when nothing is like it."""
    words = {known.casefold(): known for known in valid}
    matches = difflib.get_close_matches(word.casefold(), list(words), n=1, cutoff=0.5)
    return words[matches[0]] if matches else None


C = TypeVar("C", bound=Contract)


def validated(contract: type[C], data: Mapping[str, Any], *, where: str = "") -> C:
    """Return `data` as a `contract`.

    Args:
        contract: the class to build.
        data: plain mappings, lists, texts and numbers.
        where: the file or group to name in messages.

    Raises:
        UnknownKeyError: a key that the contract has no place for.
        StudyError: a value of the wrong type, out of range or missing; all of them in one message.
    """
    try:
        return contract.model_validate(data)
    except pydantic.ValidationError as error:
        problems = [_explain(contract, item) for item in error.errors(include_url=False, include_input=True)]
        text = "; ".join(dict.fromkeys(problems))
        prefix = f"{where}: " if where else ""
        kind = UnknownKeyError if any(e["type"] == "extra_forbidden" for e in error.errors()) else StudyError
        raise kind(
            prefix + text, remedy="correct the named keys; see docs/study-reference.md for all of them"
        ) from None


def _explain(root: type[BaseModel], item: Any) -> str:
    path, owner, field = _walk(root, item["loc"])
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        guess = nearest(str(item["loc"][-1]), _keys(owner)) if owner else None
        hint = (
            f"; did you mean {_join(path[:-1], guess)!r}?"
            if guess
            else f"; valid keys here: {', '.join(sorted(_keys(owner)))}"
        )
        return f"unknown key {'.'.join(path)!r}{hint}"
    unit = ""
    if field is not None and isinstance(field.json_schema_extra, dict):
        unit = f" {field.json_schema_extra.get('unit', '')}"
    if kind in _LIMITS:
        key, words = _LIMITS[kind]
        return f"{'.'.join(path)} = {item['input']}{unit} must be {words} {context[key]}{unit}"
    if kind == "missing":
        return f"{'.'.join(path)} is missing"
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        tags = context.get("expected_tags", "the known kinds")
        return f"{'.'.join(path)}: {context.get('discriminator', 'kind')} must be one of {tags}"
    if kind == "string_pattern_mismatch" and field is not None:
        return f"{'.'.join(path)} = {item['input']!r} is not: {field.description or context['pattern']}"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(path) or 'study'}{unit and f' ({unit.strip()})'}: {message}"


def _join(path: list[str], last: str | None) -> str:
    return ".".join([*path, last or ""])


def _keys(owner: type[BaseModel] | None) -> list[str]:
    if owner is None:
        return []
    return [field.alias or name for name, field in owner.model_fields.items()]


def _walk(
    root: type[BaseModel], location: tuple[str | int, ...]
) -> tuple[list[str], type[BaseModel] | None, FieldInfo | None]:
    """Follow a pydantic location to the path a person wrote, without the union tags in between."""
    path: list[str] = []
    options: list[Any] = [root]
    owner: type[BaseModel] | None = root
    field: FieldInfo | None = None
    for step in location:
        models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        tagged = [m for m in models if str(step) in _tags(m)]
        if len(models) > 1 and tagged:
            options, owner = tagged, tagged[0]
            continue
        path.append(str(step))
        if len(models) == 1:
            owner = models[0]
            field = next((f for n, f in owner.model_fields.items() if step in (n, f.alias)), None)
            options = _leaves(field.annotation) if field else []
        else:
            options = [leaf for option in options for leaf in _arguments(option)]
    if location and location[-1] != (path[-1] if path else None):
        path = path or [str(location[-1])]
    return path, owner, field


def _tags(model: type[BaseModel]) -> set[str]:
    return {
        str(value)
        for field in model.model_fields.values()
        if typing.get_origin(field.annotation) is typing.Literal
        for value in typing.get_args(field.annotation)
    }


def _leaves(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return [leaf for argument in typing.get_args(annotation) for leaf in _leaves(argument)]
    return [annotation]


def _arguments(option: Any) -> list[Any]:
    return [leaf for argument in typing.get_args(option) for leaf in _leaves(argument)]
