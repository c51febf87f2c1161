"""`moegauge count --from`: thousands of repos into one JSONL file, in order, resumable, failures kept.

One line per target: `{"target", "revision", "error", "message", "count"}`; `count` is the document of `moegauge count
--json`, null when `error` names the class of the failure.
"""

from __future__ import annotations

import gc
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from moegauge.counting.errors import shown
from moegauge.errors import MoegaugeError, UsageError

AHEAD = 4  # targets started ahead of the one that is written next, per job
COLLECT_EVERY = 64  # targets; the collector is off while headers are read, which here is always
# Failures of the network or the moment; --retry-failed asks for these again.
PASSING = frozenset({"HubUnreachableError", "RateLimitedError", "HubStatusError", "TransferError", "OfflineError"})
_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")
Line = dict[str, Any]
Count = Callable[[str, str | None], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the list: a folder, file or repo, and a revision where `@revision` follows."""

    name: str
    revision: str | None = None

    @property
    def key(self) -> tuple[str, str | None]:
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
    """The whole lines of a results file; one cut short by a crash is skipped.

    Raises:
        UsageError: the file holds something else.
    """
    with file.open(encoding="utf-8") as stream:
        for number, text in enumerate(stream, 1):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                if text.endswith("\n"):
                    raise _foreign(file, number) from None
                return
            if not isinstance(line, dict) or not {"target", "revision", "error", "count"} <= line.keys():
                raise _foreign(file, number)
            yield line


def _foreign(file: Path, number: int) -> UsageError:
    problem = f"{shown(str(file))}, line {number}: not a line this command wrote."
    return UsageError(problem, advice="Name another file for --out; nothing was changed.")


def run(targets: list[Target], out: Path, count: Count, *, jobs: int, retry_failed: bool = False) -> Iterator[Line]:
    """Count what `out` does not hold yet, write each line as it comes, and yield it; whole lines only, in order.

    An interrupted run is resumed by the same call. When `out` holds other targets or another order, or failures are
    to be retried, the file is written anew beside it and put in its place at the end.

    Args:
        targets: what to count.
        out: the JSONL file, made if absent.
        count: (target, revision) -> document; raises MoegaugeError.
        jobs: targets counted at a time.
        retry_failed: count the failures of the network again.
    Raises:
        UsageError: `out` holds something else.
    """
    part = out.with_name(out.name + ".part")
    held = [line for file in (out, part) if file.exists() for line in read_lines(file)]
    kept = {(line["target"], line["revision"]): line for line in held}
    if retry_failed:
        kept = {key: line for key, line in kept.items() if line["error"] not in PASSING}
    order = [target.key for target in targets]
    if not part.exists() and list(kept) == order[: len(kept)] and len(kept) == len(held):
        _cut(out)
        with out.open("a", encoding="utf-8") as stream:
            yield from _written(targets[len(kept) :], {}, stream, count, jobs)
        return
    with part.with_suffix(".new").open("w", encoding="utf-8") as stream:
        try:
            yield from _written(targets, kept, stream, count, jobs)
        except BaseException:
            stream.flush()
            os.replace(stream.name, part)  # noqa: PTH105
            raise
    Path(stream.name).replace(out)
    part.unlink(missing_ok=True)


def _cut(out: Path) -> None:
    """Drop a last line that a crash cut short."""
    if out.exists() and (data := out.read_bytes()) and not data.endswith(b"\n"):
        with out.open("r+b") as stream:
            stream.truncate(data.rfind(b"\n") + 1)


def _written(
    targets: list[Target], kept: dict[tuple[str, str | None], Line], stream: IO[str], count: Count, jobs: int
) -> Iterator[Line]:
    """Every target's line, written and flushed; those not in `kept` are yielded too."""
    for line, fresh in _in_order(targets, kept, count, jobs):
        stream.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")
        stream.flush()
        if fresh:
            yield line


def _in_order(
    targets: list[Target], kept: dict[tuple[str, str | None], Line], count: Count, jobs: int
) -> Iterator[tuple[Line, bool]]:
    waiting: deque[Line | Future[Line]] = deque()
    rest = iter(targets)
    pool = ThreadPoolExecutor(jobs)
    try:
        done = 0
        while True:
            while len(waiting) < jobs * AHEAD and (target := next(rest, None)) is not None:
                waiting.append(kept[target.key] if target.key in kept else pool.submit(_line, target, count))
            if not waiting:
                return
            head = waiting.popleft()
            yield (head, False) if isinstance(head, dict) else (head.result(), True)
            done += 1
            if done % COLLECT_EVERY == 0:
                gc.collect()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _line(target: Target, count: Count) -> Line:
    """The line of one target. Nothing a repo holds may end the run, so a fault of ours becomes a line too."""
    line: Line = {"target": target.name, "revision": target.revision, "error": None, "message": None, "count": None}
    try:
        line["count"] = count(target.name, target.revision)
    except MoegaugeError as error:
        line["error"], line["message"] = type(error).__name__, str(error)
    except Exception as error:
        line["error"], line["message"] = type(error).__name__, f"unexpected: {shown(str(error))}"
    return line
