"""`moegauge predict`: tokens/s of a model on a device, with its terms and an interval."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from moegauge import models
from moegauge.commands._output import json_option, print_json, say
from moegauge.commands._threads import one_blas_thread
from moegauge.errors import UsageError

if TYPE_CHECKING:
    from moegauge.estimator.speculation import Drafted, Speculation


@click.command(
    "predict", epilog="Example: moegauge predict deepseek-v3 --device 'NVIDIA H200 SXM' --parallel tp=8,ep=8"
)
@click.argument("model", required=False)
@click.option("--record", type=click.Path(dir_okay=False, path_type=Path), help="Constants fitted to this record.")
@click.option("--bandwidth", type=float, metavar="GBPS", help="Delivered GB/s of one device.")
@click.option("--floor-us", type=float, default=0.0, show_default=True, help="Microseconds per kernel boundary.")
@click.option("--device", help="A device of the packaged hardware table.")
@click.option(
    "--stack", default="", help="With --device: the program that serves, as readings name it: SGLang, vLLM, ..."
)
@click.option("--format", "weight_format", default="native", show_default=True, help="Weight format.")
@click.option("--batch", type=int, default=1, show_default=True, help="Streams decoded together.")
@click.option("--context", type=int, default=0, show_default=True, help="Tokens in each stream's cache.")
@click.option("--kv-format", default="bf16", show_default=True, help="bf16, fp8 or f32.")
@click.option("--devices", type=int, metavar="N", help="Tensor-parallel devices: --parallel tp=N.")
@click.option(
    "--parallel", "spread", metavar="tp=T[,ep=E][,pp=P]", help="Tensor, expert, pipeline parallel; tp x pp devices."
)
@click.option("--draft", type=int, metavar="TOKENS", help="Tokens drafted by an MTP or EAGLE layer before each step.")
@click.option(
    "--acceptance", type=float, metavar="RATE", help="With --draft: share of drafted tokens accepted, 0 to 1."
)
@click.option("--judge", is_flag=True, help="Instead: the law against published readings kept apart from its fit.")
@json_option
def command(
    model: str | None,
    record: Path | None,
    bandwidth: float | None,
    floor_us: float,
    device: str | None,
    stack: str,
    weight_format: str,
    batch: int,
    context: int,
    kv_format: str,
    devices: int | None,
    spread: str | None,
    draft: int | None,
    acceptance: float | None,
    judge: bool,
    as_json: bool,
) -> None:
    """Predict decode tokens/s of MODEL (a name, a ModelShape JSON, a checkpoint folder or a Hub repo) from a measured
    record, a bandwidth, or a datasheet device."""
    one_blas_thread()
    from moegauge.estimator import predict
    from moegauge.estimator.parallel import Parallel, fits
    from moegauge.hardware import device as device_by_name

    if judge:
        _judge(as_json)
        return
    if model is None:
        raise UsageError("no model given.", advice="moegauge models lists those that ship.")
    if sum(source is not None for source in (record, bandwidth, device)) != 1:
        raise UsageError("give exactly one of --record, --bandwidth and --device.")
    if devices is not None and spread is not None:
        raise UsageError(
            "give --devices or --parallel, not both.", advice=f"--devices {devices} is --parallel tp={devices}."
        )
    if (draft is None) != (acceptance is None):
        raise UsageError("--draft and --acceptance go together.", advice="Example: --draft 3 --acceptance 0.7")
    parallel = Parallel.parse(spread) if spread is not None else Parallel(1 if devices is None else devices).checked()
    shape = models.resolve(model).cast(weight_format)
    options: dict[str, Any] = {
        "batch": batch,
        "context": context,
        "kv_format": kv_format,
        "draft": predict.Draft(draft or 0, acceptance or 0.0),
    }
    where = None
    if record is not None:
        if parallel.world != 1:
            raise UsageError("several devices need --device or --bandwidth: a record is of one device.")
        forecast = predict.by_record(shape, record, **options)
    elif bandwidth is not None:
        forecast = predict.by_hand(shape, bandwidth_gb_per_s=bandwidth, floor_us=floor_us, parallel=parallel, **options)
    else:
        where = device_by_name(device or "")
        forecast = predict.by_device(shape, where, stack=stack, parallel=parallel, **options)
    room = fits(shape, where, parallel, kv_format)
    if as_json:
        print_json({"model": shape.name, **forecast.to_json(), "fits": room.to_json()})
        return
    low, high = forecast.interval
    unless = ", if it fitted" if room.fit is False else ""
    say(f"{shape.name}: {forecast.tokens_per_s:.1f} tokens/s a stream{unless} (80 %: {low:.1f} to {high:.1f})")
    if forecast.streams > 1:
        say(f"all {forecast.streams} streams: {forecast.tokens_per_s * forecast.streams:.1f} tokens/s")
    if draft:
        drafter = "its own MTP layer" if shape.mtp_parameters else "a layer trained for it: its release holds none"
        say(f"a step yields {forecast.draft.yields:.2f} tokens of a stream; {draft} drafted by {drafter}")
    read = forecast.traffic.total_bytes + forecast.draft_bytes
    say(f"one step reads {read / 1e9:.3f} GB in {forecast.traffic.kernels} kernels")
    for name, value in forecast.seconds.items():
        if name != "draft" or value:
            say(f"  {name:<14}{value * 1e3:10.3f} ms")
    say(room.sentence(parallel.world))
    say(f"from {forecast.source}")


def _judge(as_json: bool) -> None:
    """Errors of the law on models it was not fitted to, predicted from the other models of their group, by system."""
    from moegauge.estimator import speculation
    from moegauge.estimator.closed.backtest import kept_apart_trials, quantile

    trials = [t for part in kept_apart_trials().values() for t in part if t.forward]
    by_system: dict[str, list[float]] = {}
    for trial in trials:
        assert trial.forward is not None
        error = trial.forward.tokens_per_s / trial.forward.measured - 1
        by_system.setdefault(trial.reading.system, []).append(error)
    rows: list[dict[str, Any]] = [
        {
            "system": name,
            "n": len(errors),
            "median_abs_error": median(abs(e) for e in errors),
            "worst_error": max(errors, key=abs),
        }
        for name, errors in sorted(by_system.items())
    ]
    everything = [abs(e) for errors in by_system.values() for e in errors]
    folds = [t.forward.fold for t in trials if t.forward]
    drafted = [_speed_up(row, known) for row, known in speculation.judge()]
    document = {
        "schema": "moegauge.predict-judge/1",
        "n": len(everything),
        "models": len({t.model for t in trials}),
        "median_abs_error": median(everything),
        "median_fold": quantile(folds, 0.5),
        "p80_fold": quantile(folds, 0.8),
        "systems": rows,
        "drafted": drafted,
    }
    if as_json:
        print_json(document)
        return
    say(
        f"on {document['n']} readings of {document['models']} models kept apart from the fit: median error "
        f"{document['median_abs_error']:.1%}, within x{document['median_fold']:.3f} in half and "
        f"x{document['p80_fold']:.3f} in 80 % of cases"
    )
    for row in rows:
        say(
            f"  {row['system']:<44}{row['n']:>3}  median {row['median_abs_error']:6.1%}"
            f"  worst {row['worst_error']:+7.1%}"
        )
    say("speed-up of drafted tokens, the cost of a draft fitted without the model")
    for one in drafted:
        low, high = one["interval_80"]
        say(
            f"  {one['model']:<28}{one['system']:<28}{one['tokens']:>2} drafted  measured x{one['measured']:.2f}"
            f"  predicted x{one['predicted']:.2f} (80 %: {low:.2f} to {high:.2f})"
            f"{'  kept apart' if one['kept_apart'] else ''}"
        )


def _speed_up(row: Drafted, known: Speculation) -> dict[str, Any]:
    from moegauge.estimator.predict import Z80

    predicted, deviation = known.predict(row)
    spread = math.exp(Z80 * deviation)
    return {
        "model": row.model,
        "system": row.system,
        "tokens": row.tokens,
        "tokens_per_step": row.yields,
        "measured": row.speed_up,
        "predicted": predicted,
        "interval_80": [predicted / spread, predicted * spread],
        "kept_apart": row.kept,
        "source": row.source,
    }
