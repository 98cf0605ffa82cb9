"""Finds the commands that a Markdown page shows. Pure: reads text, runs nothing.

A page is a user's first contact, so what it shows must work. The rules for authors:

* a ``console`` block holds commands after ``$ `` (a trailing backslash continues one), each followed by its
  output;
* a ``bash`` block is one script;
* ``<!-- not run: REASON -->`` above a block leaves it out;
* ``<!-- output checked -->`` above a console block compares the output shown, where ``…`` stands for any text
  and a line of ``…`` alone for any lines.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import dedent

RUNNABLE = frozenset({"bash", "console"})
# Blocks that a reader would type in all the same: they must be written so that they are run.
UNCHECKED_SHELLS = frozenset({"sh", "shell", "shell-session", "shellsession", "zsh"})

_FENCE = re.compile(r"(?P<indent>\s*)(?P<ticks>`{3,}|~{3,})\s*(?P<language>[\w+-]*)")
_NOTE = re.compile(r"\s*<!--\s*(?P<note>(not run|output).*?)\s*-->\s*")
_NOT_RUN = re.compile(r"not run:\s*(?P<reason>\S.*)")
_OUTPUT_CHECKED = "output checked"
_ANY_LINES = frozenset({"…", "..."})


class SnippetError(ValueError):
    """A page breaks the rules for authors."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")


@dataclass(frozen=True, slots=True)
class Command:
    """One thing to run; `shown` is the output to compare with, or None where it is not compared."""

    text: str
    line: int
    shown: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block with the notes that stand above it; `line` is that of its opening fence."""

    language: str
    lines: tuple[str, ...]
    notes: tuple[str, ...]
    line: int


def commands(page: str) -> list[Command]:
    """Return the commands of a page in the order in which a reader meets them.

    Those marked as not run are left out.

    Raises:
        SnippetError: the page leaves a command unrun by mistake, or breaks another of the rules above.
    """
    found: list[Command] = []
    for block in blocks(page):
        if block.language in UNCHECKED_SHELLS:
            raise SnippetError(block.line, f"write a {block.language!r} block as 'console' or 'bash'")
        if block.language not in RUNNABLE:
            if block.notes:
                raise SnippetError(block.line, f"{block.language or 'plain'!r} is never run: drop the note")
        elif not _skipped(block):
            found += _script(block) if block.language == "bash" else _session(block)
    return found


def blocks(page: str) -> Iterator[Block]:
    """Yield every fenced block of a page."""
    numbered = enumerate(page.splitlines(), start=1)
    notes: list[str] = []
    for number, text in numbered:
        if fence := _FENCE.match(text):
            lines = _until_closed(numbered, fence["ticks"], number)
            yield Block(fence["language"].lower(), lines, tuple(notes), number)
            notes.clear()
        elif note := _NOTE.fullmatch(text):
            notes.append(note["note"])
        elif text.strip() and notes:
            raise SnippetError(number, f"the note {notes[-1]!r} stands above no block")
    if notes:
        raise SnippetError(len(page.splitlines()), f"the note {notes[-1]!r} stands above no block")


def output_matches(shown: Sequence[str], actual: str) -> bool:
    """Tell whether a command printed what the page shows.

    Spaces at line ends and blank lines at the end do not count.
    """
    pattern = "".join(
        r"(?:.*\n)*" if line.strip() in _ANY_LINES else re.escape(line.rstrip()).replace("…", ".*") + r"\n"
        for line in shown
    )
    printed = "".join(line.rstrip() + "\n" for line in actual.rstrip().splitlines())
    return re.fullmatch(pattern, printed) is not None


def _until_closed(numbered: Iterator[tuple[int, str]], ticks: str, opened: int) -> tuple[str, ...]:
    lines: list[str] = []
    for _, text in numbered:
        bare = text.strip()
        if len(bare) >= len(ticks) and set(bare) == {ticks[0]}:
            return tuple(dedent("\n".join(lines)).splitlines())
        lines.append(text)
    raise SnippetError(opened, "the block is never closed")


def _skipped(block: Block) -> bool:
    for note in block.notes:
        if _NOT_RUN.fullmatch(note):
            return True
        if note != _OUTPUT_CHECKED:
            raise SnippetError(
                block.line, f"{note!r} is neither 'not run: REASON', with a reason, nor {_OUTPUT_CHECKED!r}"
            )
    return False


def _script(block: Block) -> list[Command]:
    if block.notes:
        raise SnippetError(block.line, "a bash block shows no output that could be checked")
    if not any(line.strip() for line in block.lines):
        raise SnippetError(block.line, "the block is empty")
    return [Command("\n".join(block.lines), block.line)]


def _session(block: Block) -> list[Command]:
    found: list[_Typed] = []
    for number, text in enumerate(block.lines, start=block.line + 1):
        if found and found[-1].continues:
            found[-1].typed.append(text.removeprefix("> "))
        elif text.startswith("$ "):
            found.append(_Typed(number, [text.removeprefix("$ ")]))
        elif found:
            found[-1].shown.append(text)
        else:
            raise SnippetError(number, "output without a command: a console command starts with '$ '")
    if not found:
        raise SnippetError(block.line, "the block is empty")
    checked = _OUTPUT_CHECKED in block.notes
    return [entry.command(checked=checked) for entry in found]


@dataclass(slots=True)
class _Typed:
    """A command of a console block while it is read."""

    line: int
    typed: list[str]
    shown: list[str] = field(default_factory=list)

    @property
    def continues(self) -> bool:
        return not self.shown and self.typed[-1].endswith("\\")

    def command(self, *, checked: bool) -> Command:
        shown = tuple("\n".join(self.shown).rstrip().splitlines()) if checked else None
        return Command("\n".join(self.typed), self.line, shown)
