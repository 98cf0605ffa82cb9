"""A seccomp filter: which system calls a child is refused, whatever library makes them.

A list of what is refused, not of what is allowed: torch, pyarrow and the C library change what they call from release
to release, and a child must not die of that. Refused is what opens a network, starts or touches another process,
changes rights, names or times of files, or reaches into the kernel. See seccomp(2) and the kernel's
"Seccomp BPF (SECure COMPuting with filters)".
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping
from typing import Final

from fedward_client.sandbox.linux import PR_SET_SECCOMP, prctl

__all__ = ["CALLS", "Machine", "install", "program"]

Machine = str
"""``x86_64`` or ``aarch64``, as `platform.machine` says it."""

_MACHINES: Final[Mapping[Machine, tuple[int, int]]] = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of `CALLS`, and the kernel's number of the instruction set (AUDIT_ARCH_…)."""

CALLS: Final[Mapping[str, tuple[int | None, int | None]]] = {
    # network
    "accept": (43, 202), "accept4": (288, 242), "listen": (50, 201),
    # other processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "kcmp": (312, 272), "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41), "mount": (165, 40),
    "umount2": (166, 39), "move_mount": (429, 429), "open_tree": (428, 428), "open_tree_attr": (467, 467),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # what Landlock leaves open: rights, owners, attributes and times of files; opening past their names
    "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466), "file_setattr": (469, 469), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "truncate": (76, 45), "mknod": (133, None), "mknodat": (259, 33),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    # the kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "syslog": (103, 116), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "personality": (135, 92), "vhangup": (153, 58),
}  # fmt: skip
"""What is refused in every child: the numbers on x86_64 and on aarch64, None where the machine has no such call."""

_NETWORK: Final[Mapping[str, tuple[int | None, int | None]]] = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200),
}  # fmt: skip
_CLONE, _CLONE3 = (56, 220), (435, 435)
_ITSELF: Final = ((62, 129), (234, 131), (200, 130))  # kill, tgkill, tkill: allowed with the child's own number
_PRLIMIT64, _FCHMOD, _SOCKET = (302, 261), (91, 52), (41, 198)
_CLONE_THREAD: Final = 0x10000
_X32: Final = 0x40000000
_FAMILIES: Final = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK: what a database and its name's lookup need
_PRIVATE: Final = 0o600

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|…|K, BPF_RET|K
_NUMBER_AT, _MACHINE_AT, _ARGUMENT_AT = 0, 4, (16, 24)  # struct seccomp_data; the lower half of an argument
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_REFUSE: Final = _ERRNO | errno.EPERM

Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def program(machine: Machine, pid: int, *, network: bool = False) -> list[Instruction]:
    """Return the filter of a child: instructions as (code, jump if true, jump if false, constant).

    Args:
        machine: the instruction set.
        pid: the child's own number: the only process that it may signal and limit.
        network: whether it may open connections, to no more than the four families of a database's client.

    Raises:
        OSError: there is no filter for this machine.
    """
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no filter for {machine}")
    column, audit = _MACHINES[machine]
    refused = {**CALLS, **({} if network else _NETWORK)}
    lines: list[Instruction] = [
        (_LOAD, 0, 0, _MACHINE_AT), (_EQUAL, 1, 0, audit), _returning(_KILL), (_LOAD, 0, 0, _NUMBER_AT),
    ]  # fmt: skip
    if machine == "x86_64":
        lines += [(_AT_LEAST, 0, 1, _X32), _returning(_KILL)]
    for number in (numbers[column] for numbers in refused.values()):
        if number is not None:
            lines += [(_EQUAL, 0, 1, number), _returning(_REFUSE)]
    lines += [(_EQUAL, 0, 1, _CLONE3[column]), _returning(_ERRNO | errno.ENOSYS)]  # the C library then takes clone
    lines += _judged(_CLONE[column], 0, [(_ANY_BIT, 0, 1, _CLONE_THREAD), _returning(_ALLOW)])
    for numbers in _ITSELF:
        lines += _judged(numbers[column], 0, _one_of(pid))
    lines += _judged(_PRLIMIT64[column], 0, _one_of(0, pid))
    lines += _judged(_FCHMOD[column], 1, _one_of(_PRIVATE))
    if network:
        lines += _judged(_SOCKET[column], 0, _one_of(*_FAMILIES))
    return [*lines, _returning(_ALLOW)]


def _returning(verdict: int) -> Instruction:
    return (_RETURN, 0, 0, verdict)


def _one_of(*values: int) -> list[Instruction]:
    return [line for value in values for line in ((_EQUAL, 0, 1, value), _returning(_ALLOW))]


def _judged(number: int, argument: int, allowed: list[Instruction]) -> list[Instruction]:
    """Return lines that refuse the call `number` unless `allowed` returns, from one of its arguments."""
    body = [(_LOAD, 0, 0, _ARGUMENT_AT[argument]), *allowed, _returning(_REFUSE)]
    return [(_EQUAL, 0, len(body), number), *body]


def install(*, network: bool = False) -> None:
    """Put the filter on this process, which has one thread and has given up new privileges; it stays for good.

    Raises:
        OSError: the kernel has no filters, or there is none for this machine.
    """
    lines = program(platform.machine(), os.getpid(), network=network)
    packed = b"".join(struct.pack("=HBBI", *line) for line in lines)
    filter_ = _Program(len(lines), packed)
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(filter_))
