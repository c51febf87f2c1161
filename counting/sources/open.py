"""Open what a user names: a folder, a file, or a repo on the Hub."""

from __future__ import annotations

import gc
import os
import re
import threading
from pathlib import Path

from moegauge.counting import errors
from moegauge.counting.sources import address, folder
from moegauge.counting.sources.checkpoint import Checkpoint
from moegauge.counting.sources.selection import INDEX_SUFFIX
from moegauge.text import shown

_REPO_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)


def open_checkpoint(
    target: str,
    revision: str | None = None,
    *,
    weights: str = "",
    thorough: bool = False,
    deadline_s: float | None = None,
) -> Checkpoint:
    """Open a checkpoint: find its files, read and validate every header, reconcile them with the index.

    Args:
        target: a folder, one `.safetensors` or `.gguf` file, one `.safetensors.index.json`, or a repo on the Hub:
            `org/name`, its page's address, or `hf://org/name@revision`. A path that exists wins over a repo of the
            same name.
        revision: branch, tag, `refs/pr/N` or commit of a Hub repo; refused for a local target.
        weights: which index or file to count where several lie side by side.
        thorough: read every header of a Hub repo byte by byte, even where the Hub offers them decoded in one request.
        deadline_s: what all requests of a Hub repo may take together, in seconds; 60 times HF_HUB_DOWNLOAD_TIMEOUT
            when None.
    Raises:
        SourceError: the subclass that names the fault; see `moegauge.counting.errors`.
    """
    path = Path(target).expanduser()
    with COLLECTOR_PAUSE:
        if target and os.path.lexists(path):
            if revision is not None:
                problem = "is local and has no revisions."
                raise errors.TargetNotFoundError(problem, file=target, advice="Leave out --revision.")
            return _open_local(path, target, weights)
        found = address.parse(target)
        if found is not None:
            target, revision, weights = _named(found, target, revision, weights)
        if not _REPO_ID.fullmatch(target) or ".." in target or target.endswith((".safetensors", ".json", ".gguf")):
            advice = "Give a folder, a .safetensors or .gguf file, or a Hub repo as org/name."
            raise errors.TargetNotFoundError("no such file or folder.", file=target or "''", advice=advice)
        from moegauge.counting.sources.hub import open_repo

        return open_repo(target, revision, weights=weights, thorough=thorough, deadline_s=deadline_s)


def _named(found: address.Address, target: str, revision: str | None, weights: str) -> tuple[str, str | None, str]:
    """(repo, revision, weights) of an address beside what was asked for apart from it."""
    for what, said, asked in (("--revision", found.revision, revision), ("--weights", found.file, weights)):
        if said and asked and said != asked:
            problem = f"names {shown(said)}, {what} {shown(asked)}."
            raise errors.TargetNotFoundError(problem, file=target, advice=f"Leave out {what}.")
    return found.repo, found.revision or revision, found.file or weights


def _open_local(path: Path, target: str, weights: str) -> Checkpoint:
    if path.is_dir():
        return folder.open_folder(path, name=target, weights=weights)
    if path.name.endswith(INDEX_SUFFIX):
        return folder.open_folder(path.parent, name=target, weights=path.name)
    return folder.open_file(path, name=target)


class _CollectorPause:
    """Keeps Python's cycle collector off while headers are read: 100,000 tensors make a million objects and no cycle,
    and the collector would walk them all many times over (measured: half the time of reading). Nests, across threads.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.was_on = False

    def __enter__(self) -> None:
        with self.lock:
            if self.depth == 0:
                self.was_on = gc.isenabled()
                gc.disable()
            self.depth += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.depth -= 1
            if self.depth == 0 and self.was_on:
                gc.enable()


COLLECTOR_PAUSE = _CollectorPause()
