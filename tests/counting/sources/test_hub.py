"""Hub repos through the real huggingface_hub against a loopback Hub: what is asked, what is cached, what is said."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moegauge.counting import count, difference
from moegauge.counting.sources import release_layout
from moegauge.counting.sources.open import open_checkpoint


def header(tensors: dict[str, tuple[str, list[int], int]], pad_to: int = 0) -> tuple[bytes, int]:
    """(length and JSON, bytes of data) of a file with tensors name -> (dtype, shape, bytes)."""
    entries, end = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * max(0, pad_to - len(text))
    return struct.pack("<Q", len(text)) + text, end


def single(name: str = "w", pad_to: int = 0) -> bytes:
    head, size = header({name: ("I32", [2, 2], 16)}, pad_to)
    return head + bytes(range(size))


def sharded(loopback: Any, shards: int = 3, per_shard: int = 40) -> dict[str, Any]:
    """A sharded repo whose tensors would take 10 TB."""
    files: dict[str, Any] = {"config.json": b'{"model_type": "x"}'}
    weight_map, total = {}, 0
    for number in range(1, shards + 1):
        shard = f"model-{number:05d}-of-{shards:05d}.safetensors"
        names = [f"model.layers.{number}.mlp.experts.{i}.down_proj.weight" for i in range(per_shard)]
        size = 10**13 // shards // per_shard // 2 * 2
        head, data = header({name: ("BF16", [size // 2], size) for name in names})
        files[shard] = loopback.File(head, len(head) + data)
        weight_map.update(dict.fromkeys(names, shard))
        total += data
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files["model.safetensors.index.json"] = json.dumps(index, indent=2).encode()
    return files


@pytest.fixture(autouse=True)
def quiet(hub: Any) -> Iterator[None]:
    """Each test sees its own requests and meets its own faults."""
    hub.log.clear()
    hub.faults.clear()
    hub.redirect_files = False
    yield
    assert not [fault for fault in hub.faults if 0 < fault.times < 500], "a fault was never met"


def ranges(hub: Any) -> list[str]:
    return [request.range for request in hub.log if request.range]


def test_one_request_brings_every_header(hub: Any, client: Any, loopback: Any) -> None:
    commit = hub.add("org/one", sharded(loopback))
    answer = client.open("org/one")
    assert answer["commit"] == commit
    assert answer["tensors"] == 120
    assert answer["config"] == {"model_type": "x"}
    # The commit and its files, the headers, whether main is still there (the answer does not say), config.json.
    assert answer["requests"] == len(hub.log) == 4
    assert not ranges(hub)
    assert "decoded" in answer["warnings"][0]


def test_decoded_headers_are_those_of_the_files(hub: Any, client: Any, loopback: Any) -> None:
    hub.add("org/both", sharded(loopback))
    decoded = client.open("org/both")["headers"]
    thorough = client.open("org/both", thorough=True)
    assert thorough["headers"] == decoded
    assert thorough["warnings"] == []
    assert len(ranges(hub)) == 3


def test_second_count_asks_only_for_the_commit(hub: Any, client: Any, loopback: Any) -> None:
    for options in ({}, {"thorough": True}):
        commit = hub.add("org/twice", sharded(loopback))
        first = client.open("org/twice", **options)
        hub.log.clear()
        second = client.open("org/twice", **options)
        assert second["headers"] == first["headers"]
        assert [path.split("?")[0] for path in hub.paths()] == ["/api/models/org/twice/revision/main"]
        hub.log.clear()
        assert client.open("org/twice", revision=commit, **options)["headers"] == first["headers"]
        assert hub.log == []


def test_one_range_request_per_shard_where_the_index_tells_the_size(hub: Any, client: Any, loopback: Any) -> None:
    hub.add("org/ranges", sharded(loopback, shards=4, per_shard=500), one_request=False)
    answer = client.open("org/ranges")
    assert len(ranges(hub)) == 5  # the first shard teaches the size, in two
    asked = sum(request.sent for request in hub.log if request.range)
    held = sum(h["header_bytes"] for h in answer["headers"])
    assert held <= asked <= 1.1 * held


@pytest.mark.parametrize("size", [65_527, 65_528, 65_529, *range(99_992, 100_002)])
def test_header_sizes_around_the_first_range(hub: Any, client: Any, size: int) -> None:
    """65,536 bytes are asked for first; 100,000 is where other readers' first range ends."""
    hub.add(f"org/size-{size}", {"model.safetensors": single(pad_to=size)})
    answer = client.open(f"org/size-{size}")
    assert answer["headers"][0]["header_bytes"] == size + 8
    assert len(ranges(hub)) == (1 if size + 8 <= 65_536 else 2)


def test_tiny_tensors_are_read_by_range_and_cached(hub: Any, client: Any) -> None:
    hub.add("org/tiny", {"model.safetensors": single()})
    for asked in (2, 0):
        hub.log.clear()
        assert client.open("org/tiny", reads=[[0, 0], [0, 0]])["reads"] == [list(range(16))] * 2
        assert len(ranges(hub)) == asked


def test_branch_with_a_slash(hub: Any, client: Any) -> None:
    hub.add("org/pr", {"model.safetensors": single("main")})
    commit = hub.add("org/pr", {"model.safetensors": single("proposed")}, branch="refs/pr/4")
    answer = client.open("org/pr", revision="refs/pr/4")
    assert answer["commit"] == commit
    assert answer["headers"][0]["names"] == ["proposed"]


def test_same_headers_from_folder_and_hub(hub: Any, client: Any, tmp_path: Path) -> None:
    for name, data in {"model.safetensors": single(), "config.json": b"{}"}.items():
        (tmp_path / name).write_bytes(data)
    hub.add_folder("org/folder", tmp_path)
    local = open_checkpoint(str(tmp_path)).headers[0]
    remote = client.open("org/folder")["headers"][0]
    assert (remote["names"], remote["shapes"]) == (local.names, [list(shape) for shape in local.shapes])
    assert (remote["header_bytes"], remote["data_bytes"]) == (local.header_bytes, local.data_bytes)


@pytest.mark.parametrize("release", ["gpt-oss-20b", "deepseek-v3"])
def test_same_count_from_folder_and_hub(hub: Any, client: Any, tmp_path: Path, release: str) -> None:
    release_layout.write(tmp_path, release_layout.release(release)["config"], 5)
    hub.add_folder(f"org/{release}", tmp_path)
    local = count(str(tmp_path)).to_json()
    for thorough in (False, True):
        remote = client.open(f"org/{release}", whole=True, thorough=thorough)
        assert difference.compare_documents(local, remote) == []
        assert remote["target"]["header_bytes"] == local["target"]["header_bytes"]


# Faults. Each is met by a repo of its own; the client's waits are 0.5 s to 2 s.


def test_too_many_requests_is_waited_out(hub: Any, client: Any) -> None:
    hub.add("org/429", {"model.safetensors": single()})
    hub.fail("org/429/resolve", lambda h: h.answer(429, b"", {"Retry-After": "0"}) or True)
    assert client.open("org/429")["tensors"] == 1


def test_unavailable_is_retried(hub: Any, client: Any) -> None:
    hub.add("org/503", {"model.safetensors": single()})
    hub.fail("org/503/revision", lambda h: h.answer(503, b"") or True)
    assert client.open("org/503")["tensors"] == 1


def test_connection_dropped_mid_body_is_retried(hub: Any, client: Any) -> None:
    hub.add("org/drop", {"model.safetensors": single(pad_to=5000)})
    hub.fail("org/drop/resolve", lambda h: h.drop(promised=5024, sent=100))
    assert client.open("org/drop")["tensors"] == 1
    assert len(ranges(hub)) == 2


def test_short_body_is_retried_then_refused(hub: Any, client: Any) -> None:
    hub.add("org/short", {"model.safetensors": single(pad_to=5000)})

    def short(handler: Any) -> bool:
        handler.answer(206, bytes(100), handler.range_headers(5024))
        return True

    hub.fail("org/short/resolve", short, times=4)
    answer = client.open("org/short")
    assert answer["error"] == "HubUnreachableError"
    assert "100 of 5,024 bytes" in answer["message"]
    assert client.open("org/short")["tensors"] == 1


def test_whole_file_instead_of_range_is_cut_off(hub: Any, client: Any, loopback: Any) -> None:
    """A server without ranges sends 200 and the file: 1 TB here, of which no more than the header is taken."""
    head, _ = header({"w": ("BF16", [500_000_000_000], 10**12)}, pad_to=70_000)
    hub.add("org/200", {"model.safetensors": loopback.File(head, len(head) + 10**12)})

    def endless(handler: Any) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(head) + 10**12))
        handler.end_headers()
        handler.wfile.write(head)
        while True:
            handler.wfile.write(bytes(65536))

    hub.fail("org/200/resolve", endless, times=1000)
    assert client.open("org/200")["headers"][0]["data_bytes"] == 10**12


@pytest.mark.parametrize(
    ("name", "status", "headers", "said"),
    [
        ("other", 206, {"Content-Range": "bytes 8-71/1000"}, "bytes 8-71"),
        ("beyond", 206, {"Content-Range": "bytes 0-200000/300000"}, "bytes 0-200,000"),
        ("unsaid", 206, {}, "without saying which"),
        ("gzip", 206, {"Content-Range": "bytes 0-63/1000", "Content-Encoding": "gzip"}, "compressed"),
        ("partial", 203, {}, "203"),
    ],
)
def test_wrong_answers_to_a_range(
    hub: Any, client: Any, name: str, status: int, headers: dict[str, str], said: str
) -> None:
    hub.add(f"org/{name}", {"model.safetensors": single()})
    hub.fail(f"org/{name}/resolve", lambda h: h.answer(status, bytes(64), headers) or True)
    answer = client.open(f"org/{name}")
    assert answer["error"] == "TransferError"
    assert said in answer["message"]


def test_size_that_differs_from_the_listing(hub: Any, client: Any, loopback: Any) -> None:
    hub.add("org/grown", {"model.safetensors": single()})
    data = single()
    hub.fail(
        "org/grown/resolve",
        lambda h: h.answer(206, data, {"Content-Range": f"bytes 0-{len(data) - 1}/{len(data) + 50}"}) or True,
    )
    assert client.open("org/grown")["error"] in ("TransferError", "HubUnreachableError")


def test_range_not_satisfiable(hub: Any, client: Any) -> None:
    hub.add("org/416", {"model.safetensors": single()})
    hub.fail("org/416/resolve", lambda h: h.answer(416, b"", {"Content-Range": "bytes */4"}) or True)
    assert client.open("org/416")["error"] == "HubStatusError"


def test_moved_main_falls_back_to_the_pinned_commit(hub: Any, client: Any, loopback: Any) -> None:
    """main moves after it was pinned: the one-request answer is of another commit and is not used."""
    old = hub.add("org/moved", sharded(loopback, per_shard=3))

    def move(handler: Any) -> bool:
        hub.add("org/moved", sharded(loopback, per_shard=5))
        return False

    hub.fail("org/moved/safetensors-metadata", move)
    answer = client.open("org/moved")
    assert answer["commit"] == old
    assert answer["tensors"] == 9
    assert len(ranges(hub)) == 3


def test_failing_one_request_gives_way_to_ranges(hub: Any, client: Any, loopback: Any) -> None:
    hub.add("org/half", sharded(loopback))
    hub.fail("org/half/safetensors-metadata", lambda h: h.answer(503, b"") or True, times=2)
    answer = client.open("org/half")
    assert (answer["tensors"], answer["warnings"]) == (120, [])
    assert len(ranges(hub)) == 3


def test_shards_the_one_request_leaves_out_are_asked_for(hub: Any, client: Any, loopback: Any) -> None:
    files = sharded(loopback)
    hub.add("org/partial", files)

    def partial(handler: Any) -> bool:
        shard = "model-00001-of-00003.safetensors"
        document = {"index": {}, "headers": {shard: json.loads(files[shard].head[8:])}}
        handler.answer(200, json.dumps(document).encode())
        return True

    hub.fail("org/partial/safetensors-metadata", partial)
    answer = client.open("org/partial")
    assert (answer["tensors"], answer["warnings"]) == (120, [])
    assert len(ranges(hub)) == 3


def test_hostile_one_request_answer_is_validated(hub: Any, client: Any, loopback: Any) -> None:
    files = sharded(loopback, shards=1)
    shard = next(name for name in files if name.endswith(".safetensors"))
    files[shard].size += 10**9  # the data no longer fills the file
    hub.add("org/appended", files)
    assert client.open("org/appended", thorough=True)["error"] == "SizeMismatchError"
    assert client.open("org/appended")["error"] == "SizeMismatchError"


@pytest.mark.parametrize(
    ("repo", "options", "error", "said"),
    [
        ("org/nowhere", {}, "RepoNotFoundError", "hf auth login"),
        ("org/gated", {}, "GatedRepoError", "Accept its terms"),
        ("org/private", {}, "RepoNotFoundError", "private"),
        ("org/known", {"revision": "no-such"}, "RevisionNotFoundError", "--revision"),
        ("org/known", {"weights": "other.safetensors"}, "TargetNotFoundError", "model.safetensors"),
        ("org/bin", {}, "NoSafetensorsError", "pytorch_model.bin"),
        ("org/empty-shard", {}, "TooShortError", "0 bytes"),
        ("org/lfs", {}, "NotSafetensorsError", "Git LFS pointer"),
    ],
)
def test_refusals_are_one_line(
    hub: Any, client: Any, repo: str, options: dict[str, str], error: str, said: str
) -> None:
    hub.add("org/gated", {"model.safetensors": single()}, gated=True)
    hub.add("org/private", {"model.safetensors": single()}, private=True)
    hub.add("org/known", {"model.safetensors": single()})
    hub.add("org/bin", {"pytorch_model.bin": b"x"})
    hub.add("org/empty-shard", {"model.safetensors": b""})
    hub.add("org/lfs", {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"})
    answer = client.open(repo, **options)
    assert answer["error"] == error, answer
    assert said in answer["message"]
    assert repo in answer["message"] or "model.safetensors" in answer["message"]
    assert "\n" not in answer["message"]


def test_shard_listed_but_absent(hub: Any, client: Any, loopback: Any) -> None:
    files = sharded(loopback)
    del files["model-00002-of-00003.safetensors"]
    hub.add("org/absent", files, one_request=False)
    answer = client.open("org/absent")
    assert answer["error"] == "MissingShardError"
    assert "model-00002-of-00003" in answer["message"]


# These need an environment, hence a process, of their own.


@pytest.fixture
def fresh(loopback: Any, hub: Any, tmp_path: Path) -> Iterator[Any]:
    """A maker of clients with a given environment and one cache."""
    made = []

    def make(**env: str) -> Any:
        made.append(loopback.Client(hub.environment(tmp_path / "home", **env)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_offline_counts_from_the_cache_alone(hub: Any, loopback: Any, fresh: Any) -> None:
    commit = hub.add("org/offline", sharded(loopback))
    online = fresh().open("org/offline")
    hub.log.clear()
    offline = fresh(HF_HUB_OFFLINE="1")
    for options in ({}, {"revision": commit}):
        answer = offline.open("org/offline", **options)
        assert (answer["headers"], answer["commit"], answer["requests"]) == (online["headers"], commit, 0)
    answer = offline.open("org/never-seen")
    assert answer["error"] == "OfflineError"
    assert "HF_HUB_OFFLINE" in answer["message"]
    assert hub.log == []


def test_offline_falls_back_to_a_downloaded_snapshot(hub: Any, fresh: Any, tmp_path: Path) -> None:
    """What huggingface_hub downloaded is there: links to blobs, as its cache has them."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "home" / "hub" / "models--org--downloaded"
    (repo / "blobs").mkdir(parents=True)
    (repo / "blobs" / "b1").write_bytes(single())
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "model.safetensors").symlink_to("../../blobs/b1")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    answer = fresh(HF_HUB_OFFLINE="1").open("org/downloaded")
    assert (answer.get("kind"), answer.get("commit"), answer.get("tensors")) == ("hub", commit, 1), answer


def test_damaged_cache_is_fetched_again(hub: Any, fresh: Any, tmp_path: Path) -> None:
    commit = hub.add("org/damaged", {"model.safetensors": single()})
    client = fresh()
    first = client.open("org/damaged")
    (entry,) = (tmp_path / "home").rglob(commit)
    entry.write_bytes(entry.read_bytes()[:-4])
    hub.log.clear()
    assert client.open("org/damaged")["headers"] == first["headers"]
    assert len(ranges(hub)) == 1


def test_token_goes_to_the_hub_and_to_no_other_host(hub: Any, fresh: Any) -> None:
    hub.add("org/secret", {"model.safetensors": single()}, private=True)
    hub.redirect_files = True
    hub.token = "hf_right"
    try:
        assert fresh(HF_TOKEN="hf_right").open("org/secret")["tensors"] == 1
        own = {r.authorization for r in hub.log if r.host.startswith("127.0.0.1")}
        other = [r.authorization for r in hub.log if r.host.startswith("localhost")]
        assert own == {"Bearer hf_right"}
        assert other == [None]
        answer = fresh(HF_TOKEN="hf_wrong").open("org/secret")
        assert answer["error"] == "UnauthorizedError"
        assert "hf_wrong" not in answer["message"]
    finally:
        hub.token = None


def test_slow_server_is_given_up(hub: Any, fresh: Any) -> None:
    hub.add("org/slow", {"model.safetensors": single()})
    hub.fail("org/slow/resolve", lambda h: h.hang(1.5), times=1)
    assert fresh(HF_HUB_DOWNLOAD_TIMEOUT="1").open("org/slow")["tensors"] == 1
    hub.fail("org/slow/revision", lambda h: h.hang(1.5), times=1000)
    answer = fresh(HF_HUB_DOWNLOAD_TIMEOUT="1").open("org/slow")  # four tries
    assert answer["error"] == "HubUnreachableError"


def test_nobody_listens(fresh: Any) -> None:
    answer = fresh(HF_ENDPOINT="http://127.0.0.1:9").open("org/any")
    assert answer["error"] == "HubUnreachableError"
    assert "127.0.0.1:9" in answer["message"]


def test_a_pasted_address_is_the_repo(hub: Any, client: Any) -> None:
    first = hub.add("org/pasted", {"model.safetensors": single("a"), "config.json": b"{}"})
    hub.add("org/pasted", {"model.safetensors": single("b"), "config.json": b"{}"})
    assert client.open(f"{hub.url}/org/pasted")["headers"][0]["names"] == ["b"]
    assert client.open(f"hf://org/pasted@{first}/model.safetensors")["headers"][0]["names"] == ["a"]
    assert client.open(f"{hub.url}/org/pasted/tree/{first}")["commit"] == first
    assert "--revision" in client.open(f"hf://org/pasted@{first}", revision="main")["message"]
