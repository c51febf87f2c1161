"""Hostile Hubs: optional requests that fail in every way, incomplete answers, bodies and waits without end.

The client is the real huggingface_hub in another process, the server a Hub on 127.0.0.1."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "moegauge_tests_hostile_acts", Path(__file__).parent.parent / "counting" / "hostile_acts.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
acts = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = acts
_SPEC.loader.exec_module(acts)
closed, dripping, dripping_headers, empty_gzip = acts.closed, acts.dripping, acts.dripping_headers, acts.empty_gzip
endless, informing, silent, status = acts.endless, acts.informing, acts.silent, acts.status

SHARDS = 3
PER_SHARD = 40
Act = Callable[[Any], bool]


def written(tensors: dict[str, int], pad_to: int = 8) -> tuple[bytes, int]:
    """(length and header, bytes of data) of BF16 tensors of so many elements each, padded as safetensors pads."""
    entries, end = {}, 0
    for name, elements in tensors.items():
        entries[name] = {"dtype": "BF16", "shape": [elements], "data_offsets": [end, end + 2 * elements]}
        end += 2 * elements
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % pad_to)
    return struct.pack("<Q", len(text)) + text, end


def repo(loopback: Any, elements: int = 500_000, **written_as: int) -> dict[str, Any]:
    """A sharded repo: three shards of 40 experts."""
    files: dict[str, Any] = {"config.json": b'{"model_type": "x"}'}
    placed, total = {}, 0
    for number in range(1, SHARDS + 1):
        shard = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        names = [f"model.layers.{number}.mlp.experts.{i}.down_proj.weight" for i in range(PER_SHARD)]
        head, data = written(dict.fromkeys(names, elements), **written_as)
        files[shard] = loopback.File(head, len(head) + data)
        placed.update(dict.fromkeys(names, shard))
        total += data
    files["model.safetensors.index.json"] = json.dumps(
        {"metadata": {"total_size": total}, "weight_map": placed}
    ).encode()
    return files


def decoded(files: dict[str, Any]) -> dict[str, Any]:
    """The one-request answer a good Hub would give."""
    index = json.loads(files["model.safetensors.index.json"])
    shards = sorted(set(index.pop("weight_map").values()))
    return {"index": index, "headers": {shard: json.loads(files[shard].head[8:]) for shard in shards}}


@pytest.fixture(autouse=True)
def quiet(hub: Any) -> Iterator[None]:
    """Each test sees its own requests and meets its own faults."""
    hub.log.clear()
    hub.faults.clear()
    yield
    hub.faults.clear()


def ranges(hub: Any) -> int:
    return sum(request.range is not None for request in hub.log)


HTML = b"<!doctype html><html><body>Sign in</body></html>"
OPTIONAL: dict[str, Act] = {
    "401": status(401),
    "401 RepoNotFound": status(401, X_Error_Code="RepoNotFound"),
    "401 invalid credentials": status(401, X_Error_Message="Invalid credentials in Authorization header"),
    "402": status(402),
    "403": status(403),
    **{
        f"{number} {code}": status(number, X_Error_Code=code)
        for number in (403, 404)
        for code in ("RepoNotFound", "RevisionNotFound", "GatedRepo", "EntryNotFound")
    },
    "404": status(404),
    "404 disabled": status(403, X_Error_Message="Access to this resource is disabled."),
    "404 endless": endless,
    "405": status(405),
    "406": status(406),
    "410": status(410),
    "413": status(413),
    "418": status(418),
    "429 for ever": status(429, Retry_After="100000"),
    "429 for a window": status(429, RateLimit='"api";r=0;t=99999'),
    "451": status(451),
    **{str(number): status(number) for number in (501, 505, 511, 599)},
    "503 for ever": status(503, Retry_After="99999"),
    "200 HTML": status(200, HTML, Content_Type="text/html"),
    "200 {}": status(200, b"{}"),
    "200 []": status(200, b"[]"),
    "200 null": status(200, b"null"),
    "200 nothing": status(200),
    "200 no headers": status(200, b'{"index": {}, "headers": {}}'),
    "200 headers a list": status(200, b'{"headers": []}'),
    "200 headers of nothing": status(200, b'{"headers": {"model-00001-of-00003.safetensors": null}}'),
    "200 deep": status(200, b"[" * 100_000),
    "200 not UTF-8": status(200, b'{"headers": {"\xff": {}}}'),
    "200 escaping shard": status(200, b'{"headers": {"../x.safetensors": {}}}'),
    "200 strange shard": status(200, b'{"headers": {"other.safetensors": {}}}'),
    "200 gzip that is none": status(200, b"not gzip at all", Content_Encoding="gzip"),
    "204": status(204),
    "206": status(206, b"{}"),
    "302 to a login page": status(302, Location="/login"),
    "302 to itself": status(302, Location="safetensors-metadata"),
    "302 nowhere": status(302, Location="http://[::1"),
    "302 to a file": status(302, Location="file:///etc/passwd"),
    "302 to a closed port": status(302, Location="http://127.0.0.1:9/"),
    "302 to another scheme": status(302, Location="ftp://127.0.0.1/"),
    "304": status(304),
    "closed": closed,
    "no HTTP": lambda h: bool(h.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n") and closed(h)),
    "half a body": lambda h: h.drop(promised=5000, sent=100),
}


@pytest.mark.parametrize("act", OPTIONAL.values(), ids=OPTIONAL)
def test_optional_request_that_fails_never_fails_the_count(hub: Any, client: Any, loopback: Any, act: Act) -> None:
    name = f"org/optional-{len(hub.repos)}"
    hub.add(name, repo(loopback))
    hub.fail("safetensors-metadata", act, times=1000)
    answer = client.open(name)
    assert (answer.get("tensors"), answer.get("warnings")) == (120, []), answer
    assert ranges(hub) == SHARDS


@pytest.mark.parametrize("act", [silent, dripping_headers])
def test_optional_request_without_end_costs_its_deadline(hub: Any, loopback: Any, patient: Any, act: Act) -> None:
    """HF_HUB_DOWNLOAD_TIMEOUT is 1 s here: the optional request may take 3 s."""
    hub.add("org/endless", repo(loopback))
    hub.fail("safetensors-metadata", act, times=1000)
    start = time.monotonic()
    answer = patient.open("org/endless", revision="main")
    assert answer.get("tensors") == 120, answer
    assert time.monotonic() - start < 10


def test_commit_check_that_fails_is_optional_too(hub: Any, client: Any, loopback: Any) -> None:
    hub.add("org/unsure", repo(loopback))
    hub.fail("expand", status(403), times=1000)
    assert client.open("org/unsure")["tensors"] == 120
    assert ranges(hub) == SHARDS


# Answers that leave something out.


def _halved(answer: dict[str, Any]) -> None:
    for entries in answer["headers"].values():
        for name in list(entries)[PER_SHARD // 2 :]:
            del entries[name]


def _last_dropped(answer: dict[str, Any]) -> None:
    for entries in answer["headers"].values():
        del entries[list(entries)[-1]]


def _total_too(answer: dict[str, Any]) -> None:
    _halved(answer)
    answer["index"]["metadata"]["total_size"] //= 2


def _no_total(answer: dict[str, Any]) -> None:
    _halved(answer)
    del answer["index"]


def _shard_dropped(answer: dict[str, Any]) -> None:
    del answer["headers"]["model-00002-of-00003.safetensors"]


def _shard_emptied(answer: dict[str, Any]) -> None:
    answer["headers"]["model-00002-of-00003.safetensors"] = {}


def _filled_up(answer: dict[str, Any]) -> None:
    """As long as the file says, with a name that was never there."""
    for entries in answer["headers"].values():
        dropped = [entries.pop(name) for name in list(entries)[PER_SHARD - 5 :]]
        entries["__metadata__"] = {"x": "y" * (100 * len(dropped))}


def _wrong_total(answer: dict[str, Any]) -> None:
    answer["index"]["metadata"]["total_size"] -= 2


def _other_lengths(answer: dict[str, Any]) -> None:
    for entries in answer["headers"].values():
        name = next(iter(entries))
        entries["renamed" + name] = entries.pop(name)


LIES = {f.__name__.strip("_"): f for f in (_halved, _last_dropped, _total_too, _no_total, _shard_dropped)}
LIES |= {f.__name__.strip("_"): f for f in (_shard_emptied, _filled_up, _wrong_total, _other_lengths)}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
@pytest.mark.parametrize("spaced", [False, True], ids=["compact", "spaced"])
@pytest.mark.parametrize("elements", [500_000, 1, 0])
def test_answer_that_is_not_complete_is_read_by_ranges(
    hub: Any, client: Any, loopback: Any, lie: Callable[[dict[str, Any]], None], spaced: bool, elements: int
) -> None:
    """Spaced: white space fills the room of what was left out."""
    files = repo(loopback, elements)
    name = f"org/lie-{len(hub.repos)}"
    hub.add(name, files)
    answer = decoded(files)
    lie(answer)
    body = json.dumps(answer, indent=3 if spaced else None, separators=None if spaced else (",", ":")).encode()
    hub.fail(f"{name}/safetensors-metadata", status(200, body))
    found = client.open(name)
    assert (found.get("tensors"), found.get("warnings")) == (120, []), found
    assert [len(header["names"]) for header in found["headers"]] == [PER_SHARD] * SHARDS
    assert ranges(hub) >= SHARDS


@pytest.mark.parametrize("pad_to", [1, 8])
def test_complete_answer_needs_no_ranges(hub: Any, client: Any, loopback: Any, pad_to: int) -> None:
    hub.add(f"org/padded-{pad_to}", repo(loopback, pad_to=pad_to))
    assert client.open(f"org/padded-{pad_to}")["tensors"] == 120
    assert ranges(hub) == 0


def test_spaced_answer_is_measured_without_its_spaces(hub: Any, client: Any, loopback: Any) -> None:
    files = repo(loopback)
    hub.add("org/pretty", files)
    hub.fail("org/pretty/safetensors-metadata", status(200, json.dumps(decoded(files), indent=4).encode()))
    assert client.open("org/pretty")["tensors"] == 120
    assert ranges(hub) == 0


def test_header_padded_beyond_proof_is_read_by_ranges(hub: Any, client: Any, loopback: Any) -> None:
    hub.add("org/padded", repo(loopback, pad_to=65_536))
    assert client.open("org/padded")["tensors"] == 120
    assert ranges(hub) >= SHARDS


def test_sizes_the_listing_does_not_give_prove_nothing(hub: Any, client: Any, loopback: Any) -> None:
    files = repo(loopback)
    commit = hub.add("org/unsized", files)
    listing = json.dumps({"sha": commit, "siblings": [{"rfilename": name} for name in files]}).encode()
    hub.fail("org/unsized/revision/main?blobs", status(200, listing))
    answer = client.open("org/unsized")
    assert answer["tensors"] == 120
    assert ranges(hub) >= SHARDS


# Required requests: an error of one line, in bounded time and memory.


@dataclass(frozen=True)
class Required:
    """What the server does with every request about the repo, and the error it must come to."""

    act: Act
    error: tuple[str, ...]


REQUIRED: dict[str, Required] = {
    "endless 404": Required(endless, ("RepoNotFoundError", "MissingFileError")),
    "endless 418": Required(lambda h: endless(h, 418), ("HubStatusError",)),
    "endless redirects' bodies": Required(lambda h: endless(h, 302), ("TransferError",)),
    "a byte now and then": Required(dripping, ("DeadlineError",)),
    "headers without end": Required(dripping_headers, ("DeadlineError", "HubUnreachableError")),
    "1xx without end": Required(informing, ("DeadlineError",)),
    "gzip that yields nothing": Required(empty_gzip, ("DeadlineError", "TransferError")),
    "Retry-After": Required(status(429, Retry_After="100000"), ("RateLimitedError",)),
    "Retry-After of 5,000 digits": Required(status(503, Retry_After="9" * 5000), ("HubStatusError",)),
    "RateLimit": Required(status(429, RateLimit='"api";r=0;t=99999'), ("RateLimitedError",)),
    "redirect loop": Required(status(302, Location="?again"), ("TransferError",)),
    "no address": Required(status(302, Location="http://[::1"), ("TransferError", "HubUnreachableError")),
}
OF_A_FILE = ("endless 404", "endless redirects' bodies", "a byte now and then", "Retry-After")


@pytest.fixture(scope="module")
def patient(loopback: Any, hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client that gives up after a second of silence, hence after 8 s of anything."""
    home = tmp_path_factory.mktemp("patient")
    process = loopback.Client(hub.environment(home, HF_HUB_DOWNLOAD_TIMEOUT="1"))
    yield process
    process.close()


@pytest.mark.parametrize(
    ("case", "match"),
    [(case, "/revision/") for case in REQUIRED.values()] + [(REQUIRED[key], "/resolve/") for key in OF_A_FILE],
    ids=[*REQUIRED, *(f"file, {key}" for key in OF_A_FILE)],
)
def test_required_request_without_end_is_one_line_in_time(
    hub: Any, loopback: Any, patient: Any, case: Required, match: str
) -> None:
    name = f"org/required-{len(hub.repos)}"
    head, data = written({"w": 2})
    hub.add(name, {"model.safetensors": loopback.File(head, len(head) + data)})
    hub.fail(match, case.act, times=1000)
    start = time.monotonic()
    answer = patient.open(name, deadline_s=2)
    assert answer.get("error") in case.error, answer
    assert answer["message"].isprintable()
    assert name in answer["message"]
    assert time.monotonic() - start < 6


@pytest.mark.parametrize(
    "content_range",
    ["bytes 0-" + "9" * 5000 + "/1", "bytes 0-63/" + "9" * 5000, "bytes 0-63/-1", "bytes \u0663-63/64", "0-63/64", ""],
    ids=["last of 5,000 digits", "total of 5,000 digits", "negative", "other digits", "no unit", "none"],
)
def test_content_range_that_is_none(hub: Any, client: Any, content_range: str) -> None:
    head, data = written({"w": 2})
    hub.add("org/range", {"model.safetensors": head + bytes(data)})
    raw = content_range.encode("utf-8").decode("latin-1")
    hub.fail("org/range/resolve", lambda h: h.answer(206, bytes(64), {"Content-Range": raw}) or True)
    assert client.open("org/range", revision="main").get("error") == "TransferError"


# Environments.

ENDPOINTS = ["nonsense", "http://", "http://[::1", "http://h:99999", "http://exa mple", "ftp://h", "file:///x", "//h"]


@pytest.mark.parametrize(
    "environment",
    [
        *({"HF_ENDPOINT": endpoint} for endpoint in ENDPOINTS),
        {"HF_HUB_DOWNLOAD_TIMEOUT": "-1"},
        {"HF_HUB_DOWNLOAD_TIMEOUT": "soon"},
        {"HF_HUB_DOWNLOAD_TIMEOUT": "9" * 400},
        {"HF_TOKEN": "hf_\u00e9\u20ac"},
        {"HF_TOKEN": "hf a b"},
    ],
    ids=lambda e: "=".join(next(iter(e.items())))[:40].encode("ascii", "replace").decode(),
)
def test_environment_no_client_can_use(hub: Any, loopback: Any, tmp_path: Path, environment: dict[str, str]) -> None:
    made = loopback.Client(hub.environment(tmp_path, **environment))
    try:
        answer = made.open("org/any")
    finally:
        made.close()
    assert answer["error"] in ("HubUnreachableError", "UnauthorizedError"), answer
    assert "HF_" in answer["message"]
    assert "\u20ac" not in answer["message"]


def test_password_of_the_endpoint_is_never_shown_nor_a_name_of_a_file(hub: Any, loopback: Any, tmp_path: Path) -> None:
    head, data = written({"w": 2})
    hub.add("org/mirror", {"model.safetensors": head + bytes(data)})
    address = hub.url.replace("http://", "http://user:secret@")
    made = loopback.Client(hub.environment(tmp_path, HF_ENDPOINT=address))
    try:
        assert made.open("org/mirror").get("tensors") == 1
        messages = [made.open(name)["message"] for name in ("org/nowhere", "org/none")]
        hub.fail("org/mirror", status(404), times=1000)
        messages.append(made.open("org/mirror", revision="other")["message"])
    finally:
        made.close()
    assert not [text for text in messages if "secret" in text]
    assert not [path for path in tmp_path.rglob("*") if "secret" in str(path)]


def test_nobody_listens_at_an_endpoint_with_a_password(loopback: Any, hub: Any, tmp_path: Path) -> None:
    made = loopback.Client(hub.environment(tmp_path, HF_ENDPOINT="http://user:secret@127.0.0.1:9"))
    try:
        answer = made.open("org/any")
    finally:
        made.close()
    assert answer["error"] == "HubUnreachableError"
    assert "127.0.0.1:9" in answer["message"]
    assert "secret" not in answer["message"]


def test_server_that_is_no_hub_is_said_so(hub: Any, client: Any) -> None:
    hub.add("org/bare", {"model.safetensors": b""})
    hub.fail("org/bare/revision", status(404))
    answer = client.open("org/bare")
    assert answer["error"] == "RepoNotFoundError"
    assert "HF_ENDPOINT" in answer["message"]
