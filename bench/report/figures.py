"""Charts of the HTML report: measured points with their predictions, each as one <figure>."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from moegauge.bench.clock import statistics
from moegauge.bench.judge.compare import Compared, Comparison
from moegauge.bench.report.elements import figure
from moegauge.bench.report.svg import Chart, Scale
from moegauge.estimator.observation import Observation
from moegauge.record import Record
from moegauge.units import GB, human_bytes

MOST_LABELS = 60  # models named in a chart: more would cover one another, and placing each looks at all before it
MOST_DRAWN = 4000  # samples of a line 720 units wide
MOST_RESAMPLED = 20_000  # samples whose median gets an interval: 2,000 resamplings of each
FORMAT_ORDER = ("native", "bf16", "fp8", "int8", "int4", "mxfp4", "nvfp4", "int4_g128")


def _styles(points: Iterable[Compared]) -> dict[str, tuple[str, int]]:
    """(colour class, shape) of every format that occurs; a format looks the same on every page."""
    found = {p.case.format for p in points}
    known = [name for name in FORMAT_ORDER if name in found]
    others = sorted(found - set(FORMAT_ORDER))
    return {
        name: (f"f{index % 8}", index % 8)
        for name in (*known, *others)
        for index in (FORMAT_ORDER.index(name) if name in FORMAT_ORDER else len(FORMAT_ORDER) + others.index(name),)
    }


def _plain(found: Comparison) -> list[Compared]:
    """Points of one stream without context where there are any, else all."""
    return [p for p in found.points if p.case.batch == 1 and p.case.context == 0] or found.points


def tell(p: Compared) -> str:
    """A point in words, for its tooltip."""
    predicted = "" if p.predicted_tokens_per_s is None else f", predicted {p.predicted_tokens_per_s:.4g}"
    return f"{p.case.label}: {p.case.tokens_per_s:.4g} tokens/s{predicted}, {human_bytes(p.case.bytes.total)} a step"


def _middle(points: Sequence[Compared]) -> Observation:
    """A step of middling depth and work per byte, one byte large, in no format: what the drawn law assumes."""

    def median(values: Iterable[float]) -> float:
        return statistics.median(list(values))

    seen = [(dict(p.observation.measured).get("products"), p.observation.bytes) for p in points]
    rates = [seconds / size for seconds, size in seen if seconds is not None]
    return replace(
        points[0].observation,
        bytes=1.0,
        kernels=round(median(p.observation.kernels for p in points)),
        layers=round(median(p.observation.layers for p in points)),
        macs=median(p.observation.macs / p.observation.bytes for p in points),
        attention_macs=0.0,
        format="",
        parts=(),
        measured=(("products", median(rates)),) if len(rates) == len(points) else (),
    )


def _law_seconds(found: Comparison, middle: Observation, size: float) -> float:
    """Seconds of a step like `middle` that reads `size` bytes, at the record's roof."""
    macs = middle.macs * size
    roof = found.roof_gb_per_s * GB
    # In no format: what a multiply-accumulate costs on average.
    step = replace(
        middle,
        bytes=size,
        macs=macs,
        format_macs=(("", macs),),
        roof_bytes_per_s=roof,
        measured=tuple((name, seconds * size) for name, seconds in middle.measured),
    )
    return found.law.predict_seconds(step)


def _grid(scale: Scale, steps: int = 60) -> list[float]:
    ratio = scale.high / scale.low
    return [float(scale.low * ratio ** (i / steps)) for i in range(steps + 1)]


def speed(found: Comparison) -> str:
    """Tokens/s against bytes per token, both logarithmic: points, the roof, the law."""
    points = _plain(found)
    styles = _styles(points)
    per_token = [p.case.bytes.total / p.case.batch / GB for p in points]
    speeds = [p.case.tokens_per_s for p in points]
    predicted = [p.predicted_tokens_per_s for p in points if p.predicted_tokens_per_s is not None]
    x, y = Scale.around(per_token, log=True), Scale.around([*speeds, *predicted], log=True)
    chart = Chart(
        "Tokens per second against bytes per token",
        "Measured points fall just below the dashed line, the roof divided by the bytes.",
        x,
        y,
        "bytes read per token, GB",
        "tokens/s",
        460,
    )
    roof = found.roof_gb_per_s
    middle = _middle(points)
    chart.line([(v, roof / v) for v in _grid(x)], "roofline", "the roof: bandwidth divided by bytes")
    law = [(v, 1 / _law_seconds(found, middle, v * GB)) for v in _grid(x)]
    chart.line(law, "law", f"the law at {middle.kernels} kernels and {middle.layers} layers a step")
    for p, at in zip(points, per_token, strict=True):
        if p.predicted_tokens_per_s is not None:
            chart.ring(
                at, p.predicted_tokens_per_s, f"predicted for {p.case.label}: {p.predicted_tokens_per_s:.4g} tokens/s"
            )
    _marks(chart, [(p, at, p.case.tokens_per_s) for p, at in zip(points, per_token, strict=True)], styles)
    named = {}
    for p, at in sorted(zip(points, per_token, strict=True), key=lambda pair: pair[1]):
        if p.case.format == "native" or p.case.model not in named:
            named[p.case.model] = (at, p.case.tokens_per_s)
    for model, (at, tokens) in sorted(named.items(), key=lambda kv: kv[1])[:: -(-len(named) // MOST_LABELS)]:
        chart.label(at, tokens, model)
    entries: list[tuple[str, str, int | None]] = [(name, css, shape) for name, (css, shape) in styles.items()]
    entries += [("predicted without its own model", "", -1), ("law", "law", None), ("roof / bytes", "roofline", None)]
    return figure(
        chart,
        entries,
        f"One stream, no context. The law line is drawn for a step of {middle.kernels} kernels; each ring uses its own "
        "model’s depth and format.",
    )


def share(found: Comparison) -> str:
    """Share of the roof against bytes per step: where the one-term formula's constant fails."""
    points = _plain(found)
    styles = _styles(points)
    x = Scale.around([p.case.bytes.total / GB for p in points], log=True)
    low = min(p.case.roof_fraction for p in points)
    chart = Chart(
        "Share of the read roof against bytes per step",
        "Small steps lose more of the roof to fixed costs than large ones.",
        x,
        Scale(
            0.0 if low < 0.5 else 0.45 if low < 0.7 else 0.65, max(1.04, *(1.02 * p.case.roof_fraction for p in points))
        ),
        "bytes read per step, GB",
        "share of the roof",
        340,
        percent_y=True,
    )
    chart.line([(x.low, 1.0), (x.high, 1.0)], "roofline", "the roof")
    middle = _middle(points)
    curve = [(v, v / found.roof_gb_per_s / _law_seconds(found, middle, v * GB)) for v in _grid(x)]
    chart.line(curve, "law", f"the law at {middle.kernels} kernels a step")
    constant = statistics.median([p.case.roof_fraction for p in points])
    chart.line(
        [(x.low, constant), (x.high, constant)], "simple", "one bandwidth for all, as the one-term formula has it"
    )
    for p in points:
        if p.case.roof_fraction_interval:
            chart.whisker(p.case.bytes.total / GB, *p.case.roof_fraction_interval, styles[p.case.format][0])
        if p.error is not None:
            predicted = p.case.roof_fraction * (1 + p.error)
            chart.ring(p.case.bytes.total / GB, predicted, f"predicted for {p.case.label}: {predicted:.3f}")
    _marks(chart, [(p, p.case.bytes.total / GB, p.case.roof_fraction) for p in points], styles)
    entries: list[tuple[str, str, int | None]] = [(name, css, shape) for name, (css, shape) in styles.items()]
    entries += [("law", "law", None), ("one constant bandwidth", "simple", None), ("roof", "roofline", None)]
    return figure(
        chart,
        entries,
        "Each point is the median of paired ratios: a sample of the step over the roof sample beside it.",
    )


def residuals(found: Comparison) -> str:
    """Error of the law and of the one-term formula, point by point."""
    points = [p for p in _plain(found) if p.error is not None]
    if not points:
        return ""
    errors = [e for p in points for e in (p.error, p.simple_error) if e is not None]
    reach = max(0.06, *(1.1 * abs(e) for e in errors))
    x = Scale.around([p.case.bytes.total / GB for p in points], log=True)
    chart = Chart(
        "Prediction error against bytes per step",
        "The law's errors lie near zero; those of the one-term formula depend on the step's size.",
        x,
        Scale(-reach, reach),
        "bytes read per step, GB",
        "predicted / measured − 1",
        320,
        percent_y=True,
    )
    chart.line([(x.low, 0.0), (x.high, 0.0)], "law", "no error")
    for p in points:
        at = p.case.bytes.total / GB
        if p.simple_error is not None:
            chart.mark(at, p.simple_error, 3, "f1", f"one-term formula, {p.case.label}: {100 * p.simple_error:+.1f} %")
        if p.error is not None:
            chart.mark(at, p.error, 0, "f0", f"law, {p.case.label}: {100 * p.error:+.1f} %")
    return figure(
        chart,
        [("law, model left out", "f0", 0), ("one-term formula, model left out", "f1", 3)],
        "One stream, no context. Above zero: predicted faster than measured.",
    )


def roof(records: Sequence[Record]) -> str:
    """The roof samples in order: those of the roof itself, then those beside the points."""
    samples: list[float] = []
    for record in records:
        samples += record.roof.samples if record.roof else []
        for case in record.cases:
            samples += case.roof_samples_gb_per_s
    if len(samples) < 2:
        return ""
    interval = ""
    if len(samples) <= MOST_RESAMPLED:
        interval = " (95 % interval of the median {:.2f} to {:.2f})".format(*statistics.interval(samples))
    chart = Chart(
        "Roof samples in the order they were taken",
        "How steady this machine's memory bandwidth was during the run.",
        Scale(-1, len(samples)),
        Scale.around(samples, zero=min(samples) < 0.5 * max(samples)),
        "sample",
        "GB/s read",
        260,
    )
    each = -(-len(samples) // MOST_DRAWN)
    chart.line(list(enumerate(samples))[::each], "f6", "every roof sample" if each == 1 else f"one in {each} samples")
    own = records[-1].roof
    patterns = ""
    if own and own.patterns:
        ranked = sorted(own.patterns.items(), key=lambda kv: -kv[1])
        patterns = " Access patterns tried: " + ", ".join(f"{name} {rate:.2f} GB/s" for name, rate in ranked) + "."
    text = (
        f"{len(samples)} samples, median {statistics.median(samples):.2f} GB/s{interval}, from {min(samples):.2f} "
        f"to {max(samples):.2f}.{patterns}"
    )
    return "<h2>The roof</h2>" + figure(chart, [("roof samples", "f6", None)], text)


def _marks(chart: Chart, placed: Iterable[tuple[Compared, float, float]], styles: dict[str, tuple[str, int]]) -> None:
    for p, x, y in placed:
        css, shape = styles[p.case.format]
        chart.mark(x, y, shape, css, tell(p))
