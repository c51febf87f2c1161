"""Open a checkpoint in a folder, or one safetensors file.

Reads headers and small JSON files, never weights; nothing here blocks on a FIFO, opens a device, or follows a link out
of the folder.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from moegauge.counting import errors
from moegauge.counting.headers.gguf import GgufHeader, read_header
from moegauge.counting.headers.header import LENGTH_BYTES, Header, HeaderBudget
from moegauge.counting.headers.parse import header_length, parse_text
from moegauge.counting.sources import gguf, selection
from moegauge.counting.sources.checkpoint import DOCUMENTS, Checkpoint, parse_document
from moegauge.counting.sources.index import check_shard_name, check_unique, parse_index, reconcile
from moegauge.limits import DOCUMENT_LIMIT_BYTES, INDEX_LIMIT_BYTES
from moegauge.regular import NotRegularError, open_regular, read_all
from moegauge.text import shown

_SNAPSHOT = re.compile(r"models--[^/]+/snapshots/[0-9a-f]{40}")
_PREFIX_BYTES = 64  # enough to name another file format


def open_folder(folder: Path, *, name: str, weights: str = "") -> Checkpoint:
    """Open the checkpoint in `folder`.

    Args:
        folder: an existing folder.
        name: the folder as the user wrote it.
        weights: the index or file to count when there are several.
    Raises:
        SourceError: the subclass that names the fault; see `moegauge.counting.errors`.
    """
    opened = Folder(folder)
    if gguf.wanted(opened.names, weights):
        files = gguf.choose(opened.names, where=name, weights=weights)
        return gguf.open_model("folder", name, None, files, opened.gguf_header)
    chosen = selection.select(opened.names, where=name, weights=weights)
    warnings = list(chosen.warnings)
    if chosen.index:
        index = parse_index(opened.read(chosen.index, INDEX_LIMIT_BYTES), file=chosen.index, names=opened.names)
        for shard in index.shards:
            if not opened.exists(shard):
                problem = f"names the shard {shown(shard)}, which is not in the folder."
                raise errors.MissingShardError(problem, file=index.file, advice="Download the missing shard.")
        warnings += selection.check_unlisted(index, opened.names, rival=chosen.rival, where=name)
        headers = [opened.header(shard) for shard in index.shards]
        warnings += reconcile(index, headers)
    else:
        for file in chosen.files:
            check_shard_name(file, file=name)
        headers = [opened.header(file) for file in chosen.files]
        check_unique(headers)
    documents = {
        file: parse_document(opened.read(file, DOCUMENT_LIMIT_BYTES), file=file)
        for file in DOCUMENTS
        if file in opened.names
    }
    return Checkpoint("folder", name, None, headers, documents, warnings=warnings, reader=opened.read_range)


def open_file(path: Path, *, name: str) -> Checkpoint:
    """Open one safetensors file; the JSON files beside it are read too, so its config.json is found.

    Of a split GGUF any part stands for all.

    Raises:
        SourceError: as `open_folder`.
    """
    opened = Folder(path.parent, allow_links=True)
    if gguf.is_gguf(path.name):
        files = gguf.choose(opened.names, where=name, weights=path.name)
        return gguf.open_model("file", name, None, files, opened.gguf_header)
    header = opened.header(path.name)
    documents = {}
    for file in DOCUMENTS:
        if file in opened.names:
            documents[file] = parse_document(opened.read(file, DOCUMENT_LIMIT_BYTES), file=file)
    return Checkpoint("file", name, None, [header], documents, reader=opened.read_range)


class Folder:
    """One folder and the roots its links may lead to.

    Args:
        folder: the folder. A Hub cache snapshot (`models--org--name/snapshots/<commit>`) may link to its `blobs` and
            to those its cache shares, any other folder only to itself.
        allow_links: follow a link anywhere, for a file the user named himself.
    """

    def __init__(self, folder: Path, *, allow_links: bool = False) -> None:
        self.folder = folder
        self.budget = HeaderBudget()
        real = Path(os.path.realpath(folder))
        self.roots = [Path(real.anchor) if allow_links else real]
        if _SNAPSHOT.fullmatch("/".join(real.parts[-3:])):
            self.roots += [real.parents[1] / "blobs", real.parents[2] / "blobs"]
        try:
            self.names = {entry.name for entry in os.scandir(folder)}
        except OSError as error:
            raise _unreadable(error, str(folder)) from None

    def exists(self, file: str) -> bool:
        """Whether the name is taken, a dangling link included (opening it says more)."""
        return file in self.names if "/" not in file else os.path.lexists(self.folder / file)

    def header(self, file: str) -> Header:
        """The validated header of one shard."""
        descriptor, before = self._open(file)
        try:
            prefix = read_all(descriptor, _PREFIX_BYTES, 0)
            size = LENGTH_BYTES + header_length(prefix, file=file, file_size=before.st_size)
            self.budget.take(size, file)
            # The JSON without its length: taking it off again would copy 27 MB of Kimi-K2's headers (17 ms).
            text = read_all(descriptor, size - LENGTH_BYTES, LENGTH_BYTES)
            after = os.fstat(descriptor)
        except OSError as error:
            raise _unreadable(error, file) from None
        finally:
            os.close(descriptor)
        changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
        if changed or len(text) < size - LENGTH_BYTES:
            raise errors.FileChangedError("changed while it was read.", file=file)
        return parse_text(text, file=file, prefix=prefix, data_bytes=before.st_size - size)

    def gguf_header(self, file: str) -> GgufHeader:
        """The validated header of one GGUF file."""
        descriptor, status = self._open(file)
        try:
            found = read_header(
                lambda offset, size: read_all(descriptor, size, offset), file=file, file_size=status.st_size
            )
        except OSError as error:
            raise _unreadable(error, file) from None
        finally:
            os.close(descriptor)
        self.budget.take(found.data_start, file)
        return found

    def read(self, file: str, limit: int) -> bytes:
        """A whole small file, at most `limit` bytes."""
        descriptor, status = self._open(file)
        try:
            if status.st_size > limit:
                raise errors.UnreadableError(f"{status.st_size:,} bytes; the limit is {limit:,}.", file=file)
            return read_all(descriptor, limit, 0)
        except OSError as error:
            raise _unreadable(error, file) from None
        finally:
            os.close(descriptor)

    def read_range(self, header: Header, offset: int, size: int) -> bytes:
        """`size` bytes of a shard's data, provided the file still has the size its header was validated with."""
        descriptor, status = self._open(header.file)
        try:
            data = read_all(descriptor, size, offset)
        except OSError as error:
            raise _unreadable(error, header.file) from None
        finally:
            os.close(descriptor)
        if len(data) != size or status.st_size != header.header_bytes + header.data_bytes:
            raise errors.FileChangedError("changed since its header was read.", file=header.file)
        return data

    def _inside(self, path: str, file: str) -> str:
        """The file a link leads to, which must lie under a root."""
        real = os.path.realpath(path, strict=True)
        if not any(map(Path(real).is_relative_to, self.roots)):
            problem = f"is a link that leaves the folder, to {shown(real)}."
            raise errors.EscapingLinkError(problem, file=file, advice="Count the folder it leads to.")
        return real

    def _open(self, file: str) -> tuple[int, os.stat_result]:
        """A descriptor of a regular file inside the roots. A FIFO is never waited for, a device never opened."""
        real = os.path.join(self.folder, file)  # noqa: PTH118, Path costs 10 us a shard
        try:
            if "/" in file or stat.S_ISLNK(os.lstat(real).st_mode):
                real = self._inside(real, file)
            return open_regular(real, follow=False)
        except OSError as error:
            raise _unreadable(error, file) from None


def _unreadable(error: OSError, file: str) -> errors.SourceError:
    if isinstance(error, NotRegularError):
        return errors.NotRegularFileError(f"{error.strerror}.", file=file, advice="Remove it from the folder.")
    if isinstance(error, FileNotFoundError):
        return errors.MissingShardError("is not there, or is a broken link.", file=file, advice="Download it.")
    reason = error.strerror or type(error).__name__
    return errors.UnreadableError(f"cannot be read: {reason}.", file=file, advice="Check its permissions.")
