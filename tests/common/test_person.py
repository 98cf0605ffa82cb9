"""Who decides is the account that logged in, not the one that a command runs as."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

import fedward_common.person
from fedward_common.person import account

HERE = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that stands for the kernel's audit login; unset, as in a container."""
    path = tmp_path / "loginuid"
    path.write_text("4294967295", encoding="ascii")
    monkeypatch.setattr(fedward_common.person, "_LOGIN", path)
    monkeypatch.delenv("SUDO_UID", raising=False)
    return path


def test_audit_login_counts_before_everything_else(login: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = next(entry for entry in pwd.getpwall() if entry.pw_uid not in {0, os.getuid()})
    login.write_text(f"{daemon.pw_uid}", encoding="ascii")
    monkeypatch.setenv("SUDO_UID", "0")

    assert account() == daemon.pw_name


def test_account_behind_sudo_counts_without_an_audit_login(login: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = next(entry for entry in pwd.getpwall() if entry.pw_uid not in {0, os.getuid()})
    monkeypatch.setenv("SUDO_UID", str(other.pw_uid))

    assert account() == other.pw_name
    assert login.exists()


@pytest.mark.parametrize("text", ["4294967295", "", "words"])
def test_account_of_the_process_counts_last(login: Path, text: str) -> None:
    login.write_text(text, encoding="ascii")

    assert account() == HERE


@pytest.mark.usefixtures("login")
@pytest.mark.parametrize("name", ["LOGNAME", "USER", "LNAME", "USERNAME", "SUDO_USER"])
def test_names_in_the_environment_are_not_believed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "somebody-else")

    assert account() == HERE


@pytest.mark.usefixtures("login")
def test_account_without_a_name_is_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "3999999999")

    assert account() == "uid 3999999999"


def test_computer_without_the_kernel_s_file_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedward_common.person, "_LOGIN", tmp_path / "nowhere")
    monkeypatch.delenv("SUDO_UID", raising=False)

    assert account() == HERE
