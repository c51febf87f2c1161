"""`moegauge formula`: where tokens/s = bandwidth / active bytes holds, over every published reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moegauge.commands._output import json_option, print_json, print_table, say
from moegauge.commands._threads import one_blas_thread
from moegauge.errors import UsageError

MB = 1e6


@click.command("formula", epilog="Example: moegauge formula --svg formula.svg")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the random points.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Also draw the map into this new file.")
@json_option
def command(seed: int, svg: Path | None, as_json: bool) -> None:
    """Where tokens/s = bandwidth / active bytes holds: floors as a share of the step against bytes per device and layer
    for every packaged reading of one stream, the formula's error there, the published estimate on the same map, one
    model at several places, and what the published ranges become under the law."""
    if svg is not None and svg.exists():
        raise UsageError(f"{svg}: exists.", advice="Give another --svg.")
    one_blas_thread()
    from moegauge.estimator import formula

    points = formula.points()
    document: dict[str, Any] = {
        "schema": "moegauge.formula/1",
        "cases": [p.to_json() for p in points],
        "bands": formula.bands(points),
        "half": formula.halves(),
        "post": formula.post(seed),
        "stacks": formula.stacks(),
        "contradictions": formula.contradictions(),
    }
    if svg is not None:
        from moegauge import outfile
        from moegauge.bench.report.formula_chart import formula_chart

        outfile.write(svg, formula_chart(points, document["half"], document["post"]))
    if as_json:
        print_json(document)
        return
    _print(document)


def _print(document: dict[str, Any]) -> None:
    say(f"{len(document['cases'])} readings of one stream, by the share of the step that floors take")
    print_table(
        ("floors", "readings", "MB/device/layer", "judged", "formula within (half)", "(80 %)"),
        [
            (
                "{:.0%} - {:.0%}".format(*row["floor_share"]),
                str(row["n"]),
                _number(row["bytes_per_device_layer"], MB),
                str(row["judged"]),
                *(f"x{row[name]:.2f}" if row[name] else "" for name in ("median_fold", "p80_fold")),
            )
            for row in document["bands"]
        ],
    )
    say()
    say("floors are half of an MoE's step at")
    print_table(
        ("system", "devices", "MB/device/layer"),
        [
            (f"{row['system']} on {row['device']}", str(row["devices"]), _number(row["bytes_per_device_layer"], MB))
            for row in document["half"]
        ],
    )
    post = document["post"]
    say()
    say(f"the published estimate there, on {post['devices']} devices and {post['layers']:.0f} layers if closed")
    print_table(
        ("model", "tokens/s", "MB/device/layer", "floors", "80 %"),
        [
            (
                row["model"],
                f"{row['tokens_per_s']:g}",
                _number(row["bytes_per_device_layer"], MB),
                f"{row['floor_share']['median']:.0%}",
                "{:.0%} - {:.0%}".format(*row["floor_share"]["80"]),
            )
            for row in (*post["calibration"], *post["estimates"])
        ],
    )
    say()
    say("its active parameters, billions: as published in FP8, by the law at its assumptions, by the law")
    print_table(
        ("model", "published", "at its assumptions, 80 %", "law, 80 %"),
        [
            (
                row["model"],
                *(
                    "{:.0f} - {:.0f}".format(*(v / 1e9 for v in span))
                    for span in (row["published_fp8"], row["law_at_its_assumptions"]["80"], row["law"]["80"])
                ),
            )
            for row in post["estimates"]
        ],
    )
    say()
    say("one model (37.6 GB a token in FP8), by place; read as: the formula with the first row's constant")
    print_table(
        ("stack", "tokens/s", "drafted", "TB/s effective", "floors", "80 %", "read as, B active", "evidence"),
        [
            (
                f"{row['system']}, {row['devices']} x {row['device']}",
                f"{row['tokens_per_s']:g}",
                str(row["draft_tokens"]),
                f"{row['effective_bandwidth'] / 1e12:.1f}",
                *_floors(row),
                f"{row['read_as'] / 1e9:.1f}",
                row["evidence"],
            )
            for row in document["stacks"]
        ],
        note=True,
    )
    say()
    say("ratios the estimate states, and what its own speeds say")
    for row in document["contradictions"]:
        ratio = row["by_formula"] + 1e-9  # 41 / 40 is 1.03 on paper, and 1.02 in binary
        say(
            f"  {row['stated']}: the speeds give {ratio:.2f}; {row['claimed']:g} needs floors of "
            f"{row['floor_ms_needed']:.1f} ms, {row['floor_share_needed']:.0%} of {row['faster']}'s step"
        )


def _number(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.0f}"


def _floors(row: dict[str, Any]) -> tuple[str, str]:
    if row["floor_share"] is None:
        return "not known", ""
    low, high = row["floor_share_80"]
    return f"{row['floor_share']:.0%}", f"{low:.0%} - {high:.0%}"
