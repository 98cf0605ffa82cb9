"""The shell of a page behaves like its reader's, and leaves nothing running."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.shell import Shell

TIMEOUT_S = 30.0


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path, cache=tmp_path / "cache") as opened:
        yield opened


def ended(pid: int) -> bool:
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # killed; its parent has yet to notice
            return True
        time.sleep(0.02)
    return False


def test_directory_and_variables_last_from_one_command_to_the_next(shell: Shell) -> None:
    assert shell.run("mkdir 'a b' && cd 'a b' && export X='1 2' && y=3", timeout_s=TIMEOUT_S) == (0, "")
    assert shell.run('echo "${PWD##*/} $X $y"', timeout_s=TIMEOUT_S) == (0, "a b 1 2 3\n")


def test_programs_of_the_environment_under_test_come_first(shell: Shell) -> None:
    status, printed = shell.run("command -v pytest", timeout_s=TIMEOUT_S)
    assert (status, os.access(printed.strip(), os.X_OK)) == (0, True)
    assert shell.run("python -c 'import pytest'", timeout_s=TIMEOUT_S) == (0, "")


def test_home_is_not_the_users(shell: Shell) -> None:
    assert str(Path.home()) != shell.run("echo ~", timeout_s=TIMEOUT_S)[1].strip()


@pytest.mark.parametrize("command", ["exit 3", "false | true\ntrue", "false\ntrue"])
def test_failure_is_seen_anywhere_in_a_script(shell: Shell, command: str) -> None:
    assert shell.run(command, timeout_s=TIMEOUT_S)[0] != 0


def test_errors_are_part_of_the_output(shell: Shell) -> None:
    assert shell.run("echo out; echo err >&2", timeout_s=TIMEOUT_S) == (0, "out\nerr\n")


def test_command_that_takes_too_long_is_killed_with_its_children(shell: Shell) -> None:
    status, printed = shell.run("sleep 60 & echo $!; wait", timeout_s=1)
    assert status < 0
    assert ended(int(printed))


def test_background_process_lasts_until_the_page_ends_and_no_longer(tmp_path: Path) -> None:
    with Shell(tmp_path, cache=tmp_path) as shell:
        pid = int(shell.run("sleep 60 & echo $!", timeout_s=TIMEOUT_S)[1])
        assert shell.run(f"kill -0 {pid}", timeout_s=TIMEOUT_S) == (0, "")
    assert ended(pid)
