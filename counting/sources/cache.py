"""Disk cache of a Hub repo at a commit, under HF_HOME: listing, index, headers, small JSON files.

A commit never changes, so an entry is never stale; it is validated anew each time it is read.
"""

from __future__ import annotations

import re
import secrets
import zlib
from pathlib import Path
from urllib.parse import quote

import msgspec

SCHEMA = "moegauge.cache/1"
ENTRY_LIMIT_BYTES = 2_000_000_000  # decompressed; guards against a damaged or hostile cache file
COMMIT = re.compile(r"[0-9a-f]{40}")


class _Entry(msgspec.Struct):
    schema: str
    pieces: dict[str, bytes]


_DECODER = msgspec.msgpack.Decoder(_Entry)


class RepoCache:
    """The cache of one repo: one file per commit, one small file per branch or tag that was resolved.

    It lies in huggingface_hub's place for such things, `HF_ASSETS_CACHE/moegauge/<repo>/`, by default
    `~/.cache/huggingface/assets/moegauge/`. A folder that cannot be written to is no error: nothing is kept.
    """

    def __init__(self, repo: str, endpoint: str) -> None:
        from huggingface_hub import constants

        # A mirror may serve other commits under the same name, so the endpoint is part of the key.
        server = quote(endpoint.partition("://")[2], safe="")
        self.folder = Path(constants.HF_ASSETS_CACHE) / "moegauge" / server / repo.replace("/", "--")

    def load(self, commit: str) -> dict[str, bytes]:
        """Everything kept of a commit, by key; empty when there is nothing, or it is damaged."""
        try:
            packed = (self.folder / commit).read_bytes()
            inflater = zlib.decompressobj()
            entry = _DECODER.decode(inflater.decompress(packed, ENTRY_LIMIT_BYTES))
        except (OSError, zlib.error, msgspec.MsgspecError, UnicodeDecodeError):
            return {}
        return entry.pieces if entry.schema == SCHEMA and inflater.eof else {}

    def save(self, commit: str, pieces: dict[str, bytes]) -> None:
        """Keep `pieces` of a commit, replacing what was there in one step."""
        # Level 1: headers shrink to about an eighth, at about 150 MB/s.
        self._write(commit, zlib.compress(msgspec.msgpack.encode(_Entry(SCHEMA, pieces)), 1))

    def commit_of(self, revision: str) -> str | None:
        """The commit `revision` was when it was last resolved."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            commit = (self.folder / _ref(revision)).read_text("ascii").strip()
        except (OSError, ValueError):
            return None
        return commit if COMMIT.fullmatch(commit) else None

    def remember(self, revision: str, commit: str) -> None:
        """Note which commit `revision` is."""
        if revision != commit and self.commit_of(revision) != commit:
            self._write(_ref(revision), commit.encode())

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        scratch = path.with_name(f".{secrets.token_hex(8)}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(data)
            scratch.replace(path)
        except OSError:
            scratch.unlink(missing_ok=True)


def _ref(revision: str) -> str:
    return "ref-" + quote(revision, safe="")[:200]
