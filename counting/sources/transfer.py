"""HTTP requests to the Hub through huggingface_hub: tokens, ranges, back-off, offline switch, size caps.

Every body is read with a cap, so a server that ignores a range or never stops sending costs no memory.
"""

from __future__ import annotations

import importlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from moegauge import __version__
from moegauge.counting import errors

# Retries of a connection or a body that broke off, 0.5 s, 1 s, 2 s apart. Statuses (408, 429, 5xx) are retried by
# huggingface_hub: five times, 1 s to 8 s apart or as Retry-After says.
RETRIES = 3
FIRST_WAIT_S = 0.5
RETRIED_STATUSES = (408, 429, 500, 502, 503, 504)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
T = TypeVar("T")


class _BrokenOffError(Exception):
    """A body that ended early; worth another try."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file from `begin`, and the size of the whole file when the server said it."""

    begin: int
    data: bytes
    file_size: int | None


class Transfer:
    """Requests about one repo, counted.

    Attributes:
        repo: its id. requests: requests made, those huggingface_hub repeats or redirects counted once.
        wire_bytes: bytes of the bodies as they came over the wire, before decompression.
    """

    def __init__(self, repo: str) -> None:
        from huggingface_hub import constants, utils

        self.repo = repo
        self.endpoint: str = constants.ENDPOINT
        self.requests = 0
        self.wire_bytes = 0
        self._lock = threading.Lock()
        self._utils: Any = utils
        self._headers: dict[str, str] = self._utils.build_hf_headers(
            library_name="moegauge", library_version=__version__
        )
        self._timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        # httpx in huggingface_hub 1, httpx2 in 2.4: whichever made the session.
        self._http = importlib.import_module(type(self._utils.get_session()).__module__.partition(".")[0])

    def api(self, path: str, *, limit: int, what: str, retries: int = 5) -> tuple[bytes, str | None]:
        """A JSON document of the Hub's API, compressed on the way if the server likes, and the commit it is of."""
        url = f"{self.endpoint}/api/models/{self.repo}{path}"
        return self._get(url, {}, what, lambda response: (_capped(response, limit), _commit(response)), retries)

    def file(self, commit: str, file: str, *, limit: int) -> bytes:
        """A whole small file at a commit."""
        return self._get(self._url(commit, file), {}, file, lambda response: _capped(response, limit))

    def range(self, commit: str, file: str, begin: int, end: int) -> Piece:
        """Bytes [begin, end) of a file at a commit; fewer when the file ends before."""
        asked = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        return self._get(self._url(commit, file), asked, file, lambda response: _piece(response, begin, end))

    def _url(self, commit: str, file: str) -> str:
        return f"{self.endpoint}/{self.repo}/resolve/{quote(commit, safe='')}/{quote(file)}"

    def _get(
        self, url: str, headers: dict[str, str], what: str, read: Callable[[Any], T], status_retries: int = 5
    ) -> T:
        """GET `url` and `read` the streamed response; a body that breaks off is asked for again."""
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        where = f"{self.repo}: {what}" if what else self.repo
        for attempt in range(RETRIES + 1):
            with self._lock:
                self.requests += 1
            fault: Exception
            try:
                with self._utils.http_stream_backoff(
                    "GET",
                    url,
                    headers={**self._headers, **headers},
                    timeout=self._timeout,
                    max_retries=status_retries,
                    retry_on_exceptions=(),
                    retry_on_status_codes=RETRIED_STATUSES,
                ) as response:
                    try:
                        if response.status_code >= 400:
                            response.read()
                        self._utils.hf_raise_for_status(response)
                        return read(response)
                    except (HfHubHTTPError, self._http.HTTPError, _BrokenOffError, errors.TransferError) as error:
                        fault = error
                    finally:
                        with self._lock:
                            self.wire_bytes += response.num_bytes_downloaded
            except OfflineModeIsEnabled:
                raise offline(self.repo, what) from None
            except (HfHubHTTPError, self._http.HTTPError) as error:
                fault = error
            if isinstance(fault, errors.TransferError):
                raise errors.TransferError(fault.problem, file=where) from None
            if isinstance(fault, HfHubHTTPError) or attempt == RETRIES:
                raise self._explained(fault, where) from None
            time.sleep(FIRST_WAIT_S * 2**attempt)
        raise AssertionError  # the loop returns or raises

    def _explained(self, error: Exception, where: str) -> errors.HubError:
        """The one line for a failed request."""
        response = getattr(error, "response", None)
        if response is None:
            kind = str(error) or type(error).__name__
            advice = f"Check the connection to {self.endpoint}, then try again."
            return errors.HubUnreachableError(f"no answer: {errors.shown(kind)}.", file=where, advice=advice)
        status, code = int(response.status_code), response.headers.get("X-Error-Code", "")
        login = "Run 'hf auth login', or set HF_TOKEN."
        if code == "GatedRepo":
            advice = f"Accept its terms at {self.endpoint}/{self.repo}, then: {login}"
            return errors.GatedRepoError("is gated.", file=where, advice=advice)
        if code == "RevisionNotFound":
            return errors.RevisionNotFoundError("no such revision.", file=where, advice="Check --revision.")
        if code == "RepoNotFound" or (status == 401 and "authorization" not in self._headers):
            advice = f"Check the name at {self.endpoint}; for a private repo: {login}"
            return errors.RepoNotFoundError("no such repo, or it is private.", file=where, advice=advice)
        if status in (401, 403):
            problem = f"the Hub refuses this token ({status})."
            return errors.UnauthorizedError(problem, file=where, advice=f"{login} The token must read this repo.")
        if status == 404:
            return errors.MissingFileError("is not in the repo.", file=where)
        if status == 429:
            advice = "Wait some minutes; with a token the limit is higher."
            return errors.RateLimitedError("still rate-limited (429) after every retry.", file=where, advice=advice)
        return errors.HubStatusError(f"the server answered {status}.", file=where)


def offline(repo: str, what: str) -> errors.OfflineError:
    """The error for something that is needed, not cached, and out of reach."""
    where = f"{repo}: {what}" if what else repo
    return errors.OfflineError("offline, and not in the cache.", file=where, advice="Unset HF_HUB_OFFLINE, count once.")


def _commit(response: Any) -> str | None:
    commit: str | None = response.headers.get("X-Repo-Commit")
    return commit


def _collected(chunks: Any, limit: int) -> tuple[bytes, bool]:
    """Up to `limit` bytes, and whether there were more."""
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            return b"".join(parts)[:limit], True
    return b"".join(parts), False


def _capped(response: Any, limit: int) -> bytes:
    """The decompressed body, refused past `limit` bytes."""
    body, more = _collected(response.iter_bytes(), limit)
    if more:
        raise errors.TransferError(f"the server sends more than {limit:,} bytes.", file="")
    return body


def _piece(response: Any, begin: int, end: int) -> Piece:
    """The asked-for bytes, whether the server honoured the range (206) or began to send the whole file (200)."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise errors.TransferError(f"the server sent a range compressed ({errors.shown(encoding)}).", file="")
    if response.status_code == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not match:
            raise errors.TransferError("the server sent a range without saying which.", file="")
        first, last, total = int(match[1]), int(match[2]), match[3]
        if first != begin or last >= end or last < first:
            problem = f"the server sent bytes {first:,}-{last:,} where {begin:,}-{end - 1:,} were asked for."
            raise errors.TransferError(problem, file="")
        data, more = _collected(response.iter_raw(), last - first + 1)
        if more:
            raise errors.TransferError("the server sent more bytes than its range has.", file="")
        if len(data) < last - first + 1:
            raise _BrokenOffError(f"{len(data):,} of {last - first + 1:,} bytes came")
        size = None if total == "*" else int(total)
        if size is not None and last < min(end, size) - 1:
            raise _BrokenOffError(f"the server sent bytes {first:,}-{last:,} of {size:,}")
        return Piece(begin, data, size)
    if response.status_code != 200:
        raise errors.TransferError(f"the server answered {response.status_code} to a range.", file="")
    length = response.headers.get("Content-Length", "")
    size = int(length) if length.isdecimal() else None
    data, more = _collected(response.iter_raw(), end)
    if size is not None and len(data) < min(end, size):
        raise _BrokenOffError(f"{len(data):,} of {size:,} bytes came")
    return Piece(begin, data[begin:], size if size is not None or more else len(data))
