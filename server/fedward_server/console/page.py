"""The console's templates, style sheet, script and icon; and the policy that a browser holds them to."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

import jinja2

from fedward_common import __version__
from fedward_server.console.words import count, moment, size, span
from fedward_server.run_status import ENDED
from fedward_server.wording import bound, number

__all__ = ["asset", "content_policy", "render"]

_KINDS: Final = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "console.svg": "image/svg+xml",
}


def content_policy() -> str:
    """Return the pages' Content-Security-Policy: this origin's own style, script, icon and forms, and nothing else."""
    return (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


def render(template: str, **values: Any) -> str:
    """Return a page; every value is escaped."""
    return _environment().get_template(template).render(version=__version__, ENDED=ENDED, **values)


@lru_cache(maxsize=4)
def asset(name: str) -> tuple[bytes, str] | None:
    """Return one of the three files that pages refer to, and its media type."""
    kind = _KINDS.get(name)
    if kind is None:
        return None
    return files("fedward_server").joinpath("templates", "console", name).read_bytes(), kind


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedward_server", "templates/console"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bound": bound, "count": count, "moment": moment, "number": number, "size": size, "span": span,
    }  # fmt: skip
    return environment
