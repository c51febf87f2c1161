"""`moegauge batching`: what a batch does to the speed of a stream, to the price, and to the published inversion."""

from __future__ import annotations

from dataclasses import replace

import click

from moegauge import models
from moegauge.commands._output import json_option, print_json, say
from moegauge.commands._threads import one_blas_thread
from moegauge.errors import UsageError
from moegauge.units import GB

DEVICE, DEVICES = "NVIDIA H200 SXM", 8  # where neither a device nor a bandwidth is given
KV_CACHE = {
    "copied": "each device with its copy of what key/value heads cannot split (--kv-cache copied)",
    "split": "each cached token on one device (--kv-cache split)",
}


@click.command(
    "batching", epilog="Example: moegauge batching kimi-k2 --device 'NVIDIA B200' --devices 8 --context 8000"
)
@click.argument("model")
@click.option("--calibrator", default="glm-4.7", show_default=True, help="Open model an inversion is calibrated on.")
@click.option("--context", type=int, default=0, show_default=True, help="Tokens in each stream's cache.")
@click.option("--kv-format", default="bf16", show_default=True, help="bf16, fp8 or f32.")
@click.option("--format", "weight_format", default="fp8", show_default=True, help="Weight format of both models.")
@click.option("--device", help=f"A device of the packaged hardware table; {DEVICES} x {DEVICE} if nothing is given.")
@click.option("--stack", default="", help="The program that serves, as readings name it: SGLang, vLLM, ...")
@click.option("--bandwidth", type=float, metavar="GBPS", help="Instead: delivered GB/s of one device.")
@click.option("--devices", type=int, help="Devices of one replica.  [default: 1, with nothing else given 8]")
@click.option(
    "--kv-cache",
    type=click.Choice(list(KV_CACHE)),
    default="copied",
    show_default=True,
    help="Caches beyond what heads can split: copied (tensor parallel) or split (data-parallel attention).",
)
@click.option("--dollars-per-device-hour", type=float, help="Price of one device.")
@json_option
def command(
    model: str,
    calibrator: str,
    context: int,
    kv_format: str,
    weight_format: str,
    device: str | None,
    stack: str,
    bandwidth: float | None,
    devices: int | None,
    kv_cache: str,
    dollars_per_device_hour: float | None,
    as_json: bool,
) -> None:
    """Batch by batch, up to the largest whose caches fit beside the weights: bytes per step of MODEL, tokens/s of a
    stream by the additive law, how much slower that is, by what factor an inversion that knows only active parameters
    is misled, and with a price the cost of a million tokens."""
    one_blas_thread()
    from moegauge.estimator import batching
    from moegauge.hardware import device as device_by_name

    if device is not None and bandwidth is not None:
        raise UsageError("give --device or --bandwidth, not both.")
    if dollars_per_device_hour is not None and device is None and bandwidth is None:
        raise UsageError("--dollars-per-device-hour needs --device or --bandwidth.")
    if bandwidth is not None:
        place = batching.at_bandwidth(bandwidth * GB, devices or 1)
    else:
        place = batching.on_device(device_by_name(device or DEVICE), devices or (1 if device else DEVICES), stack)
    place = replace(place, kv_cache=kv_cache)
    shape = models.resolve(model).cast(weight_format)
    points = batching.curve(
        shape,
        models.resolve(calibrator).cast(weight_format),
        place,
        context=context,
        kv_format=kv_format,
        dollars_per_device_hour=dollars_per_device_hour,
    )
    most = batching.largest_batch(shape, place, context=context, kv_format=kv_format)
    if as_json:
        print_json(
            {
                "schema": "moegauge.batching/1",
                "model": model,
                "calibrator": calibrator,
                "place": place.name,
                "kv_cache": kv_cache,
                "largest_batch": most,
                "points": [p.to_json() for p in points],
                "api_prices": {name: {"input": i, "output": o} for name, (i, o) in batching.prices().items()},
            }
        )
        return
    say(f"on {place.name}{', ' + stack if stack else ''}")
    say(f"{'batch':>6}{'GB/step':>10}{'tokens/s':>10}{'slower':>9}{'misled':>9}{'$/M tokens':>12}{'KV':>7}")
    for p in points:
        cost = "" if p.dollars_per_million is None else f"{p.dollars_per_million:.3f}"
        cache = "" if not p.kv_share else f"{p.kv_share:.0%}"
        line = f"{p.batch:>6}{p.bytes / GB:>10.2f}{p.tokens_per_s:>10.1f}{p.slowdown:>9.2f}{p.misled:>9.2f}"
        say(f"{line}{cost:>12}{cache:>7}".rstrip())
    if most is not None:
        say(f"{most} caches of {context} tokens fit beside the weights, {KV_CACHE[kv_cache]}")
    if dollars_per_device_hour is not None:
        listed = ", ".join(f"{name} {out:g}" for name, (_, out) in batching.prices().items())
        say(f"API prices, $ per million output tokens: {listed}")
