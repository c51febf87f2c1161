"""The chart of docs/formula.md: share of floors against bytes per device and layer, as one SVG file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from moegauge.bench.report.svg import Chart, Scale
from moegauge.estimator.formula import MapPoint

MB = 1e6
GROUPS = (("one device, dense", 0, "f0"), ("one device, MoE", 2, "f2"), ("several devices", 1, "f1"))
POST = (("the post's calibration", 3, "f3"), ("the post's estimates", 7, "f5"))


def group(point: MapPoint) -> int:
    """Which of `GROUPS`."""
    return 2 if point.reading.devices > 1 else int(point.reading.moe)


def formula_chart(points: Sequence[MapPoint], halves: Iterable[Mapping[str, Any]], post: Mapping[str, Any]) -> str:
    """A self-contained SVG document.

    Args:
        points: every reading; halves, post: as `estimator.formula` makes them.
    """
    sizes = [p.bytes_per_device_layer / MB for p in points]
    sizes += [row["bytes_per_device_layer"] / MB for row in (*post["calibration"], *post["estimates"])]
    chart = Chart(
        "Where tokens/s = bandwidth / active bytes holds",
        "Floors are a small share of the step to the lower right, where the formula holds, and most of it above.",
        Scale.around(sizes, log=True),
        Scale(0.0, 1.04),
        "bytes a device reads of a layer, MB",
        "floors, share of the step",
        height=520,
        percent_y=True,
    )
    chart.line([(chart.x.low, 0.5), (chart.x.high, 0.5)], "roofline", "half of the step is floors")
    for row in halves:
        half = row["bytes_per_device_layer"] / MB
        name = f"{row['devices']} x {row['device']}, {row['system']}"
        grid = [chart.x.low * (chart.x.high / chart.x.low) ** (i / 80) for i in range(81)]
        chart.line([(x, half / (half + x)) for x in grid], "law", f"the law: {name}")
    for point in points:
        _, shape, css = GROUPS[group(point)]
        error = "" if point.error is None else f", formula {point.error:+.0%}"
        r = point.reading
        title = f"{r.model}, {r.devices} x {r.device}, {r.system}: floors {point.floor_share:.0%}{error}"
        chart.mark(point.bytes_per_device_layer / MB, point.floor_share, shape, css, title)
    for (_, shape, css), rows in zip(POST, (post["calibration"], post["estimates"]), strict=True):
        for row in rows:
            share, at = row["floor_share"], row["bytes_per_device_layer"] / MB
            low, high = share["80"]
            chart.whisker(at, low, high, css)
            chart.mark(at, share["median"], shape, css, f"{row['model']}: floors {share['median']:.0%}")
    for i, (name, shape, css) in enumerate((*GROUPS, *POST)):
        x, y = chart.x.low * (chart.x.high / chart.x.low) ** 0.72, 1.0 - 0.045 * i
        chart.mark(x, y, shape, css, name)
        chart.label(x, y, name)
    style = (resources.files("moegauge.bench.report") / "report.css").read_text(encoding="utf-8")
    head, _, body = chart.svg().partition(">")
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="720" height="520" ', 1)
    paper = '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
    return f"{head}><style>{style}</style>{paper}{body}\n"
