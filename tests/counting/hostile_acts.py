"""What a hostile server does with a request: each act answers it in a way that costs a careless client time or memory.

An act takes the handler of tests/counting/loopback_hub.py and returns True when it has answered. `KINDS` are whole
repos of them, for scripts/simulate_hub.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

Act = Callable[[Any], bool]


def status(number: int, body: bytes = b"", **headers: str) -> Act:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda h: h.answer(number, body, named) or True


def closed(handler: Any) -> bool:
    """The connection goes without a word."""
    handler.close_connection = True
    handler.connection.shutdown(2)
    return True


def endless(handler: Any, number: int = 404) -> bool:
    """A body that never ends, as fast as it is read."""
    handler.send_response(number)
    handler.send_header("Location", handler.path)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")


def dripping(handler: Any) -> bool:
    """A byte each tenth of a second."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.1)


def dripping_headers(handler: Any) -> bool:
    """Never through with the headers."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X: y\r\n")
        time.sleep(0.1)


def informing(handler: Any) -> bool:
    """1xx answers without end."""
    while True:
        handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        time.sleep(0.05)


def empty_gzip(handler: Any) -> bool:
    """Compressed data without end that never yields a byte: empty stored blocks."""
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"a\r\n\x1f\x8b\x08\0\0\0\0\0\0\x03\r\n")
    while True:
        handler.wfile.write(b"5\r\n\x00\x00\x00\xff\xff\r\n")
        time.sleep(0.01)


def silent(handler: Any) -> bool:
    time.sleep(3)
    closed(handler)
    return True


# Hostile repos of the simulation: kind -> (part of the path that is attacked, act). What is not attacked is answered as
# for a good repo, whose count is then either right or refused.


def _lying(handler: Any) -> bool:
    """The one-request answer with half of the tensors left out."""
    name = "/".join(handler.path.split("/")[3:5])
    files = next(iter(handler.hub.repos[name].commits.values()))
    headers = {}
    for shard, file in files.items():
        if shard.endswith(".safetensors"):
            entries = list(json.loads(file.head[8:]).items())
            headers[shard] = dict(entries[: len(entries) // 2])
    handler.answer(200, json.dumps({"index": {}, "headers": headers}).encode())
    return True


def _config(**fields: Any) -> Act:
    return status(200, json.dumps(fields).encode())


_GROUPS = {f"g{n}": {"targets": [f"re:.*x{n}.*y"], "weights": {"num_bits": 4}} for n in range(20_000)}
_LONG = {"sha": "0" * 40, "siblings": [{"rfilename": "1" * 400_000 + ".safetensors"}]}
KINDS: dict[str, tuple[str, Act]] = {
    "endless-404": ("/revision/", endless),
    "endless-redirect": ("/revision/", lambda h: endless(h, 302)),
    "endless-listing": ("/revision/", lambda h: endless(h, 200)),
    "endless-config": ("config.json", lambda h: endless(h, 200)),
    "dripping": ("/", dripping),
    "dripping-index": ("/resolve/", dripping),
    "headers": ("/", dripping_headers),
    "informing": ("/", informing),
    "empty-gzip": ("/", empty_gzip),
    "silent": ("/", silent),
    "retry-after": ("/", status(429, Retry_After="100000")),
    "rate-limit": ("/", status(429, RateLimit='"api";r=0;t=99999')),
    "unavailable": ("/resolve/", status(503)),
    "redirects": ("/", status(302, Location="?again")),
    "login-page": ("/", status(200, b"<!doctype html><html>Sign in</html>")),
    "closed": ("/resolve/", closed),
    "lying": ("safetensors-metadata", _lying),
    "layers": ("config.json", _config(num_hidden_layers=10**9)),
    "config-groups": ("config.json", _config(quantization_config={"config_groups": _GROUPS})),
    "deep-config": ("config.json", status(200, b'{"text_config":' * 900 + b"{}" + b"}" * 900)),
    "long-name": (
        "/revision/",
        status(200, json.dumps(_LONG).encode()),
    ),
    "wrong-range": ("/resolve/", status(206, bytes(64), Content_Range="bytes 0-" + "9" * 5000 + "/1")),
}
