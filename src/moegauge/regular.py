"""Open and read regular files and nothing else: a FIFO is never waited for, a device or socket never opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFDIR: "folder"}


class NotRegularError(OSError):
    """What is there is no file; `strerror` says `is a FIFO` and the like."""


def check_regular(status: os.stat_result) -> None:
    """Raises NotRegularError unless `status` is a file's."""
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "device")
        raise NotRegularError(0, f"is a {kind}, not a file")


def open_regular(path: str, *, follow: bool = True) -> tuple[int, os.stat_result]:
    """A descriptor of the file at `path`, and its status.

    Args:
        path: looked at before it is opened, since opening a device may already do something.
        follow: go where a link at `path` leads; else a link is an error.
    Raises:
        NotRegularError: there is something else. OSError: the system refuses.
    """
    check_regular(os.stat(path, follow_symlinks=follow))  # noqa: PTH116 - Path costs 10 us a shard
    descriptor = os.open(path, _FLAGS if follow else _FLAGS | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        check_regular(status)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def read_all(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes from `offset`; fewer only when the file ends."""
    first = os.pread(descriptor, size, offset)
    if len(first) == size or not first:
        return first
    parts, got = [first], len(first)
    while got < size and (part := os.pread(descriptor, size - got, offset + got)):
        parts.append(part)
        got += len(part)
    return b"".join(parts)


def read_file(path: Path, limit: int) -> bytes:
    """A whole file of at most `limit` bytes.

    Raises:
        OSError: as `open_regular`; and the file is larger.
    """
    descriptor, status = open_regular(str(path))
    try:
        if status.st_size > limit:
            raise OSError(0, f"has {status.st_size:,} bytes, the limit is {limit:,}")
        return read_all(descriptor, limit, 0)
    finally:
        os.close(descriptor)
