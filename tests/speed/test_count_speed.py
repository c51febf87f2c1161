"""`moegauge count` beside the tools people use for headers today, on the same checkpoints, in one run.

    make bench        (or: pytest tests/speed/test_count_speed.py --benchmark-only --benchmark-group-by=group)

Checkpoints are laid out as released, sparse: DeepSeek-V3 (91,991 tensors, 162 shards) and Kimi-K2-Thinking (208,215
tensors, 62 shards). Ours validates, reconciles and classifies; huggingface_hub parses only; transformers builds the
model on the meta device from config.json alone. Remote runs talk to a Hub on this machine, in a process of its own.
Nothing here asserts a time.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

RELEASES = {"deepseek-v3": (162, 91_991), "kimi-k2-thinking": (62, 208_215)}
ROUNDS = 7
HUB = Path(__file__).parent.parent / "counting" / "loopback_hub.py"


@pytest.fixture(scope="module", params=RELEASES)
def checkpoint(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(name, folder) of one release."""
    from moegauge.counting.sources import release_layout

    folder = tmp_path_factory.mktemp(request.param)
    release_layout.write(folder, release_layout.release(request.param)["config"], RELEASES[request.param][0])
    return request.param, folder


@pytest.fixture(scope="module")
def hub(checkpoint: tuple[str, Path]) -> Iterator[str]:
    """Address of a Hub that serves `org/<name>`."""
    name, folder = checkpoint
    server = subprocess.Popen(
        [sys.executable, str(HUB), f"org/{name}={folder}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    yield server.stdout.readline().strip()
    server.stdin.close()
    server.wait(10)
    server.stdout.close()


def measure(benchmark: Any, group: str, action: Callable[[], Any], beside: Callable[[], Any] | None = None) -> Any:
    """One warm-up, then `ROUNDS` timed runs; the last result. With `beside`, that runs before each round, and
    `extra_info["times_faster"]` is the median of the paired ratios: what a busy machine does to one it does to both."""
    benchmark.group = group
    others: list[float] = []

    def other() -> None:
        if beside is not None:
            start = time.perf_counter()
            beside()
            others.append(time.perf_counter() - start)

    result = benchmark.pedantic(action, setup=other, rounds=ROUNDS, warmup_rounds=1)
    if others:
        ours = benchmark.stats.stats.data
        ratios = [theirs / mine for theirs, mine in zip(others[-len(ours) :], ours, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        benchmark.extra_info["times_faster"] = round(middle, 2)
        spread = f"quartiles {low:.2f} to {high:.2f} of {len(ratios)} pairs"
        sys.__stderr__.write(f"\n{benchmark.name}: {middle:.2f} times faster, {spread}\n")
    return result


def test_local_moegauge_count(benchmark: Any, checkpoint: tuple[str, Path]) -> None:
    from huggingface_hub import get_local_safetensors_metadata

    from moegauge.counting import count

    name, folder = checkpoint
    census = measure(
        benchmark, f"local {name}", lambda: count(str(folder)), lambda: get_local_safetensors_metadata(folder)
    )
    assert census.checkpoint.tensors == RELEASES[name][1]


def test_local_moegauge_headers_only(benchmark: Any, checkpoint: tuple[str, Path]) -> None:
    """Validated and reconciled, not classified: the like of what huggingface_hub does."""
    from huggingface_hub import get_local_safetensors_metadata

    from moegauge.counting.sources.open import open_checkpoint

    name, folder = checkpoint
    opened = measure(
        benchmark, f"local {name}", lambda: open_checkpoint(str(folder)), lambda: get_local_safetensors_metadata(folder)
    )
    assert opened.tensors == RELEASES[name][1]


def test_local_huggingface_hub(benchmark: Any, checkpoint: tuple[str, Path]) -> None:
    from huggingface_hub import get_local_safetensors_metadata

    name, folder = checkpoint
    metadata = measure(benchmark, f"local {name}", lambda: get_local_safetensors_metadata(folder))
    assert len(metadata.weight_map) == RELEASES[name][1]


def test_local_transformers_on_meta(benchmark: Any, checkpoint: tuple[str, Path]) -> None:
    torch = pytest.importorskip("torch", reason="transformers on meta needs torch")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    name, folder = checkpoint
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except ValueError as error:
        pytest.skip(f"transformers does not know this model: {str(error)[:80]}")

    def build() -> int:
        with torch.device("meta"):
            return int(transformers.AutoModelForCausalLM.from_config(config).num_parameters())

    benchmark.group = f"local {name}"
    assert benchmark.pedantic(build, rounds=1) > 0


def test_hf_mem() -> None:
    pytest.skip("hf-mem reads huggingface.co only: it takes neither a folder nor HF_ENDPOINT")


@pytest.fixture
def remote_hub(checkpoint: tuple[str, Path], hub: str, monkeypatch: Any, tmp_path: Path) -> Callable[[], Any]:
    """huggingface_hub on the same repo: it keeps the index in its cache and asks for every header anew."""
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    template = hub + "/{repo_id}/resolve/{revision}/{filename}"  # made from HF_ENDPOINT at import; an argument is not
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    api = huggingface_hub.HfApi(endpoint=hub)
    return lambda: api.get_safetensors_metadata(f"org/{checkpoint[0]}")


@pytest.mark.parametrize("thorough", [False, True], ids=["one-request", "ranges"])
def test_remote_moegauge_count(
    benchmark: Any,
    checkpoint: tuple[str, Path],
    hub: str,
    remote_hub: Callable[[], Any],
    thorough: bool,
    monkeypatch: Any,
    tmp_path: Path,
) -> None:
    """A first count, all of it, against what huggingface_hub does with the headers alone."""
    from huggingface_hub import constants

    from moegauge.counting import count

    name, _ = checkpoint
    monkeypatch.setattr(constants, "ENDPOINT", hub)
    runs = iter(range(1000))

    def fresh() -> Any:
        monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / str(next(runs))))
        return count(f"org/{name}", thorough=thorough).checkpoint

    opened = measure(benchmark, f"remote {name}", fresh, remote_hub)
    assert opened.tensors == RELEASES[name][1]
    benchmark.extra_info.update(
        requests=opened.requests, wire_bytes=opened.wire_bytes, header_bytes=opened.header_bytes
    )


def test_remote_moegauge_cached(
    benchmark: Any, checkpoint: tuple[str, Path], hub: str, monkeypatch: Any, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    from moegauge.counting.sources.open import open_checkpoint

    name, _ = checkpoint
    monkeypatch.setattr(constants, "ENDPOINT", hub)
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    opened = measure(benchmark, f"remote {name}", lambda: open_checkpoint(f"org/{name}"))
    benchmark.extra_info.update(requests=opened.requests, wire_bytes=opened.wire_bytes)


def test_remote_huggingface_hub(benchmark: Any, checkpoint: tuple[str, Path], remote_hub: Callable[[], Any]) -> None:
    name, _ = checkpoint
    metadata = measure(benchmark, f"remote {name}", remote_hub)
    assert len(metadata.weight_map) == RELEASES[name][1]
