"""`moegauge bench --suite gpu --predict`: predicted times of a suite's points on GPUs, without a device."""

from __future__ import annotations

from typing import Any

from moegauge import machine, outfile
from moegauge.commands import _run
from moegauge.commands._output import print_json, print_table, say, warn
from moegauge.errors import UsageError


def predict_suite(as_json: bool, options: dict[str, Any]) -> None:
    """Predict every point of a suite of stages, narrowed by the lists given, and print or write the document."""
    import msgspec

    from moegauge.bench.plan import suites
    from moegauge.bench.plan.points import Point
    from moegauge.bench.queueing import prediction
    from moegauge.bench.queueing.latencies import DEVICES
    from moegauge.record import Project

    if options["export_csv"] or options["export_markdown"]:
        raise UsageError("--export-csv and --export-markdown are of records.", advice="Use --out with --predict.")
    suite = suites.get_suite(options["suite"] or "gpu")
    if not suite.stages:
        raise UsageError(f"suite '{options['suite']}' is no suite of a GPU.", advice="Use --suite gpu --predict.")
    if options["out"] is not None:
        outfile.check_free(options["out"], "--out")
    asked = suites.parse_list(options["device"], "--device")
    devices = DEVICES if asked == ("auto",) else tuple(name.upper() for name in asked)
    if unknown := [name for name in devices if name not in DEVICES]:
        raise UsageError(
            f"--device {unknown[0]}: no latencies of it are known.", advice=f"With --predict: {', '.join(DEVICES)}."
        )
    models = suites.parse_list(options["models"], "--model") if options["models"] else None
    formats = suites.check_formats(suites.parse_list(options["formats"], "--format")) if options["formats"] else None
    batches = suites.parse_counts(options["batches"], "--batch", 1, 64) if options["batches"] else None
    contexts = suites.parse_counts(options["contexts"], "--context", 0, 131072) if options["contexts"] else None

    def keep(point: Point) -> bool:
        lists = ((models, point.model), (formats, point.format), (batches, point.batch), (contexts, point.context))
        return all(some is None or one in some for some, one in lists)

    tell = _run.tell()
    document = prediction.predict_suite(
        options["suite"] or "gpu", suite.stages, Project(**machine.project()), devices=devices, keep=keep,
        progress=tell.progress,
    )  # fmt: skip
    tell.progress("")
    data = msgspec.to_builtins(document)
    if options["out"] is not None:
        outfile.write(options["out"], msgspec.json.format(msgspec.json.encode(data), indent=1) + b"\n")
    if as_json:
        print_json(data)
        return
    heads, rows = prediction.table_rows(document)
    print_table(heads, rows, 3)
    say("Predicted by a model, not measured: nominal latencies, pessimistic ones in brackets; % of the read roof.")
    for one in document.left_out:
        warn(f"not predicted: {one.device}, {one.stage}: {one.point}: {one.reason}")
    if options["out"] is not None:
        _run.say_where(options["out"])
