"""`count --from --engine`: a list counted on a Dask cluster whose worker is killed half-way, and by one who interrupts.

Skipped where distributed (the `dask` extra) is not installed.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from moegauge.commands.count import Counting
from moegauge.counting import many
from moegauge.counting.engine import check_available
from moegauge.errors import MissingExtraError

REPOS = 120
# The cluster as an administrator would have it: a scheduler and two workers, each a process with a nanny.
CLUSTER = """
import os, sys
from distributed import Client, LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster:
        with Client(cluster) as client:
            pids = list(client.run(os.getpid).values())
        print(cluster.scheduler_address, *pids, flush=True)
        sys.stdin.read()
"""


def width(i: int) -> int:
    return 8 + i


@pytest.fixture(scope="module")
def environment(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Repos whose counts all differ, and every answer of the Hub a little late."""
    pytest.importorskip("distributed", reason="distributed is not installed (pip install 'moegauge[dask]')")
    for i in range(REPOS):
        tensors = {"model.embed_tokens.weight": np.zeros((width(i), 4), np.float32)}
        hub.add(f"org/m{i}", {"model.safetensors": save(tensors), "config.json": b'{"model_type": "llama"}'})

    def late(handler: Any) -> bool:
        time.sleep(0.02)
        return False

    hub.fail("", late, times=10**9)
    home = tmp_path_factory.mktemp("home")
    found: dict[str, str] = hub.environment(home, HOME=str(home), PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    return found


@pytest.fixture
def cluster(environment: dict[str, str], tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    script = tmp_path / "cluster.py"
    script.write_text(CLUSTER)
    process = subprocess.Popen(
        [sys.executable, str(script)], env=environment, text=True, cwd=tmp_path,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        address, *pids = process.stdout.readline().split()
        yield address, [int(pid) for pid in pids]
    finally:
        process.communicate("", timeout=60)


def start(out: Path, address: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    listed = out.with_name("list.txt")
    listed.write_text("".join(f"org/m{i}\n" for i in range(REPOS)) + "org/absent\n")
    words = ["count", "--from", str(listed), "--out", str(out), "--engine", address]
    return subprocess.Popen(
        [sys.executable, "-m", "moegauge", *words], env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def held(out: Path) -> list[bytes]:
    return [line for line in out.read_bytes().split(b"\n") if line] if out.exists() else []


def until(out: Path, lines: int, run: subprocess.Popen[str]) -> None:
    while len(held(out)) < lines:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.01)


def check(out: Path) -> None:
    """None lost, none twice, none wrong, in the order of the list."""
    lines = [json.loads(line) for line in held(out)]
    assert [line["target"] for line in lines] == [f"org/m{i}" for i in range(REPOS)] + ["org/absent"]
    for i, line in enumerate(lines[:REPOS]):
        assert line["error"] is None, line["message"]
        assert line["count"]["parameters"]["total"] == 4 * width(i)
    assert lines[-1]["error"] == "RepoNotFoundError"


def test_a_worker_killed_half_way_costs_nothing(
    cluster: tuple[str, list[int]], environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "counts.jsonl"
    address, pids = cluster
    run = start(out, address, environment)
    until(out, REPOS // 3, run)
    os.kill(pids[0], signal.SIGKILL)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 1, err  # org/absent
    assert f"{REPOS + 1:,} targets, {REPOS + 1:,} counted now" in err
    check(out)


def test_interrupted_and_resumed_with_the_same_file(
    cluster: tuple[str, list[int]], environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "counts.jsonl"
    run = start(out, cluster[0], environment)
    until(out, 10, run)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "is whole so far, the same command goes on from there" in err
    assert 10 <= len(held(out)) < REPOS
    run = start(out, cluster[0], environment)
    assert run.communicate(timeout=120)[1].count("counted now in") == 1
    check(out)


def test_no_address_is_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    run = start(tmp_path / "counts.jsonl", "nonsense://x", environment)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 2
    assert err.startswith("moegauge: --engine 'nonsense://x': no address of a Dask scheduler.")
    assert err.count("\n") == 1


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moegauge.counting.engine.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'moegauge\[dask\]'"):
        check_available()


def test_a_worker_s_death_on_every_try_is_a_line() -> None:
    class Dying:
        jobs = 1

        def submit(self, target: many.Target) -> Any:
            from concurrent.futures import Future

            future: Future[str | None] = Future()
            future.set_exception(RuntimeError("KilledWorker\x1b"))
            return future

        def close(self) -> None:
            pass

    (text,) = many._in_order([many.Target("a/b")], Dying(), [])
    line = json.loads(text)
    assert (line["target"], line["error"], line["count"]) == ("a/b", "RuntimeError", None)
    assert line["message"] == "no worker counted it: KilledWorker\\x1b"


def test_how_targets_are_counted_travels() -> None:
    how = Counting(
        weights="w", top_k=2, thorough=True, deadline_s=3.0, strict=True, allow_unclassified=False, per_layer=True,
        rules=(),
    )  # fmt: skip
    assert pickle.loads(pickle.dumps(how)) == how
