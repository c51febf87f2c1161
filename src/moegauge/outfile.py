"""Write a result file: whole or not at all, never over another's work, one writer at a time.

Every command that writes goes through here. A file is written beside its place, synced, and then given its name in one
step, so a crash, a full disk or an interrupt leaves what was there. `Lock` keeps a second writer away, `check_free`
and `check_apart` refuse before hours of work what must not be written after them.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from moegauge.errors import OutputError

_NAME_KEPT = 100  # characters of a long name that its scratch files share
_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.ENOTSUP)


def _always(_: Path) -> bool:
    return True


def _never(_: Path) -> bool:
    return False


def check_free(path: Path, option: str, *, replaces: Callable[[Path], bool] = _never) -> None:
    """Refuse a place that is taken, before the work.

    Args:
        path: where the file is to be.
        option: what named it, for messages.
        replaces: whether the file that is there is an earlier one of ours, to be replaced.
    Raises:
        OutputError: something is there that must stay.
    """
    with reporting(path):
        if _exists(path) and not replaces(path):
            raise OutputError(f"{path}: already exists; it is left as it is.", advice=f"Name a new file for {option}.")


def check_apart(**options: Path | None) -> None:
    """Refuse two options that name one file, however it is spelt.

    Args:
        options: what each option names, by its name with `_` for `-`; None is an option that was not given.
    Raises:
        OutputError: two of them are one file.
    """
    seen: dict[Any, str] = {}
    for name, path in options.items():
        if path is None:
            continue
        option = f"--{name.replace('_', '-')}"
        keys: list[Any] = [os.path.realpath(path)]
        with contextlib.suppress(OSError, ValueError):
            status = path.stat()
            keys.append((status.st_dev, status.st_ino))
        for key in keys:
            if key in seen and seen[key] != option:
                problem = f"{path}: named by {seen[key]} and by {option}; one would replace the other."
                raise OutputError(problem, advice="Give each a file of its own.")
            seen[key] = option


def _exists(path: Path) -> bool:
    """Whether a file is at `path`.

    Raises:
        OutputError: there is something else, which no result is written to.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "FIFO" if stat.S_ISFIFO(mode) else "device or socket"
        raise OutputError(f"{path}: is a {kind}, not a file.", advice="Name a file.")
    return True


@contextlib.contextmanager
def reporting(path: Path) -> Iterator[None]:
    """One line for every way the system refuses to write `path`.

    Raises:
        OutputError: in place of the OSError.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        # A path with a NUL is a ValueError, which has no reason apart from itself.
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise OutputError(
            f"{path}: cannot be written ({reason}); what was there before is intact.",
            advice="Free space or name another file, then run the same command again.",
        ) from None


def write(path: Path, data: str | bytes, *, replaces: Callable[[Path], bool] = _always) -> None:
    """Put `data` at `path`, whole or not at all.

    Args:
        path: the file; a link is followed, so that what it leads to is replaced. Folders are made.
        data: text is written as UTF-8.
        replaces: whether a file that is there may be replaced; by default any, for a caller who has asked already.
    Raises:
        OutputError: a file is there that must stay, or the system refuses; what was there is intact.
    """
    raw = data.encode("utf-8") if isinstance(data, str) else data

    def fill(stream: IO[bytes]) -> None:
        stream.write(raw)

    write_with(path, fill, replaces=replaces)


def write_with(path: Path, fill: Callable[[IO[bytes]], None], *, replaces: Callable[[Path], bool] = _always) -> None:
    """As `write`, the data written by `fill` to a stream."""
    with reporting(path):
        place = Path(os.path.realpath(path))
        present = _exists(place)
        if present and not replaces(place):
            raise OutputError(f"{path}: already exists; it is left as it is.", advice="Name a new file.")
        place.parent.mkdir(parents=True, exist_ok=True)
        import tempfile  # 8 ms that most commands need not wait for

        handle, scratch = tempfile.mkstemp(prefix=_scratch_prefix(place), suffix=".tmp", dir=place.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(scratch, 0o666 & ~_umask())  # noqa: PTH101 - mkstemp made it private
            _name(scratch, place, replace=present or replaces is _always)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(scratch)  # noqa: PTH108
            raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled, which gets the name `path` when the block ends well, and is gone when it does not.

    Raises:
        OutputError: something is there already, or the system refuses.
    """
    with reporting(path):
        place = Path(os.path.realpath(path))
        if os.path.lexists(place):
            raise OutputError(f"{path}: already exists; it is left as it is.", advice="Name a new folder.")
        place.parent.mkdir(parents=True, exist_ok=True)
        import tempfile

        scratch = Path(tempfile.mkdtemp(prefix=_scratch_prefix(place), suffix=".tmp", dir=place.parent))
        try:
            yield scratch
            for file in scratch.rglob("*"):
                if file.is_file():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
            scratch.chmod(0o777 & ~_umask())
            scratch.rename(place)  # fails where a folder with something in it, or a file, came to be meanwhile
        except BaseException:
            import shutil

            shutil.rmtree(scratch, ignore_errors=True)
            raise


def _name(scratch: str, place: Path, *, replace: bool) -> None:
    """Give a scratch file its name. A file that came to be there meanwhile is not replaced: a second name cannot be
    made where there is one, while a rename would."""
    if not replace:
        try:
            os.link(scratch, place)
        except OSError as error:
            if error.errno not in _NO_LINKS or place.exists():
                raise
        else:
            os.unlink(scratch)  # noqa: PTH108
            return
    os.replace(scratch, place)  # noqa: PTH105 - the atomic one


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _scratch_prefix(path: Path) -> str:
    return f".{path.name[:_NAME_KEPT]}."


class Lock:
    """Keeps a second moegauge from writing a file; a context manager. Gone with the process, however that ends.

    Where a file system has no locks (some network ones) there is none to take, and none is taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = Path(os.path.realpath(path))
        self._file: IO[str] | None = None

    @property
    def _lock_path(self) -> Path:
        return self._place.with_name(f"{_scratch_prefix(self._place)}lock")

    def take(self) -> None:
        """Take it, and remove what a writer that was killed in mid-write left.

        Raises:
            OutputError: another process has it, or the folder cannot be written.
        """
        with reporting(self.path):
            _exists(self._place)
            self._place.parent.mkdir(parents=True, exist_ok=True)
            try:
                import fcntl  # not on Windows
            except ImportError:
                return
            self._file = self._lock_path.open("w")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder before us may have removed this very file: then our lock is on a name nobody else sees.
                taken = os.fstat(self._file.fileno()).st_ino != self._lock_path.stat().st_ino
            except FileNotFoundError:
                taken = True
            except OSError as error:
                taken = error.errno in _TAKEN
            if taken:
                self._file.close()
                self._file = None
                raise OutputError(
                    f"{self.path}: another moegauge is writing it now.", advice="Wait for it, or name another file."
                )
        for left in self._place.parent.glob(f"{glob.escape(_scratch_prefix(self._place))}*.tmp"):
            with contextlib.suppress(OSError):
                left.unlink()

    def release(self) -> None:
        """Let another have the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._lock_path.unlink()
            self._file.close()
            self._file = None

    def __enter__(self) -> Lock:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
