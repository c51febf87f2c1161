"""Fetch from one Hub repo at one commit: listing, small files, headers, each read once and cached."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from moegauge.counting import errors
from moegauge.counting.headers.gguf import GgufHeader, Omitted, read_header
from moegauge.counting.headers.header import LENGTH_BYTES, Header, HeaderBudget
from moegauge.counting.headers.parse import header_length, parse_header, parse_text
from moegauge.counting.sources.cache import COMMIT, RepoCache
from moegauge.counting.sources.index import check_shard_name
from moegauge.counting.sources.transfer import Transfer, offline
from moegauge.limits import CHECKPOINT_LIMIT_BYTES, HEADER_LIMIT_BYTES, LISTING_LIMIT_BYTES, NAME_LIMIT_CHARACTERS

MAIN = "main"
JOBS = 8  # shards asked for at a time
SPARE_BYTES = 256  # padding, __metadata__
SHORTEST_ENTRY_BYTES = len(',"":{"dtype":"U8","shape":[],"data_offsets":[0,1]}')
T = TypeVar("T")
GENEROSITY = 1.02  # asked for beyond what the first shard leads to expect: cheaper than a second request


class _File(msgspec.Struct):
    rfilename: str
    size: int | None = None


class _Listing(msgspec.Struct):
    sha: str
    siblings: list[_File] = []


class _DecodedIndex(msgspec.Struct):
    metadata: Any = None


class _Decoded(msgspec.Struct):
    """The Hub's answer to `safetensors-metadata`: the index without its weight_map, and every header as JSON."""

    headers: dict[str, msgspec.Raw]
    index: _DecodedIndex = msgspec.field(default_factory=_DecodedIndex)


class Remote:
    """One repo at one commit: what is cached is read from there, the rest is fetched and remembered until `keep`.

    Args:
        repo, revision: what to open. deadline_s: see `Transfer`.

    Attributes:
        commit: the 40-digit commit the revision was when it was resolved.
        sizes: file -> bytes, None where the Hub does not say; names: the files at the top level.
    """

    def __init__(self, repo: str, revision: str, deadline_s: float | None = None) -> None:
        self.repo = repo
        self.revision = revision
        self.transfer = Transfer(repo, deadline_s)
        self.offline = self.transfer.offline
        self.cache = RepoCache(repo, self.transfer.endpoint)
        self.commit, listing = self._resolve()
        self.budget = HeaderBudget()
        self.tiny: dict[str, bytes] | None = None
        self.sizes = {file.rfilename: file.size for file in listing.siblings}
        self.names = {name for name in self.sizes if "/" not in name and len(name) <= NAME_LIMIT_CHARACTERS}

    def _resolve(self) -> tuple[str, _Listing]:
        """Pin the revision: by the cache when it is a commit or we are offline, else by one request."""
        known = self.cache.commit_of(self.revision)
        self.pieces = self.cache.load(known) if known else {}
        self.fresh = False
        if "listing" in self.pieces and known and (self.offline or known == self.revision):
            return known, _listing(self.pieces["listing"], self.repo)
        if self.offline:
            raise offline(self.repo, f"revision {self.revision}")
        body, _ = self.transfer.api(self._revision_path() + "?blobs=true", limit=LISTING_LIMIT_BYTES, what="")
        listing = _listing(body, self.repo)
        if listing.sha != known:
            self.pieces = self.cache.load(listing.sha)
        self.cache.remember(self.revision, listing.sha)
        self._store("listing", body)
        return listing.sha, listing

    def _revision_path(self) -> str:
        return f"/revision/{quote(self.revision, safe='')}"

    def _store(self, key: str, data: bytes) -> bytes:
        self.fresh = self.fresh or key not in self.pieces
        self.pieces[key] = data
        return data

    def _cached(self, key: str, what: str, fetch: Callable[[], bytes]) -> bytes:
        if key in self.pieces:
            return self.pieces[key]
        if self.offline:
            raise offline(self.repo, what)
        return self._store(key, fetch())

    def keep(self) -> None:
        """Write what was fetched to the cache; called when everything has been validated."""
        if self.fresh:
            self.cache.save(self.commit, self.pieces)
            self.fresh = False

    def document(self, file: str, limit: int) -> bytes:
        """A whole small file."""
        return self._cached(f"file:{file}", file, lambda: self.transfer.file(self.commit, file, limit=limit))

    def headers(self, first: dict[str, int]) -> list[Header]:
        """The validated headers of the files in `first`, sorted by name; `first` sizes the first request of each."""
        files = sorted(first)
        missing = [file for file in files if f"header:{file}" not in self.pieces]
        if missing and self.offline:
            raise offline(self.repo, missing[0])
        if missing:
            for file, (raw, size) in zip(missing, self._fetch_headers(missing, first), strict=True):
                self._store(f"header:{file}", raw)
                self._store(f"size:{file}", b"" if size is None else b"%d" % size)
        headers = []
        for file in files:
            known = self.pieces.get(f"size:{file}", b"")
            size = int(known) if known.isdigit() else None
            headers.append(parse_header(self.pieces[f"header:{file}"], file=file, file_size=size))
        return headers

    def _fetch_headers(self, files: list[str], first: dict[str, int]) -> list[tuple[bytes, int | None]]:
        """(header, file size) of each of `files`. What the first header took teaches what the others will take."""
        sample = self._fetch_header(files[0], first[files[0]])
        if len(files) == 1:
            return [sample]
        scale = len(sample[0]) / first[files[0]]
        with ThreadPoolExecutor(min(JOBS, len(files) - 1)) as pool:
            try:
                ranges = [int(first[file] * scale * GENEROSITY) + SPARE_BYTES for file in files[1:]]
                return [sample, *pool.map(self._fetch_header, files[1:], ranges)]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _fetch_header(self, file: str, first: int) -> tuple[bytes, int | None]:
        """(the file's first bytes up to the end of its header, the file's size) in one or two requests."""
        size = self.sizes.get(file)
        if size is not None and size < LENGTH_BYTES:
            raise errors.TooShortError(f"{size} bytes is too short for a safetensors file.", file=file)
        first = min(max(first, 64), LENGTH_BYTES + HEADER_LIMIT_BYTES)
        piece = self.transfer.range(self.commit, file, 0, first if size is None else min(first, size))
        if size is not None and piece.file_size is not None and size != piece.file_size:
            problem = f"the server gives it {piece.file_size:,} bytes, the repo's listing {size:,}."
            raise errors.TransferError(problem, file=f"{self.repo}: {file}")
        size = piece.file_size if size is None else size
        wanted = LENGTH_BYTES + header_length(piece.data[:64], file=file, file_size=size)
        self.budget.take(wanted, file)
        data = piece.data[:wanted]
        if len(data) < wanted:
            data += self.transfer.range(self.commit, file, len(data), wanted).data
        return data, size

    def gguf_header(self, file: str) -> GgufHeader:
        """The validated header of one GGUF file, by range requests that grow until it ends."""
        key = f"gguf:{file}"
        if key not in self.pieces:
            size = self.sizes.get(file)
            if size is None:
                size = self.transfer.range(self.commit, file, 0, 4).file_size if not self.offline else None
            if size is None:
                raise errors.TransferError("the server does not say how large it is.", file=f"{self.repo}: {file}")

            def fetch() -> bytes:
                found = read_header(
                    lambda offset, count: self.transfer.range(self.commit, file, offset, offset + count).data,
                    file=file,
                    file_size=size,
                )
                return msgspec.json.encode(found)

            self._cached(key, file, fetch)
        found = msgspec.json.decode(self.pieces[key], type=GgufHeader)
        for field, value in found.metadata.items():
            if isinstance(value, dict):  # no value of a GGUF is one: this was an Omitted
                found.metadata[field] = Omitted(**value)
        self.budget.take(found.data_start, file)
        return found

    def decoded_headers(self, index_file: str, accept: Callable[[list[Header], int | None], T]) -> T | None:
        """What `accept` makes of every header as the Hub's one request brings them.

        The request is optional: whatever goes wrong with it, from a refusal to an answer that cannot be proven
        complete or that `accept` refuses, the answer is None and the caller reads by ranges.

        Args:
            index_file: the index at the top of the repo.
            accept: gets the headers and the index's `total_size` (None where it gives none); raises SourceError.
        """
        key = f"decoded:{index_file}"
        cached = self.pieces.get(key)
        if cached is None and (
            self.offline or self.revision != MAIN or any(name.startswith("header:") for name in self.pieces)
        ):
            return None
        try:
            body = self._fetch_decoded(index_file) if cached is None else cached
            accepted = accept(*self._proven(body))
        except errors.SourceError:
            self.pieces.pop(key, None)
            return None
        self._store(key, body)
        return accepted

    def _proven(self, body: bytes) -> tuple[list[Header], int | None]:
        """The headers of a decoded answer, each proven complete, and the index's total size.

        Raises:
            SourceError: the answer is none, or something may be missing from it.
        """
        try:
            answer = msgspec.json.decode(body, type=_Decoded)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise errors.TransferError(f"the Hub's answer is not what it should be: {error}.", file=self.repo) from None
        headers = []
        for shard in sorted(answer.headers):
            check_shard_name(shard, file=self.repo)
            text = bytes(answer.headers[shard])
            header = parse_text(text, file=shard, data_bytes=None)
            headers.append(self._complete(header, text))
        if not headers:
            raise errors.TransferError("the Hub's answer has no headers.", file=self.repo)
        metadata = answer.index.metadata
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        return headers, total if type(total) is int else None

    def _complete(self, header: Header, text: bytes) -> Header:
        """The header with its true length, the file's size less its data; proof that no tensor was left out.

        A writer's header is compact JSON and some padding. What the file has beyond its data must therefore be as
        long as the decoded text, give or take less than the shortest entry a tensor can have.
        """
        size = self.sizes.get(header.file)
        if size is None:
            raise errors.MissingShardError("is not in the repo, or its size is unknown.", file=header.file)
        length = size - header.data_bytes
        if any(space in text for space in (b" ", b"\n", b"\t", b"\r")):
            text = msgspec.json.format(text, indent=-1)
        if not 0 <= length - LENGTH_BYTES - len(text) < SHORTEST_ENTRY_BYTES:
            problem = f"{length:,} bytes beside the data, for a header of {len(text):,}: something is missing."
            raise errors.SizeMismatchError(problem, file=header.file)
        return replace(header, header_bytes=length)

    def _fetch_decoded(self, index_file: str) -> bytes:
        """The body of the Hub's one request for all headers, proven to be of our commit."""
        path = f"/safetensors-metadata/{quote(index_file)}"
        body, commit = self.transfer.api(path, limit=CHECKPOINT_LIMIT_BYTES, what=index_file, optional=True)
        if commit is None:
            # The answer does not say of which commit it is: main must not have moved while it was made.
            path = self._revision_path() + "?expand[]=sha"
            now, _ = self.transfer.api(path, limit=LISTING_LIMIT_BYTES, what="", optional=True)
            commit = _listing(now, self.repo).sha
        if commit != self.commit:
            raise errors.TransferError("the Hub's answer is of another commit.", file=self.repo)
        return body

    def read_range(self, header: Header, offset: int, size: int) -> bytes:
        """`size` bytes of a shard's data: 16 bytes of a `weight_shape`, say. Cached in a small file of their own."""
        entry, key = f"{self.commit}-data", f"{header.file}:{offset}:{size}"
        if self.tiny is None:
            self.tiny = self.cache.load(entry)
        if key in self.tiny:
            return self.tiny[key]
        if self.offline:
            raise offline(self.repo, header.file)
        data = self.transfer.range(self.commit, header.file, offset, offset + size).data
        if len(data) != size:
            raise errors.TransferError(f"{len(data)} of {size} bytes came.", file=f"{self.repo}: {header.file}")
        self.tiny[key] = data
        self.cache.save(entry, self.tiny)
        return data


def _listing(body: bytes, repo: str) -> _Listing:
    try:
        listing = msgspec.json.decode(body, type=_Listing)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.TransferError(f"the Hub's listing is not what it should be: {error}.", file=repo) from None
    if not COMMIT.fullmatch(listing.sha):
        raise errors.TransferError("the Hub names no commit.", file=repo)
    return listing
