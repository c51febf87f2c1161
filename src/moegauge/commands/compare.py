"""`moegauge compare`: measured against predicted tokens/s, each model predicted from the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moegauge.commands._output import json_option, print_json, print_table, say, warn
from moegauge.commands._tables import machine_line
from moegauge.commands._threads import one_blas_thread
from moegauge.errors import UsageError
from moegauge.record import Record, load, pool

if TYPE_CHECKING:
    from moegauge.bench.judge.compare import Comparison, Summary
    from moegauge.bench.judge.two_records import SpeedRatio

_EPILOG = """Examples:

\b
  moegauge compare results/amd-epyc-zen3-2c/*.json
  moegauge compare before.json --against after.json"""


FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("compare", epilog=_EPILOG)
@click.argument("records", nargs=-1, required=True, type=FILE)
@click.option("--against", "other", type=FILE, help="Judge this record's points: same, faster, slower, undecided.")
@click.option("--fit-latencies", is_flag=True, help="GPU records with predictions: fit the model's latencies to them.")
@json_option
def command(records: tuple[Path, ...], other: Path | None, fit_latencies: bool, as_json: bool) -> None:
    """Measured against predicted tokens/s of every point of RECORDS, leaving each point's own model out.

    Records of one machine are pooled; of a point measured twice the later measurement counts."""
    one_blas_thread()
    loaded = [load(path) for path in records]
    if other is not None:
        if len(loaded) != 1:
            raise UsageError("--against compares two records, not several.", advice="Name one record before it.")
        _against(loaded[0], load(other), as_json)
        return
    from moegauge.bench.judge.compare import compare
    from moegauge.bench.judge.gpu_model import judge_model

    pooled = pool(loaded, [str(path) for path in records])
    found = compare(pooled)
    judged = judge_model(pooled, fit=fit_latencies)
    if as_json:
        document = found.to_json()
        print_json(document | {"gpu_model": judged.to_json()} if judged else document)
        return
    say(machine_line(loaded[0].machine))
    show_comparison(found)
    if judged:
        say()
        for line in judged.lines():
            say(line)


def show_comparison(found: Comparison) -> None:
    """The table, the errors and the law, for people."""
    print_table(
        ["model", "format", "batch", "context", "measured tok/s", "predicted", "error", "one-term formula"],
        [
            [
                p.case.model,
                p.case.format,
                str(p.case.batch),
                str(p.case.context),
                f"{p.case.tokens_per_s:.4g}",
                "-" if p.predicted_tokens_per_s is None else f"{p.predicted_tokens_per_s:.4g}",
                _percent(p.error),
                _percent(p.simple_error),
            ]
            for p in found.points
        ],
        2,
    )
    say()
    parts = found.by_question() if len(found.by_question()) > 1 else {}
    print_table(
        ["predicted by", "points", "median error", "worst"],
        [
            _summary("the law, leaving the model out", found.by_model),
            *(_summary(f"  {name}", law) for name, (law, _) in parts.items()),
            _summary("the law, leaving the format out", found.by_format),
            *([_summary("  one stream, no context", found.by_format_batch_one)] if parts else []),
            _summary("the law, small models to large", found.small_to_large),
            _summary("the one-term formula, leaving the model out", found.simple),
            *(_summary(f"  {name}", simple) for name, (_, simple) in parts.items()),
        ],
    )
    if found.ladder:
        _show_launch_modes(found)
    device = found.to_json()["device"]
    say()
    say(
        f"law: {device['bandwidth_gb_per_s']:.2f} GB/s ({100 * device['bandwidth_fraction']:.1f} % of the roof), "
        f"{device['floor_us']:.2f} us per kernel, {device['floor_per_layer_us']:.2f} us per layer"
    )
    if any((costs := device["format_seconds_per_mac"]).values()):
        told = ", ".join(f"{name} {1e12 * cost:.2f}" for name, cost in costs.items())
        say(f"multiply-accumulates, fitted, ps: {told}; overlap {device['overlap']:.2f}")
    if costs := device["format_seconds_per_byte"]:
        told = ", ".join(f"{name} {1e12 * cost:.1f}" for name, cost in costs.items())
        say(f"products as measured in cache; fetching, ps per byte: {told}; overlap {device['overlap']:.2f}")
    for note in found.notes:
        warn(note)


def _show_launch_modes(found: Comparison) -> None:
    from moegauge.bench.judge.launch_modes import HEADINGS, table_rows

    say()
    print_table(["launch modes", *HEADINGS[1:]], table_rows(found.ladder), 2)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f} %"


def _summary(name: str, s: Summary) -> list[str]:
    if s.median is None or s.worst is None:
        return [name, "0", "-", "-"]
    return [name, str(s.n), f"{100 * s.median:.1f} %", f"{100 * s.worst:.1f} %"]


def _against(before: Record, after: Record, as_json: bool) -> None:
    from moegauge.bench.judge.compare import SCHEMA
    from moegauge.bench.judge.two_records import against

    verdicts = against(before, after)
    if as_json:
        counts: dict[str, Any] = dict.fromkeys(("same", "faster", "slower", "undecided"), 0)
        for v in verdicts:
            counts[v.verdict] += 1
        print_json({"schema": SCHEMA, "against": {"cases": [v.to_json() for v in verdicts], "counts": counts}})
        return
    if before.machine_key != after.machine_key:
        warn(f"unlike machines ({before.machine_id}, {after.machine_id}): plain times are compared")
    print_table(
        ["point", "verdict", "speed ratio", "95 % interval", "before tok/s", "after tok/s"],
        [_verdict(v) for v in verdicts],
        2,
    )


def _verdict(v: SpeedRatio) -> list[str]:
    return [
        v.before.label,
        v.verdict,
        f"{v.ratio:.3f}",
        f"{v.low:.3f} to {v.high:.3f}",
        f"{v.before.tokens_per_s:.4g}",
        f"{v.after.tokens_per_s:.4g}",
    ]
