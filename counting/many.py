"""`moegauge count --from`: thousands of repos into one JSONL file, in order, resumable, failures kept.

One line per target: `{"target", "revision", "error", "message", "count"}`; `count` is the document of `moegauge count
--json`, null when `error` names the class of the failure.
"""

from __future__ import annotations

import gc
import json
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count as count_from
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from moegauge import outfile
from moegauge.counting.sources import transfer
from moegauge.errors import MoegaugeError, UsageError
from moegauge.limits import LINE_LIMIT_BYTES
from moegauge.regular import open_regular
from moegauge.text import shown

AHEAD = 4  # targets started ahead of the one that is written next, per job
AHEAD_LINES = 10_000  # the same in all, while that one takes its time; a line takes about 5 kB
LOOK_S = 0.2  # how often to see whether it still does
NAME_LIMIT = 200  # characters of a file's name its journal shares
_BEGINS = b'{"target"'
COLLECT_EVERY = 64  # targets; the collector is off while headers are read, which here is always
# Failures of the network or the moment; --retry-failed asks for these again.
PASSING = frozenset(
    {
        *("HubUnreachableError", "RateLimitedError", "HubStatusError", "TransferError", "OfflineError"),
        *("DeadlineError", "KilledWorker"),  # Dask's, of a target on whose account several workers seem to have died
    }
)
_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")
Key = tuple[str, str | None]
Line = dict[str, Any]
Count = Callable[[str, str | None], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the list: a folder, file or repo, and a revision where `@revision` follows."""

    name: str
    revision: str | None = None

    @property
    def key(self) -> Key:
        """What makes two targets the same."""
        return self.name, self.revision


def read_targets(lines: Iterable[str], shard: str = "1/1") -> list[Target]:
    """The targets of a list, once each, in order; blank lines and lines that begin with # are skipped.

    Args:
        lines: `org/name`, `org/name@revision` or a path, one per line.
        shard: `i/n` keeps the i-th of every n targets, i from 1.
    Raises:
        UsageError: a shard that is none.
    """
    match = _SHARD.fullmatch(shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard '{shown(shard)}' is not i/n with 1 <= i <= n.", advice="For example: --shard 2/8")
    targets: dict[tuple[str, str | None], Target] = {}
    for line in lines:
        text = line.strip()
        if text and not text.startswith("#"):
            name, at, revision = text.partition("@")
            target = Target(text) if os.path.lexists(text) or not at else Target(name, revision)
            targets.setdefault(target.key, target)
    return list(targets.values())[int(match[1]) - 1 :: int(match[2])]


def read_lines(file: Path) -> Iterator[Line]:
    """The lines of a results file; one cut short by a crash is skipped.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    return (line for _, _, line in _places(file))


def _places(file: Path) -> Iterator[tuple[int, int, Line]]:
    """(first byte, bytes without the newline, line) of every line of a results file."""
    try:
        descriptor, _ = open_regular(str(file))
        with os.fdopen(descriptor, "rb") as stream:
            begin = 0
            for number in count_from(1):
                text = stream.readline(LINE_LIMIT_BYTES)
                if not text:
                    return
                line = _line_of(text)
                if line is None:
                    if text.endswith(b"\n") or not _is_torn(text):
                        raise _foreign(file, number)
                    return
                yield begin, len(text.rstrip(b"\n")), line
                begin += len(text)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{shown(str(file))}: cannot be read: {reason}.", advice="Name another file.") from None


def _line_of(text: bytes) -> Line | None:
    """A line of ours, None when it is none."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not {"target", "revision", "error", "count"} <= line.keys():
        return None
    fine = isinstance(line["target"], str) and all(isinstance(line[key], str | None) for key in ("revision", "error"))
    return line if fine and isinstance(line["count"], dict) != isinstance(line["error"], str) else None


def _is_torn(tail: bytes) -> bool:
    """Whether bytes without a newline are what a crash left of a line: its beginning, or a hole a file system kept."""
    tail = tail.rstrip(b"\0")
    return tail.startswith(_BEGINS) or _BEGINS.startswith(tail)


def _foreign(file: Path, number: int) -> UsageError:
    problem = f"{shown(str(file))}, line {number}: not a line this command wrote."
    return UsageError(problem, advice="Name another file for --out; nothing was changed.")


class _Held(NamedTuple):
    """Where a line lies, and what decides whether it is asked for again."""

    file: Path
    begin: int
    size: int
    error: str | None


class _Results:
    """What `out` and its journal hold: `out` is complete and in order, `<out>.part` is what came since, only ever
    appended to. Both are merged into a new `out` in one step; nothing is ever taken out of a file but a torn end."""

    def __init__(self, out: Path) -> None:
        self.out = Path(os.path.realpath(out))
        self.part = self.out.with_name(f"{self.out.name[:NAME_LIMIT]}.part")
        self.held: dict[Key, _Held] = {}
        self.order: list[Key] = []  # of `out`
        for file in (self.out, self.part):
            for begin, size, line in _places(file) if file.exists() else ():
                key = line["target"], line["revision"]
                self.held[key] = _Held(file, begin, size, line["error"])
                if file is self.out:
                    self.order.append(key)

    def continues(self, order: Sequence[Key]) -> bool:
        """Whether lines of `order` can be appended to `out` and stand in their order."""
        wanted = set(order)
        own = [key for key in self.order if key in wanted]
        return not self.part.exists() and len(self.held) == len(self.order) and own == list(order[: len(own)])

    def merge(self, order: Sequence[Key]) -> None:
        """Put `out` and its journal together: lines of other lists as they stood, then those of `order`."""
        wanted = set(order)
        keys = [key for key in self.held if key not in wanted] + [key for key in order if key in self.held]

        def fill(stream: IO[bytes]) -> None:
            files = {file: file.open("rb") for file in {self.held[key].file for key in keys}}
            try:
                for key in keys:
                    held = self.held[key]
                    files[held.file].seek(held.begin)
                    stream.write(files[held.file].read(held.size) + b"\n")
            finally:
                for file in files.values():
                    file.close()

        outfile.write_with(self.out, fill)
        self.part.unlink(missing_ok=True)


def _opened(file: Path) -> IO[bytes]:
    """A results file to append to: a torn last line is cut off, a whole one without its newline gets it."""
    end = 0
    for begin, size, _ in _places(file) if file.exists() else ():
        end = begin + size
    stream = file.open("ab")
    if stream.tell() > end:
        with file.open("rb") as whole:
            whole.seek(end)
            newline = whole.read(1) == b"\n"
        stream.truncate(end + newline)
        if newline:
            return stream
    if end:
        stream.write(b"\n")
        stream.flush()
    return stream


class Workers(Protocol):
    """What counts targets side by side: threads of this process, or a cluster (`moegauge.counting.engine`).

    Attributes:
        jobs: targets counted at a time.
    """

    jobs: int

    def submit(self, target: Target) -> Future[str | None]:
        """The line of a target, as text; None when the run stopped meanwhile."""

    def close(self) -> None:
        """Stop: what has not begun is let go of."""


class Threads:
    """Threads of this process.

    Args:
        count: (target, revision) -> document; raises MoegaugeError.
        jobs: how many.
    """

    def __init__(self, count: Count, jobs: int) -> None:
        self.jobs = jobs
        self._count = count
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(jobs)

    def submit(self, target: Target) -> Future[str | None]:
        """As `Workers` says."""
        return self._pool.submit(line_of, target, self._count, self._stop)

    def close(self) -> None:
        """As `Workers` says; those at work are waited for."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def run(targets: list[Target], out: Path, count: Count, *, jobs: int, retry_failed: bool = False) -> Iterator[Line]:
    """`run_on` threads of this process, `jobs` of them, that call `count`: (target, revision) -> document."""
    return run_on(targets, out, Threads(count, jobs), retry_failed=retry_failed)


def run_on(targets: list[Target], out: Path, workers: Workers, *, retry_failed: bool = False) -> Iterator[Line]:
    """Count what `out` does not hold yet, write each line as it comes, and yield it; whole lines only, in order.

    An interrupted run is resumed by the same call. Lines of targets that are not in the list stay, so shards and lists
    that follow one another may share a file. When lines would not be in the order of the list, or failures are to be
    retried, new ones go to `<out>.part` and both files are put together in one step at the end.

    Args:
        targets: what to count.
        out: the JSONL file, made if absent.
        workers: what counts them; closed at the end.
        retry_failed: count the failures of the network again.
    Raises:
        UsageError: `out` holds something else.
        OutputError: another process writes it, or it cannot be written.
    """
    order = [target.key for target in targets]
    with outfile.Lock(out):
        results = _Results(out)
        again = {key for key, held in results.held.items() if retry_failed and held.error in PASSING}
        missing = [target for target in targets if target.key not in results.held or target.key in again]
        straight = results.continues(order) and not again.intersection(order)
        if straight:
            yield from _appended(missing, results.out, results.part, workers)
        elif missing:
            yield from _appended(missing, results.part, results.part, workers)
        if not straight or results.part.exists():
            with outfile.reporting(out):
                _Results(out).merge(order)  # read again: the journal has grown


def _appended(targets: list[Target], file: Path, journal: Path, workers: Workers) -> Iterator[Line]:
    """Count `targets` into `file`, one line each, in order; what was counted ahead of an interruption goes to the
    journal."""
    ahead: list[str] = []
    try:
        with outfile.reporting(file), _opened(file) as stream:
            for text in _in_order(targets, workers, ahead):
                stream.write(text.encode())
                stream.flush()
                yield json.loads(text)
            os.fsync(stream.fileno())
    finally:
        if len(ahead) > workers.jobs * AHEAD:  # fewer are soon counted again
            with outfile.reporting(journal), _opened(journal) as stream:
                stream.write("".join(ahead).encode())


def _in_order(targets: list[Target], workers: Workers, ahead: list[str]) -> Iterator[str]:
    """The lines of `targets` as text, in order; `ahead` gets those that were done when the caller stopped early.

    A target that takes its whole deadline holds up nobody: the others go on, up to AHEAD_LINES past it.
    """
    waiting: deque[tuple[Target, Future[str | None]]] = deque()
    rest = iter(targets)
    most = workers.jobs * AHEAD
    free = threading.Semaphore(most)
    try:
        done = 0
        while True:
            while len(waiting) < most or (not waiting[0][1].done() and len(waiting) < AHEAD_LINES):
                if not free.acquire(blocking=not waiting):
                    break
                if (target := next(rest, None)) is None:
                    free.release()
                    break
                waiting.append((target, workers.submit(target)))
                waiting[-1][1].add_done_callback(lambda _: free.release())
            if not waiting:
                return
            if not wait([waiting[0][1]], LOOK_S).done:
                continue
            text = _text_of(*waiting.popleft())
            assert text is not None  # only a run that stops has such
            yield text
            done += 1
            if done % COLLECT_EVERY == 0:
                gc.collect()
    finally:
        workers.close()
        whole = (f for _, f in waiting if f.done() and not f.cancelled() and f.exception() is None)
        ahead += [text for future in whole if (text := future.result()) is not None]


def _text_of(target: Target, future: Future[str | None]) -> str | None:
    """The line a worker made; where none came, for a worker died on every try or the cluster is gone, one that says
    so."""
    error = future.exception()
    if error is None:
        return future.result()
    if not isinstance(error, Exception):
        raise error  # an interrupt
    line = _blank(target)
    line["error"], line["message"] = type(error).__name__, f"no worker counted it: {shown(str(error))}"
    return _text(line)


def _blank(target: Target) -> Line:
    return {"target": target.name, "revision": target.revision, "error": None, "message": None, "count": None}


def line_of(target: Target, count: Count, stop: threading.Event | None = None) -> str | None:
    """The line of one target, None when the run stopped meanwhile. Nothing a repo holds may end the run, so a fault of
    ours becomes a line too."""
    line = _blank(target)
    stopping = stop or threading.Event()
    with transfer.stoppable(stopping):
        try:
            line["count"] = count(target.name, target.revision)
            return _text(line)
        except MoegaugeError as error:
            line["error"], line["message"] = type(error).__name__, str(error)
        except Exception as error:
            line["error"], line["message"] = type(error).__name__, f"unexpected: {shown(str(error))}"
    line["count"] = None
    return None if stopping.is_set() else _text(line)


def _text(line: Line) -> str:
    return json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n"


def failures(targets: Iterable[Target], out: Path) -> list[Line]:
    """The lines of `out` that are failures of `targets`, in the order of the file."""
    wanted = {target.key for target in targets}
    return [line for line in read_lines(out) if line["error"] and (line["target"], line["revision"]) in wanted]
