"""All keys of a study, written from the contract itself: ``python -m fedward_common.reference``."""

from __future__ import annotations

import sys
import types
import typing
from typing import Any

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedward_common.study import Study

__all__ = ["study_reference"]

_HEAD = """# Study reference

Every key of a study, with its type, limits and default. Written by `python -m fedward_common.reference`; a test keeps
this page equal to the contract.
"""


def study_reference() -> str:
    """Return the reference page, Markdown."""
    sections = [_HEAD]
    seen: set[type[BaseModel]] = set()
    queue: list[tuple[str, type[BaseModel]]] = [("study", Study)]
    while queue:
        path, model = queue.pop(0)
        if model in seen:
            continue
        seen.add(model)
        sections.append(_section(path, model))
        for name, field in model.model_fields.items():
            label = name if path == "study" else f"{path}.{name}"
            queue += [(f"{label}{_suffix(child, field)}", child) for child in _models(field.annotation)]
    return "\n".join(sections)


def _suffix(child: type[BaseModel], field: FieldInfo) -> str:
    in_mapping = typing.get_origin(field.annotation) is dict
    tags = [
        f"{name}={typing.get_args(tag.annotation)[0]}"
        for name, tag in child.model_fields.items()
        if name in {"name", "kind", "rule", "mechanism"} and typing.get_origin(tag.annotation) is typing.Literal
    ]
    return (".<column>" if in_mapping else "") + (f" ({', '.join(tags)})" if tags else "")


def _section(path: str, model: type[BaseModel]) -> str:
    summary = " ".join((model.__doc__ or "").split("\n\n", maxsplit=1)[0].split())
    lines = [f"## {path}", "", summary, "", "| key | type | limits | default | meaning |", "|---|---|---|---|---|"]
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        unit = f" ({extra['unit']})" if extra.get("unit") else ""
        default = "required" if field.is_required() else f"`{_plain(field.get_default(call_default_factory=True))}`"
        meaning = f"{field.description or ''}{unit}".replace("|", "\\|")
        lines.append(
            f"| `{field.alias or name}` | {_kind(field.annotation)} | {_limits(field)} | {default} | {meaning} |"
        )
    return "\n".join([*lines, ""])


def _plain(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return '""' if value == "" else str(list(value) if isinstance(value, tuple) else value)


def _limits(field: FieldInfo) -> str:
    signs = {
        annotated_types.Ge: ("≥", "ge"),
        annotated_types.Gt: (">", "gt"),
        annotated_types.Le: ("≤", "le"),
        annotated_types.Lt: ("<", "lt"),
        annotated_types.MinLen: ("length ≥", "min_length"),
        annotated_types.MaxLen: ("length ≤", "max_length"),
    }
    found = [f"{signs[type(m)][0]} {getattr(m, signs[type(m)][1])}" for m in field.metadata if type(m) in signs]
    return ", ".join(found)


_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}


def _kind(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{a}`" for a in arguments)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(dict.fromkeys(_kind(a) for a in arguments))
    if origin in {typing.Annotated, tuple}:
        return ("list of " if origin is tuple else "") + _kind(arguments[0])
    return f"mapping of {_kind(arguments[1])}" if origin is dict else _WORDS.get(annotation, "section")


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]


if __name__ == "__main__":
    sys.stdout.write(study_reference())
