"""`moegauge validate`: count, roof, decode, predict, compare and report on this machine, with one command."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moegauge import machine, models, outfile
from moegauge.commands import _run
from moegauge.commands._output import json_option, print_json, say, warn
from moegauge.commands._tables import machine_line, roof_line, show_record
from moegauge.commands.doctor import diagnose
from moegauge.errors import DeviceError, NumericsError
from moegauge.record import pool
from moegauge.units import human_bytes

if TYPE_CHECKING:
    from moegauge.bench.run.session import Session
    from moegauge.estimator.predict import Forecast

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
@json_option
def command(quick: bool, device: str, threads: int | None, out: Path | None, as_json: bool) -> None:
    """Count, measure, predict, compare and report, here and now, within three minutes.

    The headers of gpt-oss-20b are laid out as released and counted; the read roof and decode steps of several models
    are measured; every model is predicted from the others; the page says how far off that was."""
    from moegauge.bench.judge.compare import compare
    from moegauge.bench.plan.validation import count_release, miscount
    from moegauge.bench.report.page import page
    from moegauge.commands.compare import show_comparison

    start = time.monotonic()
    device = machine.resolve_device(device)
    here = machine.describe(device)
    folder = out or Path("report") / f"{here['id']}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    say = _Teller(silent=as_json)

    say.head("count", "the headers of a released model, without its weights")
    counted = count_release()
    for line in counted.lines():
        say(line)
    say.head("measure", machine_line(here))
    session = _session(quick, device, threads, folder / "record.json")
    health = diagnose(session.backend, device, short=True)
    for one in health.findings:
        if one.level != "ok":
            say(f"{one.level}: {one.name} {'' if one.value is None else one.value}: {one.advice}")
    again = [*_run.argv(), *([] if "--out" in _run.argv() else ["--out", str(folder)])]
    with _run.resumable(session, again):
        record = session.measure()
    if not record.cases:
        raise session.failures[0].error if session.failures else DeviceError("nothing could be measured.")
    say(roof_line(record))
    if not as_json:
        show_record(record, head=False)
    for failure in session.failures:
        warn(f"{failure.point.label}: {failure.error}")
    if session.unmeasured:
        names = ", ".join(point.label for point in session.unmeasured)
        warn(f"left out for lack of time: {names}; run moegauge bench decode for them")
    say.head("predict", "models that were not measured, from this record")
    forecasts = _predict(folder / "record.json", {case.model for case in record.cases})
    for name, forecast in forecasts.items():
        low, high = forecast.interval
        size = human_bytes(forecast.traffic.total_bytes)
        say(f"{name:<16} {forecast.tokens_per_s:8.3g} tokens/s (80 %: {low:.3g} to {high:.3g}), {size} a step")
    say.head("compare", "each model predicted from the others")
    found = compare(pool([record], ["record.json"]))
    if not as_json:
        show_comparison(found)
    outfile.write(folder / "report.html", page([record], ["record.json"]))
    say.head("report", f"after {time.monotonic() - start:.0f} s")
    say(f"record  {folder / 'record.json'}")
    say(f"report  {folder / 'report.html'}")
    if as_json:
        print_json(
            {
                "schema": "moegauge.validate/1",
                "count": counted.to_json(),
                "doctor": health.to_json(),
                "roof": {"gb_per_s": record.roof.gb_per_s if record.roof else None},
                "predict": {name: forecast.to_json() for name, forecast in forecasts.items()},
                "compare": found.to_json(),
                "record": str(folder / "record.json"),
                "report": str(folder / "report.html"),
                "seconds": round(time.monotonic() - start, 1),
            }
        )
    wrong = [*miscount(counted), *(f.error for f in session.failures if isinstance(f.error, NumericsError))]
    if wrong:
        raise wrong[0]


class _Teller:
    """Prints lines and headings for people; nothing under --json."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent

    def __call__(self, line: str) -> None:
        if not self._silent:
            say(line)

    def head(self, step: str, text: str) -> None:
        self("")
        self(f"== {step}: {text}")


def _session(quick: bool, device: str, threads: int | None, record: Path) -> Session:
    from moegauge.bench.plan import validation
    from moegauge.bench.run.session import Options, Session

    return Session(
        Options(
            kind="decode",
            device=device,
            threads=threads,
            out=record,
            points=validation.QUICK if quick else validation.FULL,
            time_limit=validation.QUICK_LIMIT_S if quick else validation.FULL_LIMIT_S,
            budget_s=validation.QUICK_BUDGET_S if quick else validation.FULL_BUDGET_S,
            min_samples=5,
        ),
        _run.argv(),
        _run.tell(),
    )


def _predict(record: Path, measured: set[str]) -> dict[str, Forecast]:
    from moegauge.estimator.predict import by_record

    return {name: by_record(models.load(name), record) for name in PREDICTED if name not in measured}
