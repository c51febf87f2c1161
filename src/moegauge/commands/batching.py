"""`moegauge batching`: what a batch does to the speed of a stream, to the price, and to the published inversion."""

from __future__ import annotations

import click

from moegauge import models
from moegauge.commands._output import json_option, print_json
from moegauge.errors import UsageError
from moegauge.units import GB


@click.command("batching", epilog="Example: moegauge batching kimi-k2 --bandwidth 3000 --devices 8")
@click.argument("model")
@click.option("--calibrator", default="glm-4.7", show_default=True, help="Open model an inversion is calibrated on.")
@click.option("--context", type=int, default=0, show_default=True, help="Tokens in each stream's cache.")
@click.option("--kv-format", default="bf16", show_default=True, help="bf16, fp8 or f32.")
@click.option("--format", "weight_format", default="fp8", show_default=True, help="Weight format of both models.")
@click.option("--bandwidth", type=float, metavar="GBPS", help="Delivered GB/s of one device.")
@click.option("--devices", type=int, default=1, show_default=True, help="Devices of one replica.")
@click.option("--dollars-per-device-hour", type=float, help="Price of one device.")
@json_option
def command(
    model: str,
    calibrator: str,
    context: int,
    kv_format: str,
    weight_format: str,
    bandwidth: float | None,
    devices: int,
    dollars_per_device_hour: float | None,
    as_json: bool,
) -> None:
    """Batch by batch: bytes per step of MODEL, how much slower each stream is, by what factor an inversion that knows
    only active parameters is misled, and with a bandwidth and a price the cost of a million tokens."""
    from moegauge.estimator.batching import curve, prices

    if dollars_per_device_hour is not None and bandwidth is None:
        raise UsageError("--dollars-per-device-hour needs --bandwidth.")
    points = curve(
        models.resolve(model).cast(weight_format),
        models.resolve(calibrator).cast(weight_format),
        context=context,
        kv_format=kv_format,
        bandwidth=None if bandwidth is None else bandwidth * GB,
        devices=devices,
        dollars_per_device_hour=dollars_per_device_hour,
    )
    if as_json:
        print_json(
            {
                "schema": "moegauge.batching/1",
                "model": model,
                "calibrator": calibrator,
                "points": [p.to_json() for p in points],
                "api_prices": {name: {"input": i, "output": o} for name, (i, o) in prices().items()},
            }
        )
        return
    click.echo(f"{'batch':>6}{'GB/step':>10}{'slower':>9}{'misled':>9}{'tokens/s':>10}{'$/M tokens':>12}")
    for p in points:
        speed = "" if p.tokens_per_s is None else f"{p.tokens_per_s:.1f}"
        cost = "" if p.dollars_per_million is None else f"{p.dollars_per_million:.3f}"
        click.echo(f"{p.batch:>6}{p.bytes / GB:>10.2f}{p.slowdown:>9.2f}{p.misled:>9.2f}{speed:>10}{cost:>12}")
    if dollars_per_device_hour is not None:
        listed = ", ".join(f"{name} {out:g}" for name, (_, out) in prices().items())
        click.echo(f"API prices, $ per million output tokens: {listed}")
