"""`models --verify` and catalogue names in `count`, through the real huggingface_hub against a loopback Hub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moegauge.counting.sources import release_layout


@pytest.fixture(scope="module")
def moegauge(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs the command line against the loopback Hub, which holds two releases, one of them not as released."""
    for name, repo, changed in (
        ("gpt-oss-20b", "openai/gpt-oss-20b", {}),
        ("mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1", {"vocab_size": 32_064}),
    ):
        config = {**release_layout.release(name)["config"], **changed}
        folder = tmp_path_factory.mktemp("repo") / name
        release_layout.write(folder, config, shards=2)
        hub.add_folder(repo, folder)
    home = tmp_path_factory.mktemp("home")

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        code = f"from moegauge.cli import main; main({list(argv)!r})"
        return subprocess.run(
            [sys.executable, "-c", code],
            env=hub.environment(home),
            cwd=home,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_an_entry_that_agrees(moegauge: Any) -> None:
    done = moegauge("models", "--verify", "gpt-oss-20b")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gpt-oss-20b: agrees with openai/gpt-oss-20b at ")
    assert "1 recounted: 1 agree" in done.stderr


def test_differences_are_printed_and_a_failure_stops_nothing(moegauge: Any) -> None:
    done = moegauge("models", "--verify", "dbrx", "mixtral-8x7b", "gpt-oss-20b")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("dbrx: not counted: ")
    assert "databricks/dbrx-instruct" in lines[0]
    # 64 further rows of 4,096 in embedding and head.
    assert "mixtral-8x7b: total: 46,702,792,704 in the catalogue, 46,703,316,992 on the Hub" in lines
    assert "mixtral-8x7b: routed" not in done.stdout
    assert lines[-1].startswith("gpt-oss-20b: agrees")
    assert "3 recounted: 1 agree, 1 differ, 1 could not be counted" in done.stderr


def test_as_json(moegauge: Any) -> None:
    done = moegauge("models", "--verify", "mixtral-8x7b", "dbrx", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert (document["verified"], document["differing"], document["failed"]) == (2, 1, 1)
    mixtral, dbrx = document["models"]
    assert {d["field"] for d in mixtral["differences"]} == {
        *("total", "dense", "active", "active_without_embedding", "stored_elements", "bytes_per_token.native"),
    }
    assert not mixtral["agrees"]
    assert len(mixtral["commit"]) == 40
    assert dbrx["error"]
    assert dbrx["commit"] is None


def test_count_takes_a_name_of_the_catalogue(moegauge: Any, tmp_path: Path) -> None:
    done = moegauge("count", "gpt-oss-20b", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"]["name"] == "openai/gpt-oss-20b"
    assert "gpt-oss-20b: counting openai/gpt-oss-20b" in done.stderr
