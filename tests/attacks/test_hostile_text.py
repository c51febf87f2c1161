"""One gate for text: no command lets an escape, a mark of direction, a newline or a formula of a stranger through.

Records, shapes, tables, checkpoints, folders and arguments are hostile here; commands and parameters are enumerated.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import made_up
import numpy as np
import pytest
from safetensors.numpy import save_file

from moegauge import cli, machine, text
from moegauge.bench.report import tables
from moegauge.commands import _peers, _tables
from moegauge.estimator.packaged import packaged
from moegauge.record import Record, from_json

# An escape that colours, one that sets the title, a C1 control, marks of direction, a line of its own, other lines.
EVIL = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202eltr\u2066\u200f\nFORGED: all is well\r\u2028FORGED\x85FORGED"
FORMULA = "=cmd|' /C calc'!A0"


def case(model: str, tokens: float, **more: Any) -> dict[str, Any]:
    ms = 1e3 / tokens
    return {
        "kind": "decode",
        "backend": EVIL,
        "model": model,
        "format": EVIL,
        "batch": 1,
        "context": 0,
        "layers": 24,
        "bytes": {"weights": 10**9, "total": 10**9},
        "distinct_experts": 4,
        "kernels_per_step": 170,
        "mad_ms": 1,
        "samples_ms": [ms] * 6,
        "median_ms": ms,
        "tokens_per_s": tokens,
        "gb_per_s": 18.2,
        "roof_fraction": 0.9,
        "roof_fraction_samples": [0.9] * 6,
        "roof_samples_gb_per_s": [20.0] * 6,
        "max_relative_error": 1e-6,
        "warnings": [EVIL],
        "rung": EVIL,
        "kv_format": EVIL,
        "routing": EVIL,
        "formula_bytes": 10**9,
        **more,
    }


def record() -> dict[str, Any]:
    return {
        "schema": "moegauge.record/1", "created": EVIL, "suite": EVIL, "argv": [EVIL],
        "machine": {"id": EVIL, "device": "cpu", "cpu": {"model": EVIL, "microarchitecture": EVIL}, "os": EVIL},
        "software": {EVIL: EVIL},
        "project": {"version": EVIL, "commit": EVIL},
        "roof": {"gb_per_s": 20, "pattern": EVIL, "patterns": {EVIL: 20.0}},
        "floors": [
            {"name": EVIL, "us_per_kernel": 1, "interval_us": [1, 2], "samples_us": [1], "lengths": [1, 2]},
        ],
        "verdicts": [{"kernel": EVIL, "model": EVIL, "format": EVIL, "launch_mode": EVIL, "passed": False}],
        "left_out": [{"stage": EVIL, "reason": "failed", "detail": EVIL, "what": EVIL}],
        "cases": [
            case(f"{EVIL}{i}", 50.0 + i, telemetry={EVIL: [1, 2], "reasons": [EVIL]}) for i in range(3)
        ]
        + [case(EVIL, 60.0, kind="kernel", kernel=EVIL), case(EVIL, 60.0, peer=EVIL, stored=EVIL, time_ratio=1.0,
                                                             time_ratio_interval=[0.9, 1.1])],
    }  # fmt: skip


def hostile_csv(name: str, **cells: str) -> str:
    rows = list(csv.DictReader(io.StringIO(packaged(name))))[:12]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows({**row, **cells} for row in rows)
    return out.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One hostile file of every kind, in a folder and under names that are hostile too."""
    folder = tmp_path_factory.mktemp("evil") / f"{EVIL.replace('/', '')[:40]}"
    folder.mkdir()
    shape = made_up.decoder().to_json()
    shape.update(name=EVIL, family=EVIL, source={EVIL: EVIL})
    contents = {
        "record": json.dumps(record()),
        "shape": json.dumps(shape),
        "readings": hostile_csv("throughput.csv", system=EVIL, model=EVIL, note=EVIL, format=EVIL),
        "fleets": hostile_csv("opus-2026-03.csv", provider=EVIL, metric=EVIL),
        "damaged": json.dumps({**record(), "cases": [{EVIL: EVIL}]}),
        "list": f"{EVIL}\n".replace("\n", "\\"),
    }
    paths = {}
    for name, content in contents.items():
        paths[name] = str(folder / f"{name}\x1b[31m\n.{'csv' if name in ('readings', 'fleets') else 'json'}")
        Path(paths[name]).write_text(content, encoding="utf-8", newline="")
    checkpoint = folder / "model"
    checkpoint.mkdir()
    save_file({f"{EVIL}.weight": np.zeros((4, 4), np.float32)}, checkpoint / "model.safetensors")
    (checkpoint / "config.json").write_text(json.dumps({"model_type": EVIL, "architectures": [EVIL]}))
    return {**paths, "checkpoint": str(checkpoint), "text": EVIL}


def leaves() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and subcommand there is."""
    context = click.Context(cli.group)
    for name in cli.COMMANDS:
        command = cli.group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from (((name, sub), command.commands[sub]) for sub in command.commands)
        else:
            yield (name,), command


# Options that keep a command from measuring, or from minutes of work on the packaged data.
HELD = {"bench": ("--device", EVIL), "validate": ("--device", EVIL), "backtest": ("--observations", EVIL)}


def calls(files: dict[str, str]) -> Iterator[list[str]]:
    """Each command with each of its parameters that takes words, given each hostile thing."""
    for words, command in leaves():
        held = HELD.get(words[0], ())
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                if parameter.is_flag or isinstance(parameter.type, click.types.IntRange | click.types.FloatRange):
                    continue
                given = [parameter.opts[0]]
            else:
                given = []
            for thing in files.values() if isinstance(parameter.type, click.Path) or not given else (EVIL,):
                yield [*words, *given, thing, *held]


# What gets far enough to print what it was given.
WHOLE = (
    ("compare", "record"), ("compare", "record", "--against", "record"), ("report", "record", "--markdown"),
    ("predict", "shape", "--bandwidth", "100"), ("predict", "gpt-oss-20b", "--record", "record"),
    ("backtest", "--observations", "readings"), ("estimate", "--observations", "fleets"),
    ("count", "checkpoint", "--allow-unclassified", "--layers"), ("count", "checkpoint"), ("batching", "shape"),
    ("bench", "decode", "--model", "shape", "--out", "record"),
    ("backtest", "--observations", "readings", "--record", "record"),
    ("count", "--from", "list", "--out", "record"), ("count", "--diff", "damaged", "record"),
)  # fmt: skip


def held(output: str) -> None:
    bad = sorted({c for c in output if not c.isprintable() and c != "\n"})
    assert not bad, f"{bad} in {output[:2000]!r}"
    assert not [line for line in output.split("\n") if line.startswith("FORGED")], output


def run(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    seen = capsys.readouterr()
    held(seen.out)
    held(seen.err)
    assert "moegauge: unexpected" not in seen.err, (argv, seen.err)
    return int(str(stop.value.code)), seen.out


def test_no_command_lets_hostile_arguments_and_files_through(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = set()
    for argv in calls(files):
        run(argv, capsys)
        seen.add(argv[0])
    assert seen >= cli.COMMANDS.keys() - {"env", "formula"}  # which take no words


@pytest.mark.parametrize("words", WHOLE, ids=" ".join)
def test_what_is_printed_of_hostile_files(
    words: tuple[str, ...], files: dict[str, str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    run([files.get(word, word) for word in words], capsys)


def test_this_machine_s_own_names(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    here = {**machine.describe("cpu"), "id": EVIL, "os": EVIL}
    here["cpu"] = {**here["cpu"], "model": EVIL, "features": [EVIL]}
    monkeypatch.setattr(machine, "describe", lambda device="cpu": here)
    run(["env"], capsys)
    run(["env", "--id"], capsys)


def test_tables_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = from_json(json.dumps(record()), "r")
    _tables.show_record(found)
    _peers.show_peers(found)
    seen = capsys.readouterr()
    held(seen.out)
    held(seen.err)


def evil_record(name: str) -> Record:
    return from_json(json.dumps({**record(), "machine": {"id": name}, "cases": [case(name, 50.0)]}), "r")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", " =", "\t=", "\r=", "\uff1d", "a;=", "a,@", '"=', "\n=", "x|="])
def test_no_cell_of_an_export_is_a_formula(start: str) -> None:
    name = start + FORMULA[1:]
    for row in csv.reader(io.StringIO(tables.record_csv(evil_record(name)))):
        for separator in (None, ";", ",", "|"):  # as a program of another locale would cut it
            for cell in itertools.chain.from_iterable([c.split(separator) if separator else [c] for c in row]):
                assert cell.strip()[:1] not in {*"=+@\uff1d"}, cell
                assert not cell.startswith("-") or cell[1:2].isdigit(), cell
    for line in tables.markdown(evil_record(name)).splitlines():
        for cell in line.replace("\\|", "|").strip("| ").split("|"):
            assert cell.strip()[:1] not in {*"=+@\uff1d"}, line


def test_markdown_of_a_name_is_text() -> None:
    shown = text.markdown("![x](http://a/b) <img> `c` a|b \\ \n# d\x1b")
    assert shown == "!\\[x\\](http://a/b) &lt;img> \\`c\\` a\\|b \\\\ # d\\\\x1b"


def test_a_table_says_what_it_holds() -> None:
    assert text.csv_text([["a", 1, -2.5, None, "gpt-oss-20b", "x, y"]]) == 'a,1,-2.5,,gpt-oss-20b,"x, y"\n'
    assert text.printable("gpt-oss-20b µ é 模型") == "gpt-oss-20b µ é 模型"
