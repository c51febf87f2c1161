"""HTTP GET from the Hub through huggingface_hub: tokens, ranges, redirects, retries, deadlines, size caps.

Every body has a cap and every request a deadline, redirects, error pages and waits included: no server costs more
memory or time than that.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

from moegauge import __version__
from moegauge.counting import errors
from moegauge.text import shown

RETRIES = 3  # of a connection that failed or broke off: 0.5 s, 1 s, 2 s apart
STATUS_RETRIES = 5  # of a status below: 1 s to 8 s apart, or as Retry-After or RateLimit says
RETRIED_STATUSES = frozenset((408, 429, 500, 502, 503, 504))
FIRST_WAIT_S, FIRST_STATUS_WAIT_S, LONGEST_WAIT_S = 0.5, 1.0, 8.0
REDIRECTS = 5
# In units of HF_HUB_DOWNLOAD_TIMEOUT (10 s unless set), which bounds a silence: what one attempt may take from its
# first byte to its last, less where ranges would do instead, and what all requests of a repo may take together.
ATTEMPT, OPTIONAL_ATTEMPT, REPO = 8, 3, 60
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
_LENGTH = re.compile(r"\d{1,19}", re.ASCII)
_RATE_LIMIT = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})", re.ASCII)
_HOST = re.compile(r"[\w.:%-]+")
_TOKEN = re.compile(r"[!-~]+")
T = TypeVar("T")


class _PassingError(Exception):
    """A fault worth another try: of the connection (`response` is None), or a status, with the wait it asks for."""

    def __init__(self, problem: str, response: Any = None, wait_s: float | None = None) -> None:
        super().__init__(problem)
        self.response = response
        self.wait_s = wait_s


_STOP: ContextVar[threading.Event | None] = ContextVar("_STOP", default=None)


@contextlib.contextmanager
def stoppable(event: threading.Event) -> Iterator[None]:
    """Requests of transfers made inside fail soon after `event` is set, so that a run that stops need not wait for the
    slowest server."""
    token = _STOP.set(event)
    try:
        yield
    finally:
        _STOP.reset(token)


class _SecondsLeft:
    """A socket timeout that shrinks as a deadline nears. Python's sockets take any integer and ask `__index__` for its
    value, httpcore sets the timeout anew before every read: so a byte a second, headers or 1xx answers without end,
    and gzip that never yields a byte all stop at the deadline, as silence does."""

    def __init__(self, most_s: float, deadline: float, stop: threading.Event) -> None:
        self.most_s = most_s
        self.deadline = deadline
        self.stop = stop

    def __index__(self) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0 or self.stop.is_set():
            raise TimeoutError("the deadline has passed")
        return max(1, math.ceil(min(self.most_s, left)))


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file from `begin`, and the size of the whole file when the server said it."""

    begin: int
    data: bytes
    file_size: int | None


class Transfer:
    """Requests about one repo, counted.

    Args:
        repo: its id.
        deadline_s: what all its requests may take together, in seconds; 60 times HF_HUB_DOWNLOAD_TIMEOUT when None.

    Attributes:
        endpoint: the Hub's address; `shown_endpoint` is the same without a password.
        offline: HF_HUB_OFFLINE is set.
        requests: requests made, retries included, redirects not. wire_bytes: bytes of the bodies as they came over the
            wire, before decompression.
    """

    def __init__(self, repo: str, deadline_s: float | None = None) -> None:
        self.repo = repo
        constants, self._utils, self._headers = _settings(repo)
        self.endpoint: str = constants.ENDPOINT
        self.offline = bool(constants.HF_HUB_OFFLINE)
        self.shown_endpoint = without_password(self.endpoint)
        self.requests = 0
        self.wire_bytes = 0
        self.timeout_s = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        self.deadline_s = REPO * self.timeout_s if deadline_s is None else deadline_s
        self._deadline = time.monotonic() + self.deadline_s
        self._stop = _STOP.get() or threading.Event()
        self._lock = threading.Lock()
        # httpx in huggingface_hub 1, httpx2 in 2.4: whichever made the session.
        self._http: Any = importlib.import_module(type(self._utils.get_session()).__module__.partition(".")[0])

    def api(self, path: str, *, limit: int, what: str, optional: bool = False) -> tuple[bytes, str | None]:
        """A JSON document of the Hub's API, compressed on the way if the server likes, and the commit it is of.

        Args:
            path: after `/api/models/<repo>`. limit: bytes read at most. what: for messages.
            optional: the answer can be had otherwise: one retry, and less time.
        """
        url = f"{self.endpoint}/api/models/{self.repo}{path}"
        return self._get(url, {}, what, lambda response: (_capped(response, limit), _commit(response)), optional)

    def file(self, commit: str, file: str, *, limit: int) -> bytes:
        """A whole small file at a commit."""
        return self._get(self._url(commit, file), {}, file, lambda response: _capped(response, limit))

    def range(self, commit: str, file: str, begin: int, end: int) -> Piece:
        """Bytes [begin, end) of a file at a commit; fewer when the file ends before."""
        asked = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        return self._get(self._url(commit, file), asked, file, lambda response: _piece(response, begin, end))

    def _url(self, commit: str, file: str) -> str:
        return f"{self.endpoint}/{self.repo}/resolve/{quote(commit, safe='')}/{quote(file)}"

    def _get(self, url: str, headers: dict[str, str], what: str, read: Callable[[Any], T], optional: bool = False) -> T:
        """GET `url` and `read` the streamed response; what is worth another try gets one, within the deadline."""
        where = f"{self.repo}: {what}" if what else self.repo
        tries = 0
        while True:
            try:
                return self._attempt(url, {**self._headers, **headers}, where, read, optional)
            except _PassingError as fault:
                retries = 1 if optional else RETRIES if fault.response is None else STATUS_RETRIES
                first = FIRST_WAIT_S if fault.response is None else FIRST_STATUS_WAIT_S
                wait_s = min(LONGEST_WAIT_S, first * 2**tries) if fault.wait_s is None else fault.wait_s
                left_s = self._deadline - time.monotonic()
                tries += 1
                if tries > retries or wait_s >= left_s or (optional and wait_s > LONGEST_WAIT_S):
                    raise self._explained(fault, where) from None
            if self._stop.wait(wait_s):
                raise errors.DeadlineError("stopped.", file=where)

    def _attempt(self, url: str, headers: dict[str, str], where: str, read: Callable[[Any], T], optional: bool) -> T:
        """One request, its redirects followed by hand: a client that follows them reads their bodies whole."""
        from huggingface_hub.errors import OfflineModeIsEnabled

        most_s = min((OPTIONAL_ATTEMPT if optional else ATTEMPT) * self.timeout_s, self.deadline_s)
        deadline = min(self._deadline, time.monotonic() + most_s)
        left = _SecondsLeft(self.timeout_s, deadline, self._stop)
        extensions = {"timeout": {"connect": left, "read": left, "write": left, "pool": self.timeout_s}}
        with self._lock:
            self.requests += 1
        redirected = False
        try:
            for _ in range(REDIRECTS + 1):
                with self._utils.get_session().stream(
                    "GET", url, headers=headers, extensions=extensions, follow_redirects=False
                ) as response:
                    try:
                        if not response.has_redirect_location:
                            return self._checked(response, where, read)
                        url, headers = _redirected(response, headers, where)
                        redirected = True
                    finally:
                        with self._lock:
                            self.wire_bytes += response.num_bytes_downloaded
            raise errors.TransferError(f"more than {REDIRECTS} redirects.", file=where)
        except OfflineModeIsEnabled:
            raise offline(self.repo, where.removeprefix(f"{self.repo}: ") if where != self.repo else "") from None
        except (self._http.InvalidURL, self._http.UnsupportedProtocol, UnicodeError):
            what = "redirects to no address" if redirected else "has an address nobody can ask"
            raise errors.TransferError(f"the server {what}.", file=where) from None
        except (self._http.HTTPError, TimeoutError) as error:
            if time.monotonic() >= deadline:
                problem = f"the answer was not whole after {max(most_s, 1):.0f} s."
                if deadline == self._deadline:
                    problem = f"the answers were not whole after {self.deadline_s:.0f} s."
                raise errors.DeadlineError(problem, file=where) from None
            raise _PassingError(self._redacted(error)) from None

    def _checked(self, response: Any, where: str, read: Callable[[Any], T]) -> T:
        """`read` of a good response. The body of a bad one is nobody's concern: it may never end."""
        status = int(response.status_code)
        if status in RETRIED_STATUSES:
            raise _PassingError(str(status), response, _asked_wait(response))
        if status >= 400:
            raise self._explained(_PassingError(str(status), response), where)
        try:
            return read(response)
        except errors.TransferError as error:
            raise errors.TransferError(error.problem, file=where) from None

    def _redacted(self, error: Exception) -> str:
        text = str(error) or type(error).__name__
        return shown(text.replace(self.endpoint, self.shown_endpoint))

    def _explained(self, fault: _PassingError, where: str) -> errors.HubError:
        """The one line for a failed request."""
        if fault.response is None:
            advice = f"Check the connection to {self.shown_endpoint}, then try again."
            return errors.HubUnreachableError(f"no answer: {fault}.", file=where, advice=advice)
        status, code = int(fault.response.status_code), fault.response.headers.get("X-Error-Code", "")
        login = "Run 'hf auth login', or set HF_TOKEN."
        if code == "GatedRepo":
            advice = f"Accept its terms at {self.shown_endpoint}/{self.repo}, then: {login}"
            return errors.GatedRepoError("is gated.", file=where, advice=advice)
        if code == "RevisionNotFound":
            return errors.RevisionNotFoundError("no such revision.", file=where, advice="Check --revision.")
        if code == "RepoNotFound" or (status == 401 and "authorization" not in self._headers):
            advice = f"Check the name at {self.shown_endpoint}; for a private repo: {login}"
            return errors.RepoNotFoundError("no such repo, or it is private.", file=where, advice=advice)
        if status in (401, 403):
            problem = f"the Hub refuses this token ({status})."
            return errors.UnauthorizedError(problem, file=where, advice=f"{login} The token must read this repo.")
        if status == 404 and where == self.repo:
            advice = f"Check the name, and that HF_ENDPOINT ({self.shown_endpoint}) is a Hub."
            return errors.RepoNotFoundError("no such repo (404 from the API).", file=where, advice=advice)
        if status == 404:
            return errors.MissingFileError("is not in the repo.", file=where)
        if status == 429:
            asked = f"; it asks for {fault.wait_s:,.0f} s of patience" if fault.wait_s is not None else ""
            problem = f"still rate-limited (429) after every retry{asked}."
            advice = "Wait some minutes; with a token the limit is higher."
            return errors.RateLimitedError(problem, file=where, advice=advice)
        return errors.HubStatusError(f"the server answered {status}.", file=where)


def _settings(repo: str) -> tuple[Any, Any, dict[str, str]]:
    """huggingface_hub's constants, its utilities and the headers of every request, the token among them.

    Raises:
        HubError: the environment holds what no client can use: a timeout that is no number, a token that is none.
    """
    about: dict[str, Any] = {"library_name": "moegauge", "library_version": __version__}
    try:
        from huggingface_hub import constants, utils

        client: Any = utils
        address = urlsplit(constants.ENDPOINT)
        good = address.scheme in ("http", "https") and _HOST.fullmatch(address.hostname or "") and address.port != 0
    except ValueError:  # HF_HUB_DOWNLOAD_TIMEOUT=abc, or a port out of range, read at import
        good = False
    if not good or not 0 < constants.HF_HUB_DOWNLOAD_TIMEOUT <= 86_400:
        problem = "HF_ENDPOINT is no address, or HF_HUB_DOWNLOAD_TIMEOUT not from 1 to 86,400 s."
        advice = "Set them to the like of https://huggingface.co and 10, or unset them."
        raise errors.HubUnreachableError(problem, file=repo, advice=advice)
    try:
        headers = client.build_hf_headers(**about)
    except (OSError, ValueError):  # a token file nobody may read, usual in containers, or that is no text
        headers = client.build_hf_headers(**about, token=False)
    token = headers.get("authorization", "").removeprefix("Bearer ")
    if token and not _TOKEN.fullmatch(token):
        problem = "the token holds characters no token has."
        raise errors.UnauthorizedError(problem, file=repo, advice="Check HF_TOKEN, or run 'hf auth login' again.")
    return constants, client, {key: value.encode("ascii", "ignore").decode() for key, value in headers.items()}


def without_password(endpoint: str) -> str:
    """An address as it may be printed: user and password left out."""
    try:
        parts = urlsplit(endpoint)
    except ValueError:  # "http://[::1"
        return endpoint.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _redirected(response: Any, headers: dict[str, str], where: str) -> tuple[str, dict[str, str]]:
    """Where a redirect leads, and the headers to go there with: the client has decided whether the token may come."""
    following = response.next_request
    if following is None:
        raise errors.TransferError("the server redirects to no address.", file=where)
    kept = {k: v for k, v in headers.items() if k.lower() != "authorization" or "authorization" in following.headers}
    return str(following.url), kept


def _asked_wait(response: Any) -> float | None:
    """The wait a 429 or 503 asks for, in seconds; None when it does not say."""
    limited = _RATE_LIMIT.search(response.headers.get("RateLimit", ""))
    if limited and response.status_code == 429:
        return float(limited[1]) + 1.0  # the Hub rounds down
    after = response.headers.get("Retry-After", "").strip()
    # Past 19 digits it is longer than any deadline, and Python refuses to read past 4,300.
    return float(after[:19]) if after.isascii() and after.isdecimal() else None


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
        raise errors.TransferError(f"the server sent a range compressed ({shown(encoding)}).", file="")
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
            raise _PassingError(f"{len(data):,} of {last - first + 1:,} bytes came")
        size = None if total == "*" else int(total)
        if size is not None and last < min(end, size) - 1:
            raise _PassingError(f"the server sent bytes {first:,}-{last:,} of {size:,}")
        return Piece(begin, data, size)
    if response.status_code != 200:
        raise errors.TransferError(f"the server answered {response.status_code} to a range.", file="")
    length = response.headers.get("Content-Length", "")
    size = int(length) if _LENGTH.fullmatch(length) else None
    data, more = _collected(response.iter_raw(), end)
    if size is not None and len(data) < min(end, size):
        raise _PassingError(f"{len(data):,} of {size:,} bytes came")
    return Piece(begin, data[begin:], size if size is not None or more else len(data))
