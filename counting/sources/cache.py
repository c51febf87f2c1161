"""Disk cache of a Hub repo at a commit, under HF_HOME: listing, index, headers, small JSON files.

A commit never changes, so an entry is never stale; it is validated anew each time it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import zlib
from pathlib import Path
from urllib.parse import quote

import msgspec

from moegauge.counting.sources.transfer import without_password
from moegauge.limits import CACHE_LIMIT_BYTES, ENTRY_LIMIT_BYTES, REF_LIMIT_BYTES
from moegauge.regular import read_file

SCHEMA = "moegauge.cache/2"
NAME_CHARACTERS = 100
COMMIT = re.compile(r"[0-9a-f]{40}")


class _Entry(msgspec.Struct):
    schema: str
    key: tuple[str, str, str]
    pieces: dict[str, bytes]


_DECODER = msgspec.msgpack.Decoder(_Entry)


class RepoCache:
    """The cache of one repo: one file per commit, one small file per branch or tag that was resolved.

    It lies in huggingface_hub's place for such things, `HF_ASSETS_CACHE/moegauge/<server>/<repo>/`, by default
    `~/.cache/huggingface/assets/moegauge/`. Each file says what it is of, so two repos, servers or revisions never
    answer for one another, not even where a file system takes `A` for `a`. A folder that cannot be read or written is
    no error: nothing is kept.
    """

    def __init__(self, repo: str, endpoint: str) -> None:
        from huggingface_hub import constants

        # A mirror may serve other commits under the same name, so the endpoint is part of the key.
        self.server = without_password(endpoint)
        self.repo = repo
        self.folder = Path(constants.HF_ASSETS_CACHE) / "moegauge" / _file_name(self.server) / _file_name(repo)

    def load(self, entry: str) -> dict[str, bytes]:
        """Everything kept of a commit, by key; empty when there is nothing, or it is damaged or another's."""
        try:
            packed = read_file(self.folder / _file_name(entry), CACHE_LIMIT_BYTES)
            inflater = zlib.decompressobj()
            found = _DECODER.decode(inflater.decompress(packed, ENTRY_LIMIT_BYTES))
        except (OSError, zlib.error, msgspec.MsgspecError, UnicodeDecodeError, MemoryError):
            return {}
        ours = found.schema == SCHEMA and found.key == (self.server, self.repo, entry)
        return found.pieces if ours and inflater.eof else {}

    def save(self, entry: str, pieces: dict[str, bytes]) -> None:
        """Keep `pieces` of a commit, replacing what was there in one step."""
        # Level 1: headers shrink to about an eighth, at about 150 MB/s.
        packed = msgspec.msgpack.encode(_Entry(SCHEMA, (self.server, self.repo, entry), pieces))
        self._write(_file_name(entry), zlib.compress(packed, 1))

    def commit_of(self, revision: str) -> str | None:
        """The commit `revision` was when it was last resolved."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            text = read_file(self.folder / _file_name(f"ref-{revision}"), REF_LIMIT_BYTES).decode("utf-8")
        except (OSError, UnicodeDecodeError):
            return None
        commit = text[:40]
        return commit if COMMIT.fullmatch(commit) and text == self._ref(revision, commit) else None

    def remember(self, revision: str, commit: str) -> None:
        """Note which commit `revision` is."""
        if revision != commit and self.commit_of(revision) != commit:
            self._write(_file_name(f"ref-{revision}"), self._ref(revision, commit).encode("utf-8", "surrogatepass"))

    def _ref(self, revision: str, commit: str) -> str:
        return f"{commit}\n{self.server}\n{self.repo}\n{revision}\n"

    def _write(self, name: str, data: bytes) -> None:
        scratch = self.folder / f".{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):  # a cache is a kindness: without room, permission or a folder there is none
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                scratch.write_bytes(data)
                scratch.replace(self.folder / name)
            except BaseException:
                scratch.unlink(missing_ok=True)
                raise


def _file_name(text: str) -> str:
    """A file name no other text has: quoted where that is short, else cut, with a digest that makes it longer than any
    short one."""
    quoted = quote(text.encode("utf-8", "surrogatepass"), safe="")
    if len(quoted) <= NAME_CHARACTERS:
        return quoted
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{quoted[: NAME_CHARACTERS - len(digest) + 1]}{digest}"
