"""Kill `bench decode` and `count --from` at random moments, resume them, and say what was half-written, lost or other.

    .venv/bin/python scripts/kill_runs.py [--kills 60] [--only bench|folders|hub] [--seed 1]

Each command runs once unkilled, then with SIGKILL at moments drawn over the time that took. After every kill its file
must be absent or valid: a record that loads and has lost no point, a list of counts that is a beginning of the unkilled
one. After at most KILLS_A_FILE kills the run is let end, and must then equal the unkilled one: the same points, the
same bytes. Counts on the Hub (tests/counting/loopback_hub.py, in a process of its own) each begin with an empty cache,
and are repeated offline from the cache that the kills left. Prints one JSON document; exit 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moegauge import record
from moegauge.counting.sources import release_layout
from moegauge.errors import MoegaugeError

ROOT = Path(__file__).resolve().parent.parent
KILLS_A_FILE = 4
REPOS = 30
SHARDS = {"gpt-oss-20b": 3, "mixtral-8x7b": 3}
FORMATS = ("bf16", "fp8", "int8")


class Command:
    """One command that writes a file and is resumed by the same words.

    Args:
        words: its arguments, the file to be put last.
        environment: what it is run with besides this process's; `{file}` is the name of the file.
    """

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self.words, self.environment = words, environment

    def run(self, file: Path, most_s: float = float("inf"), **more: str) -> bool:
        """Run until it ends, or is killed after `most_s`; whether it ended by itself.

        Raises:
            SystemExit: it ended with an error.
        """
        environment = {key: value.format(file=file) for key, value in {**self.environment, **more}.items()}
        process = subprocess.Popen(
            [sys.executable, "-m", "moegauge", *self.words, str(file)],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, errors = process.communicate(timeout=None if most_s == float("inf") else most_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return False
        if process.returncode:
            raise SystemExit(f"{' '.join(self.words)}: exit {process.returncode}\n{errors}")
        return True

    def fault(self, file: Path, whole: Path, before: Any) -> str | None:
        """What is wrong with `file` after a kill, given what `held` said before."""
        raise NotImplementedError

    def held(self, file: Path) -> Any:
        """What a later kill may not take away."""
        raise NotImplementedError

    def differs(self, file: Path, whole: Path) -> str | None:
        """How a finished file differs from the unkilled one."""
        raise NotImplementedError


class Bench(Command):
    """`bench decode --out`: a record after every point."""

    def held(self, file: Path) -> list[str]:
        """The cases, times and all."""
        return (
            [json.dumps(case, sort_keys=True) for case in json.loads(file.read_text())["cases"]]
            if file.exists()
            else []
        )

    def fault(self, file: Path, whole: Path, before: Any) -> str | None:
        """As `Command` says."""
        if not file.exists():
            return "a record that was there is gone" if before else None
        try:
            record.load(file)
        except MoegaugeError as error:
            return f"a record that does not load: {error}"
        now = self.held(file)
        return None if now[: len(before)] == before else "a point that was stored is gone or changed"

    def differs(self, file: Path, whole: Path) -> str | None:
        """As `Command` says; times are never the same twice, points are."""
        one, other = json.loads(file.read_text()), json.loads(whole.read_text())
        if not one["complete"]:
            return "a finished record that says it is not complete"
        names = ("model", "format", "batch", "context")
        points = [sorted(tuple(str(case.get(name)) for name in names) for case in r["cases"]) for r in (one, other)]
        return None if points[0] == points[1] and len(set(points[0])) == len(points[0]) else "other points"


class Counts(Command):
    """`count --from --out`: a line after every target."""

    def held(self, file: Path) -> int:
        """Bytes of whole lines."""
        return file.read_bytes().rfind(b"\n") + 1 if file.exists() else 0

    def fault(self, file: Path, whole: Path, before: Any) -> str | None:
        """As `Command` says."""
        if self.held(file) < before:
            return "lines that were written are gone"
        if file.exists() and not _counts(whole).startswith(_counts(file)):
            return "lines that are no beginning of the unkilled ones"
        return None

    def differs(self, file: Path, whole: Path) -> str | None:
        """As `Command` says."""
        if _counts(file) != _counts(whole):
            return "other counts"
        if "HF_ENDPOINT" not in self.environment:
            return None
        again = file.with_suffix(".offline")
        self.run(again, HF_HUB_OFFLINE="1", HF_HOME=f"{file}.home")
        return None if _counts(again) == _counts(whole) else "other counts offline, from the cache"


def _counts(file: Path) -> bytes:
    """A list of counts without what depends on the cache: how many requests each took."""
    return re.sub(rb'"requests": ?\d+', b'"requests":0', file.read_bytes())


def kill(command: Command, place: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill a command so many times, over as many files as that takes."""
    place.mkdir()
    whole = place / "whole"
    start = time.monotonic()
    command.run(whole)
    seconds = time.monotonic() - start
    killed = absent = resumed = files = 0
    faults: list[str] = []
    while killed < kills:
        files += 1
        file, before = place / f"{files}", command.held(place / "none")
        for _ in range(min(KILLS_A_FILE, kills - killed)):
            if command.run(file, rng.uniform(0, seconds)):
                break
            killed += 1
            absent += not file.exists()
            faults += [
                f"file {files}, kill {killed}: {fault}" for fault in [command.fault(file, whole, before)] if fault
            ]
            before = command.held(file)
            resumed += bool(before)
        command.run(file)
        fault = command.differs(file, whole)
        faults += [f"file {files}: {fault}"] if fault else []
        left = [path.name for path in place.iterdir() if path.name.startswith(".")]
        faults += [f"file {files}: left behind {name}" for name in left]
    return {
        "kills": killed,
        "files": files,
        "unkilled_s": round(seconds, 1),
        "killed_before_the_file_was_there": absent,
        "killed_with_points_or_lines_in_it": resumed,
        "faults": faults,
    }


def checkpoint(folder: Path) -> None:
    """A model of one layer and eight experts, as large as five caches, as a folder `count --shape` can read."""
    import numpy as np
    from safetensors.numpy import save_file

    hidden, inner, experts, vocabulary = 1024, 1024, 8, 8192
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in ("model.layers.0",):
        tensors |= {f"{layer}.{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
        tensors |= {f"{layer}.self_attn.{n}_proj.weight": (hidden, hidden) for n in "qkvo"}
        tensors[f"{layer}.mlp.gate.weight"] = (experts, hidden)
        for e in range(experts):
            tensors |= {f"{layer}.mlp.experts.{e}.{n}_proj.weight": (inner, hidden) for n in ("gate", "up")}
            tensors[f"{layer}.mlp.experts.{e}.down_proj.weight"] = (hidden, inner)
    folder.mkdir()
    save_file({name: np.zeros(size, np.float32) for name, size in tensors.items()}, folder / "model.safetensors")
    widths = {"hidden_size": hidden, "intermediate_size": inner, "vocab_size": vocabulary, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    routed = {"num_local_experts": experts, "num_experts_per_tok": 2}
    (folder / "config.json").write_text(json.dumps({"model_type": "mixtral", **widths, **heads, **routed}))


def bench(place: Path) -> Command:
    """`bench decode` of that model on one thread."""
    checkpoint(place / "checkpoint")
    shape = place / "small.json"
    words = [sys.executable, "-m", "moegauge", "count", str(place / "checkpoint"), "--shape", str(shape)]
    subprocess.run(words, check=True, capture_output=True)
    points = ["--model", str(shape), "--format", ",".join(FORMATS), "--batch", "1,2", "--context", "0"]
    short = ["--time-limit", "0.01", "--min-samples", "3", "--arena-bytes", "500000000"]
    return Bench(["bench", "decode", "--device", "cpu", "--threads", "1", *points, *short, "--out"], {})


def folders(place: Path) -> Command:
    """`count --from` of a list of folders."""
    names = list(SHARDS)
    for name, shards in SHARDS.items():
        release_layout.write(place / name, release_layout.release(name)["config"], shards)
    listed = [place / f"{names[number % len(names)]}-{number}" for number in range(REPOS)]
    for number, link in enumerate(listed):
        link.symlink_to(place / names[number % len(names)])
    (place / "folders").write_text("\n".join(map(str, listed)))
    return Counts(["count", "--from", str(place / "folders"), "--jobs", "2", "--out"], {})


@contextlib.contextmanager
def hub(place: Path) -> Iterator[Command]:
    """`count --from` of repos on a loopback Hub."""
    folder = place / "served"
    names = list(SHARDS)
    for name, shards in SHARDS.items():
        release_layout.write(folder / name, release_layout.release(name)["config"], shards)
    served = {f"org/{names[number % len(names)]}-{number}": names[number % len(names)] for number in range(REPOS)}
    (place / "repos").write_text("\n".join(served))
    (place / "serve").write_text("\n".join(f"{name}={folder / kind}" for name, kind in served.items()))
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/counting/loopback_hub.py"), f"@{place / 'serve'}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        url = server.stdout.readline().strip()
        if not url:
            raise SystemExit("the Hub did not start")
        environment = {"HF_ENDPOINT": url, "HF_HOME": "{file}.home", "HF_HUB_VERBOSITY": "error"}
        yield Counts(["count", "--from", str(place / "repos"), "--jobs", "2", "--out"], environment)
    finally:
        server.stdin.close()
        server.wait(10)


def main() -> int:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=60, help="of each command")
    parser.add_argument("--only", choices=("bench", "folders", "hub"))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        place = Path(name)
        made = {
            "bench": lambda: bench(place),
            "folders": lambda: folders(place),
            "hub": lambda: stack.enter_context(hub(place)),
        }
        for kind, make in made.items():
            if arguments.only in (None, kind):
                found[kind] = kill(make(), place / f"{kind}-runs", arguments.kills, random.Random(arguments.seed))
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 1 if any(each["faults"] for each in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
