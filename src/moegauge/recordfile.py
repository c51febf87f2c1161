"""Write a record to disk while a run goes on: atomically after every point, never over another run's file.

Each write goes to a temporary file beside the target, is synced and then renamed over it, so a crash, a full disk or
an interrupt leaves the file as it was after the last point.
"""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from moegauge.errors import RecordError
from moegauge.record import Case, Record, load, to_json

# Arguments that say where output goes or how long this part of a run may take, not what is measured: a resumed run may
# differ in them.
_OUTPUT_FLAGS = {"--json"}
_OUTPUT_OPTIONS = ("--out", "--budget", "--export-csv", "--export-markdown")


def same_run(argv: list[str]) -> list[str]:
    """`argv` without output and budget options: equal for a run and its resumption."""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word in _OUTPUT_OPTIONS:
            skip = True
        elif word not in _OUTPUT_FLAGS and not word.startswith(tuple(f"{name}=" for name in _OUTPUT_OPTIONS)):
            kept.append(word)
    return kept


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path` whole or not at all.

    Raises:
        RecordError: the folder cannot be written or the disk is full; what was at `path` is still there.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # noqa: PTH101 - mkstemp made it private
        os.replace(temporary, path)  # noqa: PTH105 - the atomic one
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
        raise RecordError(
            f"{path}: cannot be written ({error.strerror or error}); what was there before is intact.",
            advice="Free space or give another --out, then run the same command to resume.",
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class RecordFile:
    """A record that is on disk after every point. Use as a context manager: it holds a lock against a second run."""

    def __init__(self, path: Path, record: Record) -> None:
        self.path = path
        self.record = record
        self._lock: Any = None

    @classmethod
    def open(cls, path: Path, draft: Record) -> RecordFile:
        """Start `path` with the points of `draft`, or take up the run that wrote it.

        Raises:
            RecordError: the file exists and is of another run (other arguments, machine or commit), another process
                is writing it, or it cannot be written.
        """
        self = cls(path, draft)
        self._take_lock()
        try:
            self._sweep()
            if path.exists():
                self.record = _resumable(path, draft)
            else:
                self.save()
        except BaseException:
            self.close()
            raise
        return self

    def add(self, case: Case) -> None:
        """Append a point and write the file."""
        self.record.cases.append(case)
        self.save()

    def save(self) -> None:
        """Write the record as it is now."""
        write_text(self.path, to_json(self.record))

    def close(self) -> None:
        """Let another run have the file."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._lock_path.unlink()
            self._lock.close()
            self._lock = None

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(f".{self.path.name}.lock")

    def _sweep(self) -> None:
        """Remove what a run that was killed in mid-write left; the lock says that nobody writes now."""
        for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.tmp"):
            with contextlib.suppress(OSError):
                left.unlink()

    def _take_lock(self) -> None:
        try:
            import fcntl  # not on Windows
        except ImportError:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock_path.open("w")
        except OSError as error:
            raise RecordError(
                f"{self.path}: cannot be written ({error.strerror}).", advice="Give another --out."
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed this very file: then our lock is on a name nobody else sees.
            if os.fstat(self._lock.fileno()).st_ino != self._lock_path.stat().st_ino:
                raise BlockingIOError
        except OSError:
            self._lock.close()
            self._lock = None
            raise RecordError(
                f"{self.path}: another moegauge is writing it now.", advice="Wait for it, or give another --out."
            ) from None


def _versions(record: Record) -> list[str]:
    """Software a record was measured with; nothing where it does not say."""
    return [f"{name} {version}" for name, version in sorted(record.software.items()) if version]


def _resumable(path: Path, draft: Record) -> Record:
    """The record at `path`, if `draft` is the same run.

    Raises:
        RecordError: it is another run, named by what differs.
    """
    found = load(path)
    differences = (
        ("arguments", same_run(found.argv), same_run(draft.argv)),
        ("machine", found.machine_key, draft.machine_key),
        ("software", _versions(found), _versions(draft)),
        ("commit", found.project.commit or found.project.version, draft.project.commit or draft.project.version),
    )
    for name, old, new in differences:
        if old != new:
            shown = tuple(" ".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for v in (old, new))
            raise RecordError(
                f"{path}: exists and is of another run ({name} '{shown[0]}', now '{shown[1]}'); it is left as it is.",
                advice="Give another --out, or repeat that run's command to resume it.",
            )
    return found
