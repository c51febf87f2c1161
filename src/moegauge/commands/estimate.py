"""`moegauge estimate`: closed models from published tokens/s."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from moegauge.commands._output import json_option, print_json, print_table, say
from moegauge.commands._threads import one_blas_thread
from moegauge.errors import UsageError
from moegauge.units import human_bytes, human_count


@click.command("estimate", epilog="Example: moegauge estimate --preset opus-2026-03 --assume speculation=1")
@click.option("--preset", help="opus-2026-03: the published estimate of March 2026.")
@click.option("--observations", type=click.Path(dir_okay=False, path_type=Path), help="CSV of served speeds.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the random points.")
@click.option("--assume", multiple=True, metavar="NAME=VALUE", help="Hold an assumption at a value; may be repeated.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Also write one self-contained page.")
@json_option
def command(
    preset: str | None,
    observations: Path | None,
    seed: int,
    assume: tuple[str, ...],
    html: Path | None,
    as_json: bool,
) -> None:
    """Estimate active and total parameters of closed models from the speeds they and open models are served at."""
    one_blas_thread()
    from moegauge.estimator.closed.assumptions import parse
    from moegauge.estimator.closed.estimate import estimate

    if (preset is None) == (observations is None):
        raise UsageError("give exactly one of --preset and --observations.")
    source = ["--preset", preset] if preset is not None else ["--observations", str(observations)]
    again = [*source, "--seed", str(seed), *(word for text in assume for word in ("--assume", text))]
    document = {
        **estimate(preset=preset, path=observations, seed=seed, fixed=parse(assume)),
        "command": shlex.join(["moegauge", "estimate", *again]),
    }
    if html is not None:
        _write_page(document, html)
    if as_json:
        print_json(document)
        return
    _print(document)


def _write_page(document: dict[str, Any], target: Path) -> None:
    if target.exists() and b'content="moegauge ' not in target.read_bytes()[:2000]:
        raise UsageError(f"{target}: exists and is no page of ours.", advice="Give another --html.")
    from moegauge import outfile
    from moegauge.bench.report.estimate_page import page
    from moegauge.estimator.closed.backtest import run

    outfile.write(target, page(document, run()))


def _span(values: list[float], unit: float, digits: int) -> str:
    return f"{values[0] / unit:.{digits}f} - {values[1] / unit:.{digits}f}"


def _print(document: dict[str, Any]) -> None:
    trusted = document["backtest"]
    say(trusted["sentence"])
    served = trusted["served"]
    if served["n"]:
        say(
            f"On {served['n']} served open models of this file it is within x{served['worst_fold']:.2f}; "
            "a provider hides more than a bench does, and the intervals below say so."
        )
    if document["why"]:
        say(f"not identifiable: {document['why']}")
    for row in document["skipped_rows"]:
        say(f"line {row['line']} not used: {row['reason']}")
    _print_observations(document["observations"])
    if document["published"]:
        _print_published(document["published"])
    _print_measured(document["measured"])
    say(f"seed {document['measured']['seed']}; {document['command']}")


def _print_published(published: dict[str, Any]) -> None:
    low, high = published["bandwidth"]
    say()
    say(f"Published formula, effective bandwidth {human_bytes(low)}/s to {human_bytes(high)}/s")
    print_table(
        ("calibration", "tokens/s", "bytes/token", "bandwidth, bytes/s"),
        [
            (row["model"], f"{row['tokens_per_s']:g}", f"{row['bytes_per_token']:,.0f}", f"{row['bandwidth']:,.0f}")
            for row in published["calibration"]
        ],
    )
    say()
    say("active parameters, billions")
    print_table(
        ("model", "tokens/s", "GB/token", "FP8", "BF16", "FP8+FP4"),
        [
            (
                row["model"],
                f"{row['tokens_per_s']:g}",
                _span(row["bytes_per_token"], 1e9, 1),
                *(_span(row["active"][name], 1e9, 1) for name in ("fp8", "bf16", "fp8_fp4")),
            )
            for row in published["models"]
        ],
    )
    names = list(published["models"][0]["total"]) if published["models"] else []
    say()
    say("total parameters at FP8, trillions, with the sparsity of")
    print_table(
        ("model", *names),
        [(row["model"], *(_span(row["total"][name], 1e12, 2) for name in names)) for row in published["models"]],
    )
    for variant in published.get("variants", []):
        say(f"variant: {variant['name']}: {variant['note']}")
    for item in published["inputs_not_derived"]:
        say(f"assumed: {item}")


def _print_observations(rows: list[dict[str, Any]]) -> None:
    say()
    say("observations, of one stream")
    sources = list(dict.fromkeys(row["source"] or "no source given" for row in rows))
    print_table(
        ("model", "provider", "date", "speed", "tokens/s", "source"),
        [
            (
                row["model"] + (f" ({row['shape']}, calibrates)" if row["shape"] else ""),
                row["provider"],
                row["date"],
                f"{row['metric']}, {row['tier']}",
                f"{row['tokens_per_s']:g}",
                f"[{sources.index(row['source'] or 'no source given') + 1}]",
            )
            for row in rows
        ],
        4,
    )
    for i, source in enumerate(sources, 1):
        say(f"[{i}] {source}")


def _print_measured(measured: dict[str, Any]) -> None:
    from moegauge.estimator.closed.assumptions import held

    models = measured["models"]
    if not models:
        return
    say()
    say(f"Ours, left open: {', '.join(measured['assumptions'])}")
    say(f"held: {', '.join(held(measured['fixed'])) or 'nothing'}")
    print_table(
        ("model", "active", "50 %", "80 %", "95 %", "total", "80 %"),
        [
            (
                row["model"],
                human_count(row["active"]["median"]),
                *(_span(row["active"][p], 1e9, 0) + " B" for p in ("50", "80", "95")),
                human_count(row["total"]["median"]),
                _span(row["total"]["80"], 1e12, 1) + " T",
            )
            for row in models
        ],
    )
    for row in models:
        if row["hardly_identifiable"]:
            low, high = row["active"]["80"]
            say(
                f"{row['model']}: floors take {row['floor_share']['median']:.0%} of its step, so its size "
                f"is hardly identifiable: the 80 % interval spans x{high / low:.1f}"
            )
    rate = models[0]["cost"]["dollars_per_device_hour"]
    say()
    say(f"a million output tokens at {rate:.2f} $ per device-hour, prompts and idle devices left out")
    print_table(
        ("model", "cost, $", "80 %", "price, $", "margin, 80 %"),
        [_cost(row["model"], row["cost"]) for row in models],
    )
    shares = [(name, share) for name, share in models[0]["variance"].items() if share >= 0.01]
    say("what leaves it open: " + ", ".join(f"{name} {share:.0%}" for name, share in shares))


def _cost(model: str, cost: dict[str, Any]) -> tuple[str, ...]:
    dollars = cost["dollars_per_million"]
    price, margin = "no sourced price", ""
    if cost["price"]:
        price, margin = f"{cost['price']:g}", "{:.0%} - {:.0%}".format(*cost["margin_80"])
    return model, f"{dollars['median']:.1f}", _span(dollars["80"], 1, 1), price, margin
