"""A Hub on 127.0.0.1 for tests: repos with commits and branches, ranges, the one-request header endpoint, and faults.

Files are bytes and a length: what lies past the bytes reads as zeros, so a checkpoint of hundreds of GB costs its
headers. Nothing here is the code under test, and the client is the real huggingface_hub in another process.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class File:
    """The first bytes of a file and its whole size."""

    head: bytes
    size: int

    def read(self, begin: int, end: int) -> bytes:
        data = self.head[begin:end]
        return data + bytes(min(end, self.size) - begin - len(data))


@dataclass
class Repo:
    """Files per commit, and which commit each branch is at."""

    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    one_request: bool = True


@dataclass
class Request:
    """One request as the server saw it."""

    host: str
    path: str
    range: str | None
    authorization: str | None
    sent: int = 0


@dataclass
class Fault:
    """What to do with the next `times` requests whose path contains `match`, and `repo` where one is named."""

    match: str
    act: Callable[[Handler], bool]
    times: int = 1
    repo: str = ""

    def meets(self, path: str) -> bool:
        return self.match in path and self.repo in path


class Hub:
    """The server, its repos and its log."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.token: str | None = None
        self.redirect_files = False
        self.decoded: dict[tuple[str, str, bool], bytes] = {}
        self.lock = threading.Lock()
        self.server = _server(self)
        self.storage = _server(self)  # another origin, for redirects
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.storage_url = f"http://localhost:{self.storage.server_port}"

    def close(self) -> None:
        for server in (self.server, self.storage):
            server.shutdown()
            server.server_close()

    def add(self, name: str, files: dict[str, bytes | File], branch: str = "main", **options: bool) -> str:
        """Commit `files` to a repo's branch; the commit."""
        repo = self.repos.setdefault(name, Repo(**options))
        content = {f: d if isinstance(d, File) else File(d, len(d)) for f, d in files.items()}
        digest = hashlib.sha1(repr((name, len(repo.commits), sorted(content))).encode()).hexdigest()
        repo.commits[digest] = content
        repo.refs[branch] = digest
        return digest

    def add_folder(self, name: str, folder: Path, **options: bool) -> str:
        """Commit a local checkpoint folder, sparse or not."""
        files: dict[str, bytes | File] = {}
        for path in sorted(folder.iterdir()):
            with path.open("rb") as stream:
                if path.suffix == ".safetensors":
                    head = stream.read(8)
                    head += stream.read(min(struct.unpack("<Q", head)[0], 10**8))
                    files[path.name] = File(head, path.stat().st_size)
                else:
                    files[path.name] = stream.read()
        return self.add(name, files, **options)

    def fail(self, match: str, act: Callable[[Handler], bool], times: int = 1) -> None:
        self.faults.append(Fault(match, act, times))

    def paths(self) -> list[str]:
        return [request.path for request in self.log]

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """What the real client needs to talk to this server and keep its files in `home`; it reads it at import."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_VERBOSITY": "error",
            "PATH": "/usr/bin:/bin",
            **more,
        }


class Client:
    """Another process with the real huggingface_hub; each call opens one checkpoint and says what came of it."""

    CODE = """
import dataclasses, json, sys
from moegauge.counting import count
from moegauge.counting.sources.open import open_checkpoint
from moegauge.errors import MoegaugeError
for line in sys.stdin:
    call = json.loads(line)
    reads, whole = call.pop("reads", []), call.pop("whole", False)
    try:
        if whole:
            print(json.dumps(count(**call).to_json()), flush=True)
            continue
        c = open_checkpoint(**call)
        answer = {"commit": c.commit, "tensors": c.tensors, "requests": c.requests, "warnings": c.warnings,
                  "wire_bytes": c.wire_bytes, "headers": [dataclasses.asdict(h) for h in c.headers],
                  "config": c.config, "reads": [list(c.read_bytes(*r)) for r in reads], "kind": c.kind}
    except MoegaugeError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)
"""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def open(self, target: str, **options: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"target": target, **options}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what half of the tests want."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _server(hub: Hub) -> ThreadingHTTPServer:
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for the acknowledgement of its headers

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.hub
        self.record = Request(
            self.headers["Host"], self.path, self.headers.get("Range"), self.headers.get("Authorization")
        )
        with hub.lock:
            hub.log.append(self.record)
            fault = next((f for f in hub.faults if f.times > 0 and f.meets(self.path)), None)
            if fault:
                fault.times -= 1
        try:
            if fault is None or not fault.act(self):
                self.route()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def route(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            self.api(parts[2:], parse_qs(url.query))
        elif "resolve" in parts[1:3]:
            at = parts.index("resolve")
            self.file("/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]))
        else:
            self.answer(404, b"")

    def repo(self, name: str) -> Repo | None:
        """The repo if this client may see it; otherwise the refusal has been sent."""
        repo = self.hub.repos.get(name)
        token = self.record.authorization
        if token is not None and self.hub.token is not None and token != f"Bearer {self.hub.token}":
            self.answer(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
            return None
        if repo is None or (repo.private and token is None):
            self.answer(401 if token is None else 404, b"", {} if token is None else {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def api(self, parts: list[str], query: dict[str, list[str]]) -> None:
        words = ("revision", "safetensors-metadata")
        at = next((i for i, part in enumerate(parts) if part in words), len(parts))
        repo = self.repo("/".join(parts[:at]))
        if repo is None:
            return
        kind, argument = parts[at], "/".join(parts[at + 1 :])
        if kind == "revision":
            commit = self.commit(repo, argument)
            if commit is None:
                return
            files = [{"rfilename": f, "size": d.size} for f, d in repo.commits[commit].items()]
            document = {"sha": commit} if "expand[]" in query else {"sha": commit, "siblings": files, "id": "x"}
            self.answer(200, json.dumps(document).encode(), compress=True)
            return
        files = repo.commits[repo.refs["main"]]
        if not repo.one_request or argument not in files:
            self.answer(404, b"")
            return
        zipped = "gzip" in self.headers.get("Accept-Encoding", "")
        key = (repo.refs["main"], argument, zipped)
        if key not in self.hub.decoded:  # made once: a real Hub has it at hand
            index = json.loads(files[argument].head)
            shards = sorted(set(index.pop("weight_map").values()))
            headers = {shard: json.loads(files[shard].head[8:]) for shard in shards}
            body = json.dumps({"index": index, "headers": headers}, separators=(",", ":")).encode()
            self.hub.decoded[key] = gzip.compress(body, 1) if zipped else body
        self.answer(200, self.hub.decoded[key], {"Content-Encoding": "gzip"} if zipped else {})

    def commit(self, repo: Repo, revision: str) -> str | None:
        commit = repo.refs.get(revision, revision)
        if commit in repo.commits:
            return commit
        self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return None

    def file(self, name: str, revision: str, file: str) -> None:
        at_storage = self.server is self.hub.storage
        repo = self.hub.repos.get(name) if at_storage else self.repo(name)
        if repo is None:
            return
        if repo.gated and not at_storage:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        commit = self.commit(repo, revision)
        if commit is None:
            return
        content = repo.commits[commit].get(file)
        if content is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif self.hub.redirect_files and not at_storage:
            self.answer(302, b"", {"Location": self.hub.storage_url + self.path, "X-Repo-Commit": commit})
        else:
            self.content(content, commit)

    def content(self, content: File, commit: str) -> None:
        asked = self.headers.get("Range")
        facts = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content.head).hexdigest()}"'}
        if asked is None:
            self.answer(200, content.read(0, content.size), facts)
            return
        first, last = (int(n) for n in asked.removeprefix("bytes=").split("-"))
        if first >= content.size:
            self.answer(416, b"", {"Content-Range": f"bytes */{content.size}"})
            return
        last = min(last, content.size - 1)
        self.answer(
            206,
            content.read(first, last + 1),
            {"Content-Range": f"bytes {first}-{last}/{content.size}", **facts},
        )

    def answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        compress: bool = False,
        length: int = -1,
    ) -> None:
        """Send one response; `length` overrides Content-Length."""
        if compress and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 1)
            headers = {**(headers or {}), "Content-Encoding": "gzip"}
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body)
        self.record.sent += len(body)

    # Faults: each returns True when it has answered.

    def hang(self, seconds: float) -> bool:
        time.sleep(seconds)
        return False

    def drop(self, promised: int, sent: int) -> bool:
        """Promise a body, send part of it, and cut the connection."""
        self.answer(
            200 if not self.headers.get("Range") else 206, bytes(sent), self.range_headers(promised), length=promised
        )
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(2)
        return True

    def range_headers(self, length: int) -> dict[str, str]:
        asked = self.headers.get("Range")
        if asked is None:
            return {}
        first = int(asked.removeprefix("bytes=").split("-")[0])
        return {"Content-Range": f"bytes {first}-{first + length - 1}/{10**6}"}


def main(arguments: list[str]) -> None:
    """Serve `org/name=FOLDER ...` until stdin closes; the first line printed is the address. `@FILE` holds more such
    words, one a line. Requests about `org/hostile-<kind>-*` meet that act of hostile_acts.KINDS."""
    hub = Hub()
    import hostile_acts  # beside this file, which is run as a script here

    for kind, (match, act) in hostile_acts.KINDS.items():
        hub.faults.append(Fault(match, act, times=10**9, repo=f"org/hostile-{kind}-"))
    words = [w for a in arguments for w in (Path(a[1:]).read_text().splitlines() if a.startswith("@") else [a])]
    read: dict[str, dict[str, File]] = {}
    for word in words:
        name, _, folder = word.partition("=")
        if folder not in read:
            commit = hub.add_folder(name, Path(folder))
            read[folder] = hub.repos[name].commits[commit]
        commit = hashlib.sha1(name.encode()).hexdigest()
        hub.repos[name] = Repo({commit: read[folder]}, {"main": commit})
    sys.stdout.write(f"{hub.url}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
