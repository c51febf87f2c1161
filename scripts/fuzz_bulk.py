"""Fuzz bulk counting: result files cut at any byte and resumed, and decoded answers of a Hub that lacks or lies.

    python scripts/fuzz_bulk.py [SECONDS [SEED]]

Prints how many runs and answers there were, and how many lost, repeated or miscounted something: none should.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from moegauge.counting import many

ROOT = Path(__file__).resolve().parent.parent
CODES = ("", "RepoNotFound", "RevisionNotFound", "GatedRepo", "EntryNotFound", "Whatever")
STATUSES = (400, 401, 403, 404, 405, 406, 410, 418, 429, 451, 500, 501, 502, 503)
PLACES = ("/login", "http://127.0.0.1:9/", "safetensors-metadata", "", "ftp://x/", "http://[::1", "//")


def number(target: str) -> int:
    return int(target.rpartition("m")[2])


def count(target: str, _revision: str | None) -> dict[str, Any]:
    if target.endswith("7"):
        raise ZeroDivisionError("x\n")
    return {"schema": "moegauge.count/1", "parameters": {"total": number(target)}, "pad": "é\u2028"}


def whole(file: Path) -> set[str]:
    """Targets whose lines are whole in a file."""
    found = set()
    for line in file.read_bytes().split(b"\n") if file.exists() else ():
        try:
            found.add(json.loads(line)["target"])
        except ValueError:
            continue
    return found


def cut_and_resumed(rng: random.Random) -> bool:
    """Shards into one file, stopped and cut anywhere, then a list in another order: whether all is as it must be."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.jsonl"
        files = (out, out.with_name("out.jsonl.part"))
        targets = [many.Target(f"org/m{i}") for i in range(rng.randrange(1, 40))]
        shards = rng.choice([1, 2, 3])
        for part in (targets[i::shards] for i in range(shards)):
            run = many.run(part, out, count, jobs=rng.choice([1, 3]))
            for _ in range(rng.randrange(1, len(part) + 2)):
                next(run, None)
            run.close()  # type: ignore[attr-defined]  # it is a generator
            for file in files:
                if file.exists() and rng.random() < 0.6:
                    raw = file.read_bytes()
                    cut = rng.choice([raw[: rng.randrange(len(raw) + 1)], raw.rstrip(b"\n"), raw + b"\0" * 9, raw])
                    file.write_bytes(cut)
        held = set().union(*map(whole, files))
        wanted = rng.sample(targets, rng.randrange(1, len(targets) + 1))
        list(many.run(wanted, out, count, jobs=2))
        lines = [json.loads(line) for line in out.read_text().split("\n") if line]
        names = [line["target"] for line in lines]
        order = [target.name for target in wanted]
        right = all(line["count"]["parameters"]["total"] == number(line["target"]) for line in lines if line["count"])
        ordered = [name for name in names if name in set(order)] == order
        return right and ordered and len(names) == len(set(names)) and held <= set(names) and not files[1].exists()


def repo(rng: random.Random) -> tuple[dict[str, bytes], dict[str, Any], int]:
    """Files of a sharded checkpoint, what the one-request endpoint says of it, and its parameters."""
    shards, placed, parameters = {}, {}, 0
    for s in range(rng.choice([2, 3])):
        file, tensors = f"model-{s + 1:05d}.safetensors", {}
        for k in range(rng.randrange(1, 12)):
            name = f"model.layers.{s}.mlp.w{k}.weight"
            tensors[name] = np.zeros((rng.randrange(1, 9), rng.randrange(1, 9)), np.float32)
            placed[name], parameters = file, parameters + tensors[name].size
        shards[file] = save(tensors)
    index = {"metadata": {"total_size": 4 * parameters}}
    headers = {f: json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]]) for f, raw in shards.items()}
    files = {"model.safetensors.index.json": json.dumps({**index, "weight_map": placed}).encode()}
    return (
        {**shards, **files, "config.json": b'{"model_type":"llama"}'},
        {"index": index, "headers": headers},
        parameters,
    )


def answer(rng: random.Random, decoded: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
    """(status, body, headers) of an answer that lacks or lies."""
    kind = rng.choice(["drop", "drop and say so", "shard", "total", "status", "body", "redirect"])
    if kind == "status":
        return rng.choice(STATUSES), b"<html>", {"X-Error-Code": rng.choice(CODES)}
    if kind == "redirect":
        return rng.choice([301, 302, 303, 307, 308]), b"", {"Location": rng.choice(PLACES)}
    if kind == "shard":
        decoded["headers"].pop(rng.choice(list(decoded["headers"])))
    elif kind == "total":
        decoded["index"]["metadata"]["total_size"] = rng.choice([0, -1, 1, "x", None, 10**30, [1]])
    elif kind != "body":
        for header in decoded["headers"].values():
            for name in [name for name in header if rng.random() < 0.3]:
                begin, end = header.pop(name)["data_offsets"]
                if kind == "drop and say so":
                    decoded["index"]["metadata"]["total_size"] -= end - begin
            if rng.random() < 0.5:
                header["__metadata__"] = {"pad": "y" * rng.randrange(600)}
    body = json.dumps(decoded).encode()
    if kind == "body":
        broken = (b"", b"{}", b"null", b"[]", b"<html>", b'{"headers":{}}', b"\xff" * 99, b"{" * 100_000, body + b"}")
        body = rng.choice([*broken, body[: len(body) // 2]])
    return 200, body, {}


def main(seconds: float, seed: int) -> int:
    rng = random.Random(seed)
    runs = wrong = 0
    end = time.monotonic() + seconds / 2
    while time.monotonic() < end:
        runs, wrong = runs + 1, wrong + (not cut_and_resumed(rng))
    print(f"{runs:,} files cut and resumed: {wrong} lost, repeated, misordered or miscounted")

    spec = importlib.util.spec_from_file_location("loopback_hub", ROOT / "tests" / "counting" / "loopback_hub.py")
    assert spec is not None
    assert spec.loader is not None
    loopback = sys.modules["loopback_hub"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loopback)
    answers = miscounted = refused = 0
    with tempfile.TemporaryDirectory() as home:
        hub = loopback.Hub()
        client = loopback.Client(hub.environment(Path(home), PATH=os.environ["PATH"], HF_HUB_DOWNLOAD_TIMEOUT="2"))
        end = time.monotonic() + seconds / 2
        while time.monotonic() < end:
            files, decoded, parameters = repo(rng)
            hub.add(f"org/m{answers}", files)
            status, body, headers = answer(rng, decoded)

            def act(handler: Any, status: int = status, body: bytes = body, headers: Any = headers) -> bool:
                handler.answer(status, body, headers)
                return True

            hub.fail(f"org/m{answers}/safetensors-metadata", act, times=1000)
            found = client.open(f"org/m{answers}", whole=True)
            answers, refused = answers + 1, refused + ("error" in found)
            miscounted += "error" not in found and found["parameters"]["total"] != parameters
        client.close()
        hub.close()
    print(f"{answers:,} answers that lack or lie: {miscounted} miscounted, {refused} good repos refused")
    return int(bool(wrong or miscounted or refused))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 120, int(sys.argv[2]) if len(sys.argv) > 2 else 1))
