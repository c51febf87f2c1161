"""Batch and context curves of the HTML report, where a record has three points of one or more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from moegauge.bench.judge.compare import Compared, Comparison
from moegauge.bench.report.elements import figure
from moegauge.bench.report.figures import tell
from moegauge.bench.report.svg import Chart, Scale
from moegauge.units import human_bytes

MOST_CURVES = 40  # charts of one kind; the tables have every point
_ABOUT_BATCHES = (
    "More streams share the dense weights but touch more experts: a step reads the distinct experts really routed to, "
    "so the gain is smaller than the batch."
)


def batches(found: Comparison) -> str:
    """Aggregate and per-stream tokens/s against batch, with what the law and the coverage of experts predict."""
    curves = _curves(found, lambda p: p.case.context, lambda p: p.case.batch)
    if not curves:
        return ""
    parts = [f"<h2>Batches</h2><p>{_ABOUT_BATCHES}</p>"]
    for name, points in curves.items():
        x = Scale.around([p.case.batch for p in points], log=True)
        values = [v for p in points for v in (p.case.tokens_per_s, p.case.tokens_per_s / p.case.batch)]
        chart = Chart(
            f"Tokens per second against batch, {name}",
            "Aggregate speed rises and speed per stream falls with the batch.",
            x,
            Scale.around(values, log=True),
            "sequences decoded together",
            "tokens/s",
            320,
            x_ticks=[(b, str(b)) for b in sorted({p.case.batch for p in points})],
        )
        for css, shape, divide in (("f0", 0, False), ("f2", 1, True)):
            series = [(p, p.case.tokens_per_s / (p.case.batch if divide else 1)) for p in points]
            chart.line([(p.case.batch, v) for p, v in series], css)
            for p, v in series:
                chart.mark(
                    p.case.batch, v, shape, css, f"{tell(p)}, {p.case.distinct_experts:.1f} distinct experts a layer"
                )
                if p.error is not None:
                    chart.ring(p.case.batch, v * (1 + p.error), f"predicted for {p.case.label}")
        parts.append(f"<h3>{escape(name)}</h3>")
        parts.append(
            figure(
                chart,
                [("all streams", "f0", 0), ("per stream", "f2", 1), ("predicted without its own model", "", -1)],
                "Distinct experts per layer: "
                + ", ".join(f"{p.case.distinct_experts:.1f} at {p.case.batch}" for p in points)
                + ".",
            )
        )
    return "".join(parts)


def contexts(found: Comparison) -> str:
    """Tokens/s against tokens already cached."""
    curves = _curves(found, lambda p: p.case.batch, lambda p: p.case.context)
    if not curves:
        return ""
    parts = ["<h2>Context</h2><p>Every step also reads the KV cache of its context.</p>"]
    for name, points in curves.items():
        chart = Chart(
            f"Tokens per second against context, {name}",
            "Speed falls as the KV cache grows.",
            Scale.around([p.case.context for p in points], zero=True),
            Scale.around([p.case.tokens_per_s for p in points], zero=True),
            "tokens of context",
            "tokens/s",
            300,
        )
        chart.line([(p.case.context, p.case.tokens_per_s) for p in points], "f0")
        for p in points:
            chart.mark(p.case.context, p.case.tokens_per_s, 0, "f0", f"{tell(p)}, {human_bytes(p.case.bytes.kv)} of KV")
            if p.predicted_tokens_per_s is not None:
                chart.ring(p.case.context, p.predicted_tokens_per_s, f"predicted for {p.case.label}")
        parts.append(f"<h3>{escape(name)}</h3>")
        parts.append(
            figure(
                chart,
                [("measured", "f0", 0), ("predicted without its own model", "", -1)],
                "KV cache per step: "
                + ", ".join(f"{human_bytes(p.case.bytes.kv)} at {p.case.context:,}" for p in points)
                + ".",
            )
        )
    return "".join(parts)


def _curves(
    found: Comparison, fixed: Callable[[Compared], int], moving: Callable[[Compared], int]
) -> dict[str, list[Compared]]:
    """Series of at least three values of `moving`, all else alike: 'model format' -> points in order."""
    series: dict[tuple[str, str, int], list[Compared]] = {}
    for p in found.points:
        series.setdefault((p.case.model, p.case.format, fixed(p)), []).append(p)
    kept = {key: sorted(points, key=moving) for key, points in series.items() if len({moving(p) for p in points}) >= 3}
    kept = dict(list(kept.items())[:MOST_CURVES])
    return {_series_name(key[0], key[1], points): points for key, points in kept.items()}


def _series_name(model: str, weight_format: str, points: Sequence[Compared]) -> str:
    parts = [model, weight_format]
    batch = {p.case.batch for p in points}
    context = {p.case.context for p in points}
    parts += [f"batch {min(batch)}"] if len(batch) == 1 and batch != {1} else []
    parts += [f"context {min(context):,}"] if len(context) == 1 and context != {0} else []
    return " ".join(parts)
