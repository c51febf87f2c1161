"""Hostile caches: unreadable, unwritable, damaged or another's; never fatal, never answering for another repo."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moegauge.counting.sources import cache
from moegauge.counting.sources.cache import RepoCache

ENDPOINT = "https://huggingface.co"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def single(name: str = "w") -> bytes:
    text = json.dumps({name: {"dtype": "I32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: Any) -> Path:
    """HF_ASSETS_CACHE of this process."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


# Names that once shared an entry, or may on a file system that folds case.
REPOS = ["a/b", "a--b", "a-/-b", "A/B", "a%2Fb", "a.b", "x" * 96, "x" * 97, "x" * 300, "x" * 299 + "y", "a", "a-b/c"]
LONG = "r" * 400
REVISIONS = ["main", "Main", "refs/pr/1", "refs%2Fpr%2F1", f"{LONG}a", f"{LONG}b", "", " main", "m\u00e4in", "../main"]


def test_no_two_repos_servers_or_revisions_share_an_entry(place: Path) -> None:
    keys = [
        (repo, server) for repo in REPOS for server in (ENDPOINT, "http://huggingface.co", "https://huggingface.co:8")
    ]
    for number, (repo, server) in enumerate(keys):
        RepoCache(repo, server).save(COMMIT, {"n": b"%d" % number})
        for turn, revision in enumerate(REVISIONS):
            RepoCache(repo, server).remember(revision, f"{number:020}{turn:020}")
    for number, (repo, server) in enumerate(keys):
        assert RepoCache(repo, server).load(COMMIT) == {"n": b"%d" % number}
        for turn, revision in enumerate(REVISIONS):
            assert RepoCache(repo, server).commit_of(revision) == f"{number:020}{turn:020}"
    assert all(path.resolve().is_relative_to(place) for path in place.rglob("*"))


def test_entry_under_anothers_name_is_not_believed(place: Path) -> None:
    """As on a file system that takes `A` for `a`, or after a copy."""
    mine, other = RepoCache("org/a", ENDPOINT), RepoCache("org/A", ENDPOINT)
    mine.save(COMMIT, {"n": b"1"})
    mine.remember("main", COMMIT)
    other.folder.parent.mkdir(parents=True, exist_ok=True)
    other.folder.symlink_to(mine.folder)
    assert mine.load(COMMIT) == {"n": b"1"}
    assert other.load(COMMIT) == {}
    assert other.commit_of("main") is None
    (mine.folder / "f").write_bytes((mine.folder / COMMIT).read_bytes())
    assert mine.load("f") == {}


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 40)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(cache.CACHE_LIMIT_BYTES + 1)


@pytest.mark.parametrize("make", [empty, noise, fifo, folder, zeros, loop, sparse])
@pytest.mark.parametrize("entry", [COMMIT, "ref-main"])
def test_entry_that_is_none(place: Path, make: Callable[[Path], None], entry: str) -> None:
    here = RepoCache("org/a", ENDPOINT)
    here.folder.mkdir(parents=True)
    make(here.folder / entry)
    assert here.load(COMMIT) == {}
    assert here.commit_of("main") is None
    here.save(COMMIT, {"n": b"1"})
    here.remember("main", COMMIT)
    assert here.load(COMMIT) == ({} if make is folder and entry == COMMIT else {"n": b"1"})
    assert not list(here.folder.glob(".*"))


# HF_HOME as containers have it. The client is another process, which may not be root's where tests are.


def no_folder(home: Path) -> None:
    home.write_text("a file where the folder should be")


def dangling(home: Path) -> None:
    home.symlink_to("nowhere/at/all")


def full(home: Path) -> None:
    home.symlink_to("/dev/full")


def in_proc(home: Path) -> None:
    home.symlink_to("/proc/self")


def long(home: Path) -> None:
    home.symlink_to("n" * 250)


def token_folder(home: Path) -> None:
    """What is read for a token is no file: as bad as one nobody may read, for root too."""
    (home / "token").mkdir(parents=True)


def token_noise(home: Path) -> None:
    home.mkdir()
    (home / "token").write_bytes(b"\xff\xfe\x00")


@pytest.fixture
def client_of(loopback: Any, hub: Any) -> Iterator[Callable[..., Any]]:
    made = []

    def make(home: Path, **env: str) -> Any:
        made.append(loopback.Client(hub.environment(home, **env)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("make", [no_folder, dangling, full, in_proc, long, token_folder, token_noise])
def test_home_that_cannot_be_used_is_not_needed(
    hub: Any, client_of: Callable[..., Any], tmp_path: Path, make: Callable[[Path], None]
) -> None:
    hub.add("org/any", {"model.safetensors": single()})
    make(tmp_path / "home")
    client = client_of(tmp_path / "home")
    for _ in range(2):
        assert client.open("org/any").get("tensors") == 1


def test_offline_answer_is_of_the_repo_that_was_asked_for(
    hub: Any, client_of: Callable[..., Any], tmp_path: Path
) -> None:
    hub.add("a/b", {"model.safetensors": single("one")})
    online = client_of(tmp_path)
    assert online.open("a/b")["tensors"] == 1
    assert online.open("a/b", revision="main")["tensors"] == 1
    offline = client_of(tmp_path, HF_HUB_OFFLINE="1")
    assert offline.open("a/b")["headers"][0]["names"] == ["one"]
    for name, options in (("a--b", {}), ("A/B", {}), ("a/b", {"revision": "Main"})):
        assert offline.open(name, **options)["error"] == "OfflineError"
