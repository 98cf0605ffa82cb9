"""Putting the layers on: called once, by a child with one thread, before it opens anything."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Final

from fedward_client.sandbox.guard import below, guard_files, guard_network
from fedward_client.sandbox.landlock import around, restrict
from fedward_client.sandbox.layers import Layer, Sandbox
from fedward_client.sandbox.linux import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, keep_capabilities, prctl
from fedward_client.sandbox.namespace import leave_network
from fedward_client.sandbox.reach import Reach
from fedward_client.sandbox.seccomp import install
from fedward_common.errors import InstallationError

__all__ = ["enter", "installed"]

_READ_ANY_FILE: Final = 1 << 2  # CAP_DAC_READ_SEARCH: root may still read a cohort that belongs to another account
_PROGRAMS: Final = ("/usr", "/lib", "/lib64", "/lib32", "/nix/store", "/gnu/store")
_FACTS: Final = (
    "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone", "/etc/passwd", "/etc/group", "/proc/cpuinfo",
    "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/filesystems", "/proc/sys", "/sys/devices/system",
    "/sys/fs/cgroup", "/sys/kernel/mm", "/dev/urandom", "/dev/random", "/dev/zero",
)  # fmt: skip
"""What libraries ask about the computer; none of it is a hospital's."""
_ITSELF: Final = ("/proc/self",)


def enter(reach: Reach, wanted: Collection[Layer], *, strict: bool) -> Sandbox:
    """Give up the network, other files, rights and processes, for good, and return which layers hold.

    Whatever layers there are: new rights are given up, other processes cannot look into this one, and of root's rights
    only that of reading files is left.

    Args:
        reach: what stays.
        wanted: layers to try.
        strict: whether each of `wanted` must hold; those that `reach` leaves no room for do not count.

    Raises:
        InstallationError: with `strict`, a layer does not hold any more.
    """
    online = reach.ports is not None
    missing: dict[Layer, str] = {}
    holds: list[Layer] = []
    landlock = 0

    def put_on(layer: Layer, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            missing[layer] = error.strerror or str(error)
        else:
            holds.append(layer)

    def files() -> None:
        nonlocal landlock
        landlock = _restrict_files(reach)

    if Layer.NAMESPACE in wanted and not online:
        put_on(Layer.NAMESPACE, leave_network)
    _give_up_rights()
    if Layer.LANDLOCK in wanted:
        put_on(Layer.LANDLOCK, files)
    if Layer.SECCOMP in wanted:
        put_on(Layer.SECCOMP, lambda: install(network=online))
    if strict and missing:
        text = "; ".join(f"{layer.value} ({why})" for layer, why in missing.items())
        msg = f"the sandbox does not hold any more: {text}"
        raise InstallationError(msg, remedy="restart the daemon; it says at its start what holds")
    if Layer.GUARD in wanted and _guard(reach, Sandbox(holds=tuple(holds))):
        holds.append(Layer.GUARD)
    return Sandbox(holds=tuple(holds), missing=missing, landlock=landlock)


def _give_up_rights() -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    keep_capabilities(_READ_ANY_FILE if os.geteuid() == 0 else 0)
    prctl(PR_SET_DUMPABLE, 0)


def _restrict_files(reach: Reach) -> int:
    home = str(reach.home)
    holding = [Path(root) for root in installed() if below(home, root)]
    return restrict(
        read=[
            *(root for root in installed() if not below(home, root)),
            *(part for root in holding for part in around(root, reach.home)),
            *_ITSELF,
            *_named(reach),
        ],
        listed=holding,
        write=reach.write,
        devices=[os.devnull, *(_graphics() if reach.gpu else ())],
        ports=reach.ports or (),
    )


def _guard(reach: Reach, kernel: Sandbox) -> bool:
    """Put the guard where nothing of the kernel's holds; return whether it was needed."""
    network = kernel.network == "none" and reach.ports is None
    files = kernel.files == "none"
    if network:
        guard_network()
    if files:
        read, devices = [*installed(), *_ITSELF], _graphics() if reach.gpu else ()
        guard_files(read=read, write=[*reach.write, *devices], hidden=reach.home, named=list(_named(reach)))
    return network or files


@cache
def installed() -> tuple[str, ...]:
    """Return the folders and files of what is installed: Python, its libraries, the system's, and what they ask.

    Of the folders that Python imports from, those count from which something was imported, and not, say, the one that
    the daemon happened to be started in. Called once before children are forked, it costs them nothing.
    """
    places = {*_PROGRAMS, *_FACTS, sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()}
    roots = [place for place in sorted(map(os.path.realpath, places)) if place != "/" and os.path.exists(place)]  # noqa: PTH110  (text in, text out)
    files = [file for name, module in [*sys.modules.items()] if "." not in name and (file := _file(module))]
    for entry in filter(None, sys.path):
        place = os.path.realpath(entry)
        if not any(below(place, root) for root in roots) and any(below(file, entry) for file in files):
            roots.append(place)
    return tuple(
        dict.fromkeys(root for root in roots if not any(below(root, other) for other in roots if other != root))
    )


def _file(module: object) -> str:
    return getattr(module, "__file__", None) or ""


def _named(reach: Reach) -> Iterator[Path]:
    """Yield what of `reach` may be read: a folder that holds the site's own is taken apart."""
    for path in reach.read:
        if reach.home.is_relative_to(path.resolve()):
            yield from around(path, reach.home)
        else:
            yield path


def _graphics() -> list[Path]:
    return [*Path("/dev").glob("nvidia*"), *Path("/dev").glob("dri/*"), Path("/dev/kfd")]
