"""The local page is for this computer only, whatever somebody writes into site.yaml or sends as a Host header."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedward_client.config import create_site, load_site
from fedward_client.loopback import DEFAULT_ADDRESS, Loopback, loopback
from fedward_common.errors import FedwardError, InstallationError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8470", Loopback("127.0.0.1", 8470)),
        ("127.8.9.10:1", Loopback("127.8.9.10", 1)),
        ("localhost:65535", Loopback("127.0.0.1", 65535)),
        ("[::1]:8470", Loopback("::1", 8470)),
        ("127.0.0.1:0", Loopback("127.0.0.1", 0)),
    ],
)
def test_a_loopback_address_is_taken(text: str, expected: Loopback) -> None:
    assert loopback(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0:8470", "[::]:8470", "10.0.0.5:8470", "192.168.1.2:80", "[fe80::1]:8470", "[::ffff:10.0.0.1]:80",
        "hospital.example:8470", "localhost.example:8470", "127.0.0.1.example:8470", "127.0.0.1", "127.0.0.1:",
        "127.0.0.1:65536", "127.0.0.1:-1", "127.1:80", "0x7f.1:80", "2130706433:80", "::1:8470", ":8470", "",
        "127.0.0.1:8470 ", "127.0.0.1:8470\n", "127.0.0.1:٨٠",
    ],
)  # fmt: skip
def test_any_other_address_is_refused_with_the_key_to_correct(text: str) -> None:
    with pytest.raises(InstallationError) as caught:
        loopback(text)

    assert repr(text) in caught.value.message
    assert "local_page" in caught.value.remedy


def test_an_address_is_written_as_a_url_needs_it() -> None:
    assert loopback("[::1]:8470").netloc == "[::1]:8470"
    assert loopback("localhost:8470").netloc == "127.0.0.1:8470"


@pytest.mark.parametrize("header", ["127.0.0.1:8470", "localhost:8470", "LocalHost:8470"])
def test_a_request_that_names_the_address_is_meant_for_it(header: str) -> None:
    assert loopback(DEFAULT_ADDRESS).named_by(header)


@pytest.mark.parametrize(
    "header",
    [
        "", "evil.example", "evil.example:8470", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:84700",
        "localhost:8470.evil.example",
    ],
)  # fmt: skip
def test_a_rebound_name_is_not_this_address(header: str) -> None:
    """DNS rebinding: the browser is at 127.0.0.1 and says the name of the page that sent it there."""
    assert not loopback(DEFAULT_ADDRESS).named_by(header)


def test_a_new_site_has_the_page_on_and_a_file_without_the_line_has_it_off(tmp_path: Path) -> None:
    home = tmp_path / "north"
    create_site(home, "north")
    assert load_site(home).local_page == DEFAULT_ADDRESS

    path = home / "site.yaml"
    path.write_text(path.read_text().replace(f"local_page: {DEFAULT_ADDRESS}\n", ""))

    assert load_site(home).local_page is None


def test_a_site_whose_page_would_leave_the_computer_does_not_load(tmp_path: Path) -> None:
    home = tmp_path / "north"
    create_site(home, "north")
    path = home / "site.yaml"
    path.write_text(path.read_text().replace(DEFAULT_ADDRESS, "0.0.0.0:8470"))

    with pytest.raises(FedwardError, match="local_page"):
        load_site(home)
