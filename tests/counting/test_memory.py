"""Memory is bounded: peak resident memory of whole counts, each in a process of its own, in MB (10^6 bytes)."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from moegauge.counting.sources import release_layout

# VmHWM, not ru_maxrss: the latter also remembers the process that forked.
PEAK = """
from pathlib import Path
status = Path("/proc/self/status").read_text()
print(tensors, int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6)
"""
COUNT = """
from moegauge.counting import count
census = count({argument!r})
tensors = census.checkpoint.tensors
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


def peak_mb(code: str) -> tuple[int, float]:
    """(tensors, peak MB) printed by a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code + PEAK], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    tensors, peak = done.stdout.split()
    return int(tensors), float(peak)


@pytest.mark.slow
def test_deepseek_v3_under_300_mb(tmp_path: Path) -> None:
    release_layout.write(tmp_path, release_layout.release("deepseek-v3")["config"], 162)
    tensors, peak = peak_mb(COUNT.format(argument=str(tmp_path)))
    assert tensors == 91_991
    assert peak < 300


@pytest.mark.slow
def test_half_a_million_tensors_under_600_mb(tmp_path: Path) -> None:
    shards = 50
    per_shard, weight_map = 500_000 // shards, {}
    for shard in range(1, shards + 1):
        entries = {}
        for i in range(per_shard):
            name = f"model.layers.{shard}.mlp.experts.{i}.down_proj.weight_scale_inv"
            entries[name] = {"dtype": "BF16", "shape": [1000 + i % 7, 300], "data_offsets": [0, 0]}
        end = 0
        for entry in entries.values():
            size = entry["shape"][0] * 600
            entry["data_offsets"] = [end, end + size]
            end += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        file = f"model-{shard:05}-of-{shards:05}.safetensors"
        with (tmp_path / file).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + end)
        weight_map.update(dict.fromkeys(entries, file))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}, indent=2))
    tensors, peak = peak_mb(COUNT.format(argument=str(tmp_path)))
    assert tensors == 500_000
    assert peak < 600


def test_a_header_of_countless_values_is_bounded(tmp_path: Path) -> None:
    """100 MB of JSON whose objects would take gigabytes is refused at the price of the file itself."""
    entry = b'"%d":1,'
    text = b"{" + b"".join(entry % i for i in range(6_000_000)) + b'"x":1}'
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
    code = f"""
from moegauge.counting.errors import HeaderTooLargeError
from moegauge.counting.sources.open import open_checkpoint
try:
    open_checkpoint({str(tmp_path)!r})
except HeaderTooLargeError:
    tensors = 0
"""
    _, peak = peak_mb(code)
    assert peak < 500
