"""Every option that names a file to write, where nothing can be written: one line, exit 1, nothing lost.

The writers are found in the click tree: an option of a path that is neither here nor among those that are read is a
failure, so a new one must be added. Nothing is mounted: a folder of mode 0500 (root gives up the capability to ignore
that), a limit on the size of files (a write past it fails as one on a full disk does), a home that is not there.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import ANY

import click
import numpy as np
import pytest
from safetensors.numpy import save_file

from moegauge.cli import group

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and capabilities are Linux's")

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "results/amd-epyc-zen3-2c/2026-11-22-quick-2f83e444e6.json"
READ = {"--observations", "--record", "--continue", "--against", "--predicted", "--rules", "records"}
EXPORTS = ("--export-csv", "--export-markdown")
COUNT = ["count", "--from", "{list}"]

# (command, option) -> arguments that make it write, the file to be put last; none where another is tried in its stead.
WRITERS: dict[tuple[str, str], list[str]] = {
    **{("bench roof", o): ["bench", "roof", "--device", "cpu", "--threads", "1", o] for o in ("--out", *EXPORTS)},
    **{(f"bench {c}", o): [] for c in ("decode", "kernels", "peers") for o in ("--out", *EXPORTS)},
    ("validate", "--out"): [],
    ("count", "--shape"): ["count", "{folder}", "--shape"],
    ("count", "--out"): [*COUNT, "--out"],
    ("count", "--parquet"): [*COUNT, "--out", "{beside}", "--parquet"],
    ("report", "--out"): ["report", str(RECORD), "--out"],
    ("estimate", "--html"): [],
    ("formula", "--svg"): ["formula", "--svg"],
    ("models", "--layout"): ["models", "gpt-oss-20b", "--layout"],
}
# Minutes of measuring or fitting come before these write; what they share with one that is tried.
SAME = {
    "bench decode": "bench roof",  # moegauge.commands._run and moegauge.recordfile
    "bench kernels": "bench roof",
    "bench peers": "bench roof",
    "validate": "bench roof",
    "estimate": "report",  # moegauge.outfile.write
}
TRIED = {key: arguments for key, arguments in WRITERS.items() if arguments}


def path_options(command: click.Command, name: str = "") -> Iterator[tuple[str, str]]:
    """(command, option) of everything that takes a path."""
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            yield name, parameter.opts[0]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from path_options(found, f"{name} {child}".strip())


def test_every_option_that_names_a_file_to_write_is_here() -> None:
    assert {key for key in path_options(group) if key[1] not in READ} == WRITERS.keys()
    assert SAME.keys() == {command for command, _ in WRITERS.keys() - TRIED.keys()}
    assert set(SAME.values()) <= {command for command, _ in TRIED}


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the arguments name."""
    place = tmp_path_factory.mktemp("inputs")
    folder = place / "checkpoint"
    folder.mkdir()
    hidden, inner, experts = 32, 16, 4
    tensors = {
        "model.embed_tokens.weight": (64, hidden),
        "lm_head.weight": (64, hidden),
        "model.norm.weight": (hidden,),
    }
    layer = "model.layers.0"
    tensors |= {f"{layer}.{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
    tensors |= {f"{layer}.self_attn.{n}_proj.weight": (hidden, hidden) for n in "qkvo"}
    tensors[f"{layer}.mlp.gate.weight"] = (experts, hidden)
    for e in range(experts):
        tensors |= {f"{layer}.mlp.experts.{e}.{n}_proj.weight": (inner, hidden) for n in ("gate", "up")}
        tensors[f"{layer}.mlp.experts.{e}.down_proj.weight"] = (hidden, inner)
    save_file({name: np.zeros(size, np.float32) for name, size in tensors.items()}, folder / "model.safetensors")
    config = {
        "model_type": "mixtral", "hidden_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "num_local_experts": experts, "num_experts_per_tok": 2, "intermediate_size": inner,
        "vocab_size": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    listed = place / "list.txt"
    listed.write_text(f"{folder}\n")
    return {"folder": str(folder), "list": str(listed), "beside": str(place / "beside.jsonl")}


def keep_to_permissions() -> None:
    """In the child: root gives up CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER (prctl PR_CAPBSET_DROP)."""
    if os.geteuid() == 0:
        for capability in (1, 2, 3):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def full_disk(size: int = 1) -> None:
    """In the child: no file may grow past so many bytes; the write fails (EFBIG) where a full disk's would (ENOSPC)."""
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def run(
    arguments: list[str], fields: dict[str, str], place: Path, prepare: Callable[[], None] | None = None
) -> tuple[int, str]:
    filled = [a.format(**fields) if "{" in a else a for a in arguments]
    done = subprocess.run(
        [sys.executable, "-B", "-m", "moegauge", *filled, str(place)], check=False, capture_output=True, text=True,
        timeout=900, preexec_fn=prepare, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return done.returncode, done.stderr


def one_line(code: int, errors: str) -> None:
    """Exit 1 and a last line that says what is wrong; no traceback and no 'unexpected'."""
    assert code == 1, errors
    assert errors.splitlines()[-1].startswith("moegauge: "), errors
    assert "Traceback" not in errors
    assert "unexpected" not in errors


def everything(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


EACH = pytest.mark.parametrize("key", TRIED, ids=" ".join)


@EACH
def test_a_folder_that_cannot_be_written(key: tuple[str, str], fields: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "read-only"
    place.mkdir()
    (place / "other").write_text("kept")
    place.chmod(0o500)
    try:
        one_line(*run(TRIED[key], fields, place / "result", keep_to_permissions))
    finally:
        place.chmod(0o700)
    assert everything(place) == {"other": b"kept"}


@EACH
def test_a_disk_that_is_full(key: tuple[str, str], fields: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "other").write_text("kept")
    one_line(*run(TRIED[key], {**fields, "beside": str(tmp_path / "beside.jsonl")}, tmp_path / "result", full_disk))
    left = everything(tmp_path)
    left.pop("beside.jsonl", None)
    if key == ("count", "--out"):  # appended to line by line; the next test resumes it
        left.pop("result")
    assert left == {"other": b"kept"}
    assert not [p for p in tmp_path.rglob("*") if p.is_dir()]


@EACH
def test_a_home_that_is_not_there(
    key: tuple[str, str], fields: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/proc/none")
    for name in ("HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    code, errors = run(TRIED[key], {**fields, "beside": str(tmp_path / "beside.jsonl")}, tmp_path / "result")
    assert code == 0, errors
    assert (tmp_path / "result").exists()


def test_a_list_cut_by_a_full_disk_goes_on_where_there_is_room(fields: dict[str, str], tmp_path: Path) -> None:
    listed, whole = tmp_path / "list", tmp_path / "whole.jsonl"
    listed.write_text(f"{fields['folder']}\n{fields['folder']}/model.safetensors\n")
    arguments = ["count", "--from", str(listed), "--out"]
    assert run(arguments, fields, whole) == (0, ANY)
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2
    for size in (1, len(lines[0]) - 1, len(lines[0]), len(lines[0]) + 7, len(lines[0] + lines[1]) - 1):
        out = tmp_path / f"{size}.jsonl"
        one_line(*run(arguments, fields, out, functools.partial(full_disk, size)))
        assert whole.read_bytes().startswith(out.read_bytes())
        assert run(arguments, fields, out) == (0, ANY)
        assert out.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl"} == {"list"}
