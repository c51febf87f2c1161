"""`moegauge validate`: count, roof, decode, predict, compare and report on this machine, with one command."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from moegauge import machine, models
from moegauge.commands._measure import Options, Session, resolve_device
from moegauge.commands._output import warn
from moegauge.commands._tables import machine_line, roof_line, show_record
from moegauge.errors import DeviceError, MoegaugeError, NumericsError
from moegauge.record import pool
from moegauge.recordfile import write_text
from moegauge.units import human_bytes, human_count

# Models worth predicting from the record though they were not measured.
PREDICTED = ("glm-4.7", "kimi-k2", "qwen3-235b-a22b")


@click.command("validate", epilog="Example: moegauge validate --quick --out report")
@click.option("--quick", is_flag=True, help="Fewer points, shorter: about a minute.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto (cuda if there).")
@click.option("--threads", type=click.IntRange(1, 4096), help="CPU threads; default: every core.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for record.json and report.html.  [default: report/<machine>-<time>]",
)
def command(quick: bool, device: str, threads: int | None, out: Path | None) -> None:
    """Count, measure, predict, compare and report, here and now, within three minutes.

    The headers of gpt-oss-20b are laid out as released and counted; the read roof and decode steps of several models
    are measured; every model is predicted from the others; the page says how far off that was."""
    start = time.monotonic()
    device = resolve_device(device)
    here = machine.describe(device)
    folder = out or Path("report") / f"{here['id']}-{datetime.now(UTC):%Y%m%dT%H%M%S}"

    _head("count", "the headers of a released model, without its weights")
    counted = _count()
    _head("measure", machine_line(here))
    session = _session(quick, device, threads, folder / "record.json")
    with session:
        record = session.measure()
    click.echo(roof_line(record))
    if not record.cases:
        raise session.failures[0].error if session.failures else DeviceError("nothing could be measured.")
    show_record(record, head=False)
    for failure in session.failures:
        warn(f"{failure.point.label}: {failure.error}")
    if session.left_out:
        names = ", ".join(point.label for point in session.left_out)
        warn(f"left out for lack of time: {names}; run moegauge bench decode for them")

    _head("predict", "models that were not measured, from this record")
    _predict(folder / "record.json", {case.model for case in record.cases})
    _head("compare", "each model predicted from the others")
    from moegauge.bench.compare import compare
    from moegauge.bench.report import page
    from moegauge.commands.compare import show_comparison

    show_comparison(compare(pool([record], ["record.json"])))
    _head("report", f"after {time.monotonic() - start:.0f} s")
    write_text(folder / "report.html", page([record], ["record.json"]))
    click.echo(f"record  {folder / 'record.json'}")
    click.echo(f"report  {folder / 'report.html'}")
    wrong = [failure for failure in session.failures if isinstance(failure.error, NumericsError)]
    if wrong:
        raise wrong[0].error
    if counted is not None:
        raise counted


def _head(step: str, text: str) -> None:
    click.echo(f"\n== {step}: {text}")


def _count() -> MoegaugeError | None:
    """Count the laid-out release and hold it against the shape that ships; returns what is wrong, if anything."""
    from moegauge.bench.validate import COUNTED, count_release

    c = count_release()
    click.echo(
        f"{c.repo}: {human_count(c.decoder)} parameters ({c.decoder:,}), {human_count(c.active)} active, "
        f"{human_bytes(c.shape.bytes_per_token)} per token"
    )
    claimed = human_bytes(c.claimed_bytes)
    click.echo(f"{c.tensors} tensors in {c.files} files that claim {claimed}, counted in {c.seconds:.2f} s")
    shipped = models.load(COUNTED)
    if (c.shape.total_parameters, c.shape.bytes_per_token) == (shipped.total_parameters, shipped.bytes_per_token):
        return None
    return MoegaugeError(
        f"{COUNTED}: counted {c.shape.total_parameters:,} parameters, its shape says {shipped.total_parameters:,}.",
        advice="Report this as a bug.",
    )


def _session(quick: bool, device: str, threads: int | None, record: Path) -> Session:
    from moegauge.bench import validate

    return Session(
        Options(
            kind="decode",
            device=device,
            threads=threads,
            out=record,
            points=validate.QUICK if quick else validate.FULL,
            time_limit=validate.QUICK_LIMIT_S if quick else validate.FULL_LIMIT_S,
            budget_s=validate.QUICK_BUDGET_S if quick else validate.FULL_BUDGET_S,
            min_samples=5,
            arena_bytes=validate.ARENA_BYTES,
            resume=[*sys.argv[1:], *([] if "--out" in sys.argv else ["--out", str(record.parent)])],
        )
    )


def _predict(record: Path, measured: set[str]) -> None:
    from moegauge.estimator import predict

    for name in PREDICTED:
        if name in measured:
            continue
        forecast = predict.by_record(models.load(name), record)
        low, high = forecast.interval
        click.echo(
            f"{name:<16} {forecast.tokens_per_s:8.3g} tokens/s (80 %: {low:.3g} to {high:.3g}), "
            f"{human_bytes(forecast.traffic.total_bytes)} a step"
        )
