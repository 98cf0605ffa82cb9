"""A page's commands are found, and a page that would leave one unrun by mistake is refused."""

from textwrap import dedent

import pytest

from tests.docs.snippets import Command, SnippetError, commands, output_matches


def page(text: str) -> str:
    return dedent(text).strip() + "\n"


def test_console_block_gives_its_commands_in_order_without_their_output() -> None:
    text = page("""
        # Title

        ```console
        $ fedward --version
        0.1.0
        $ fedward simulate
        ```
    """)
    assert commands(text) == [Command("fedward --version", 4), Command("fedward simulate", 6)]


def test_bash_block_is_one_script() -> None:
    text = page("""
        ```bash
        cat > a.csv <<END
        x
        END
        ```
    """)
    assert commands(text) == [Command("cat > a.csv <<END\nx\nEND", 1)]


@pytest.mark.parametrize("prompt", ["    ", "> "], ids=["indented", "prompted"])
def test_trailing_backslash_continues_a_command(prompt: str) -> None:
    text = f"```console\n$ fedward simulate \\\n{prompt}seed=1\nok\n```\n"
    [command] = commands(text)
    assert command.text == f"fedward simulate \\\n{prompt.removeprefix('> ')}seed=1"


def test_output_that_ends_in_a_backslash_is_no_continuation() -> None:
    text = "<!-- output checked -->\n```console\n$ a\nC:\\\nnext\n$ b\n```\n"
    assert [command.shown for command in commands(text)] == [("C:\\", "next"), ()]


def test_output_is_kept_only_where_it_is_to_be_checked() -> None:
    block = "```console\n$ a\none\n\ntwo\n\n$ b\n```\n"
    assert [command.shown for command in commands(block)] == [None, None]
    checked = commands(f"<!-- output checked -->\n\n{block}")
    assert [command.shown for command in checked] == [("one", "", "two"), ()]


def test_block_marked_as_not_run_is_left_out_and_the_next_one_is_not() -> None:
    text = page("""
        <!-- not run: CI runs it itself -->
        ```console
        $ make test
        ```

        ```console
        $ true
        ```
    """)
    assert [command.text for command in commands(text)] == ["true"]


def test_blocks_of_other_languages_and_quoted_fences_are_not_run() -> None:
    text = page("""
        ```python
        $ not a command
        ```

        ````markdown
        ```console
        $ quoted
        ```
        ````

        ```
        $ plain
        ```
    """)
    assert commands(text) == []


def test_block_inside_a_list_is_dedented() -> None:
    assert [command.text for command in commands("1. First\n\n   ```console\n   $ true\n   ```\n")] == ["true"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<!-- not run: -->\n```bash\ntrue\n```", "line 2: .*with a reason"),
        ("<!-- not run -->\n```bash\ntrue\n```", "line 2: .*with a reason"),
        ("<!-- output is checked -->\n```console\n$ a\n```", "line 2: .*neither"),
        ("<!-- not run: slow -->\nSome text.\n", "line 2: .*above no block"),
        ("<!-- not run: slow -->\n", "line 1: .*above no block"),
        ("<!-- not run: slow -->\n```python\n1\n```", "line 2: .*never run"),
        ("<!-- output checked -->\n```bash\ntrue\n```", "line 2: .*no output"),
        ("```sh\ntrue\n```", "line 1: write a 'sh' block as"),
        ("```console\n$ true\n", "line 1: .*never closed"),
        ("```console\ntrue\n```", "line 2: output without a command"),
        ("```console\n```", "line 1: .*empty"),
        ("```bash\n\n```", "line 1: .*empty"),
    ],
)
def test_page_that_would_leave_a_command_unrun_by_mistake_is_refused(text: str, problem: str) -> None:
    with pytest.raises(SnippetError, match=problem):
        commands(text)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        (["a", "b"], "a\nb\n"),
        (["a  "], "a\n\n"),
        (["auroc … of 4"], "auroc 0.98 of 4\n"),
        (["first", "…", "last"], "first\n1\n2\nlast\n"),
        (["first", "...", "last"], "first\nlast\n"),
        (["[1] (a+b)*"], "[1] (a+b)*\n"),
        ([], ""),
    ],
)
def test_output_as_shown_matches(shown: list[str], printed: str) -> None:
    assert output_matches(shown, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        (["a"], "a\nb\n"),
        (["a", "b"], "a\n"),
        (["a … c"], "a\nc\n"),
        (["a.c"], "abc\n"),
        ([], "x\n"),
        (["x"], ""),
    ],
)
def test_other_output_does_not_match(shown: list[str], printed: str) -> None:
    assert not output_matches(shown, printed)
