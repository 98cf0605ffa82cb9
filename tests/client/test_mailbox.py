from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedward_client.mailbox import Box, Key, Mailbox, ObjectCache

KEY = Key(7, "a" * 64)
OTHER = Key(7, "b" * 64)


def name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ------------------------------------------------------------------------------------------------------------- boxes
def test_an_entry_comes_back_as_it_was(tmp_path: Path) -> None:
    Box(tmp_path / "outbox").keep(KEY, b"an update")

    assert Box(tmp_path / "outbox").get(KEY) == b"an update"


def test_entries_are_private(tmp_path: Path) -> None:
    Box(tmp_path / "outbox").keep(KEY, b"an update")

    assert (tmp_path / "outbox").stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "outbox").iterdir()] == [0o600]


def test_entries_come_in_the_order_in_which_they_were_kept(tmp_path: Path) -> None:
    box = Box(tmp_path)
    for number in range(5):
        box.keep(Key(number, "m"), str(number).encode())

    assert [content for _, content in box.entries()] == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("message", ["../../site.yaml", "/etc/passwd", "", "\x00", "a" * 10_000, "é"])
def test_an_identifier_from_the_network_names_no_other_file(tmp_path: Path, message: str) -> None:
    box = Box(tmp_path / "inbox")

    box.keep(Key(1, message), b"x")

    (entry,) = tmp_path.rglob("*-*")
    assert entry.parent == tmp_path / "inbox"
    assert box.get(Key(1, message)) == b"x"


@pytest.mark.parametrize("damage", [b"", b"x", b"\x00" * 40])
def test_a_damaged_entry_is_not_there_and_is_counted(tmp_path: Path, damage: bytes) -> None:
    box = Box(tmp_path)
    box.keep(KEY, b"an update")
    box.keep(OTHER, b"another")
    (tmp_path / KEY.name).write_bytes(damage)

    assert box.get(KEY) is None
    assert [content for _, content in box.entries()] == [b"another"]
    assert box.tidy() == 1
    assert {path.name for path in tmp_path.iterdir()} == {OTHER.name}


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.keep(KEY, b"an update")
    path = tmp_path / KEY.name
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)

    assert box.get(KEY) is None


def test_what_was_dropped_is_gone_and_dropping_it_again_is_no_fault(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.keep(KEY, b"x")
    box.drop(KEY)
    box.drop(KEY)

    assert box.get(KEY) is None
    assert box.entries() == []


def test_a_folder_that_is_not_there_is_an_empty_box(tmp_path: Path) -> None:
    box = Box(tmp_path / "none")

    assert (box.entries(), box.tidy(), box.get(KEY)) == ([], 0, None)
    assert not (tmp_path / "none").exists()


# ----------------------------------------------------------------------------------------------------------- objects
def test_an_object_is_found_by_its_digest_only(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, 1000)
    cache.put(name(b"weights"), b"weights")

    assert cache.get(name(b"weights")) == b"weights"
    assert cache.get(name(b"others")) is None
    with pytest.raises(ValueError, match="SHA-256"):
        cache.put(name(b"others"), b"weights")


def test_an_object_that_was_changed_on_the_disk_is_not_there_any_more(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, 1000)
    cache.put(name(b"weights"), b"weights")
    (tmp_path / name(b"weights")).write_bytes(b"poisoned")

    assert cache.get(name(b"weights")) is None
    assert list(tmp_path.iterdir()) == []
    assert cache.used == 0


@pytest.mark.parametrize("hostile", ["../site.yaml", "", ".", "A" * 64, "a" * 63, "/etc/passwd"])
def test_a_name_from_the_network_reaches_no_other_file(tmp_path: Path, hostile: str) -> None:
    (tmp_path / "site.yaml").write_text("policy")
    cache = ObjectCache(tmp_path / "objects", 1000)
    cache.put(name(b"x"), b"x")

    cache.drop([hostile])

    assert cache.get(hostile) is None
    assert cache.sync([hostile]) is False
    assert (tmp_path / "site.yaml").read_text() == "policy"


def test_the_objects_used_longest_ago_make_room(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, 30)
    contents = [bytes([65 + number]) * 10 for number in range(4)]
    for content in contents[:3]:
        cache.put(name(content), content)
    assert cache.get(name(contents[0])) == contents[0]

    cache.put(name(contents[3]), contents[3])

    assert cache.get(name(contents[1])) is None
    assert [cache.get(name(contents[k])) for k in (0, 2, 3)] == [contents[k] for k in (0, 2, 3)]
    assert cache.used == 30
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 30


def test_the_limit_holds_for_what_a_former_process_left(tmp_path: Path) -> None:
    first = ObjectCache(tmp_path, 1000)
    for number in range(4):
        first.put(name(bytes([number]) * 10), bytes([number]) * 10)

    second = ObjectCache(tmp_path, 40)
    second.put(name(b"z" * 15), b"z" * 15)

    assert second.used <= 40
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == second.used


def test_an_object_larger_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, 5)

    cache.put(name(b"too large"), b"too large")

    assert cache.sync([name(b"too large")]) is False
    assert cache.used == 0


def test_sync_says_whether_everything_is_here(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, 100)
    cache.put(name(b"a"), b"a")

    assert cache.sync([name(b"a")]) is True
    assert cache.sync([name(b"a"), name(b"b")]) is False


def test_only_what_is_needed_is_retained(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, 100)
    for content in (b"a", b"b"):
        cache.put(name(content), content)
    (tmp_path / "half.part").write_bytes(b"half")

    cache.retain([name(b"a")])

    assert [path.name for path in tmp_path.iterdir()] == [name(b"a")]


# ------------------------------------------------------------------------------------- killed between any two steps
ROUND = """
import os, sys, signal
from hashlib import sha256
from pathlib import Path
from fedward_client.mailbox import Key, Mailbox

home, after = Path(sys.argv[1]), int(sys.argv[2])
steps = 0

def dies(event, args):
    # Called before each step that changes a file: the process is gone without any clean-up.
    global steps
    if event in {"os.rename", "os.remove", "os.mkdir"} or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
        steps += 1
        if steps > after:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(dies)
key, parts = Key(7, "a" * 64), [b"head", b"weights" * 1000]
ids = [sha256(part).hexdigest() for part in parts]
box = Mailbox(home, 10**6)
box.recover()
if box.outbox.get(key) is None:
    box.announced(key, b"announcement")
    for object_id, part in zip(ids, parts):
        if box.objects.get(object_id) is None:
            box.objects.put(object_id, part)
    assert box.objects.sync(ids)
    with (home / "ledger").open("ab") as ledger:  # what stands for debit and training: once, and never again
        ledger.write(b"x")
    box.answered(key, [b"the update"], ids)
assert box.outbox.get(key) == b"the update"
box.delivered(key)
print(steps)
"""


def live(home: Path, after: int) -> int:
    command = [sys.executable, "-c", ROUND, str(home), str(after)]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> int:
    command = [sys.executable, "-c", ROUND, str(tmp_path_factory.mktemp("whole")), "1000"]
    return int(json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout))


def test_killed_before_every_single_step_the_round_ends_with_the_same_bytes(tmp_path: Path, steps: int) -> None:
    assert steps > 12
    lost = []
    for after in range(steps):
        home = tmp_path / str(after)
        home.mkdir()
        assert live(home, after) == -9

        box = Mailbox(home, 10**6)
        assert box.recover() == 0
        trained = (home / "ledger").exists()
        answered, waiting = box.outbox.get(KEY), box.inbox.get(KEY)
        assert answered in {None, b"the update"}
        assert waiting in {None, b"announcement"}
        assert not (answered and waiting), "an answered message would be taken up again"
        if trained and not answered and waiting:
            lost.append(after)  # debited, and killed while it trained: the ledger refuses the second debit

        if not trained or answered:
            assert live(home, 1000) == 0
            assert (home / "ledger").stat().st_size == 1
            assert not list((home / "outbox").iterdir())
            assert not list((home / "inbox").iterdir())
    assert lost == list(range(lost[0], lost[0] + 4))  # from the debit to the one rename that keeps the reply


def test_a_full_disk_loses_no_message_that_was_not_confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    box = Mailbox(tmp_path, 1000)
    monkeypatch.setattr("fedward_client.mailbox.ObjectCache._write", full)
    box.objects.put(name(b"weights"), b"weights")

    assert box.objects.sync([name(b"weights")]) is False
    assert box.objects.used == 0
