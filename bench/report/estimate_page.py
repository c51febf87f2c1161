"""The HTML page of `moegauge estimate`: back-test first, then both methods, then what a batch does."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from moegauge import hardware, models
from moegauge.bench.report import elements
from moegauge.bench.report.svg import Chart, Scale
from moegauge.estimator.batching import BATCHES, curve, on_device
from moegauge.estimator.closed.assumptions import held
from moegauge.estimator.closed.backtest import Backtest

BILLION = 1e9
# Sparse and less sparse models, as an inversion calibrated on GLM-4.7 (8 of 160) would see them.
CURVES = ("kimi-k2", "deepseek-v3", "qwen3-235b-a22b", "mixtral-8x7b")
CALIBRATOR = "glm-4.7"
DEVICE, DEVICES = "NVIDIA H200 SXM", 8


def page(document: dict[str, Any], tested: Backtest) -> str:
    """The page of a `moegauge estimate` document.

    Args:
        document: as `moegauge.estimator.closed.estimate` makes it.
        tested: the back-test behind its first sentence.
    """
    title = f"Estimate: {', '.join(_providers(document)) or 'nothing identifiable'}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(document['backtest']['sentence'])} {escape(tested.sentence)}</p>",
        f'<p class="bad">{escape(document["why"])}</p>' if document["why"] else "",
        _assumed(document),
        _folds(tested),
        _intervals(document),
        _table(document),
        _variance(document),
        _batches(),
        _observations(document),
    ]
    return elements.document(title, body)


def _assumed(document: dict[str, Any]) -> str:
    """What is held, what is left open and why, the seed and the command."""
    measured = document["measured"]
    rows = [(words, "held") for words in held(measured["fixed"])]
    rows += [(name, why) for name, why in measured["assumptions"].items()]
    return f"<p>Seed {measured['seed']}; <code>{escape(document.get('command', ''))}</code></p>" + elements.table(
        "Assumptions", ("assumption", "held, or what it is drawn from"), rows
    )


def _observations(document: dict[str, Any]) -> str:
    """Every speed with its date and source."""
    rows = [
        (
            row["model"],
            f"calibrates, as {row['shape']}" if row["shape"] else "estimated",
            f"{row['tokens_per_s']:g}",
            row["provider"],
            row["date"],
            f"{row['metric']}, {row['tier']}",
            row["source"] or "no source given",
        )
        for row in document["observations"]
    ]
    headings = ("model", "use", "tokens/s", "provider", "date", "speed", "source")
    return "<h2>Observations</h2>" + elements.table("Speeds of one stream", headings, rows)


def _providers(document: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(m["provider"] for m in document["measured"]["models"]))


def _figure(heading: str, text: str, chart: Chart, entries: Sequence[tuple[str, str, int | None]]) -> str:
    return f"<h2>{escape(heading)}</h2>{elements.figure(chart, entries, text)}"


def _folds(tested: Backtest) -> str:
    """Fold error against the share of open-model readings within it."""
    series = [
        ("published formula", "f1", sorted(t.published_fold for t in tested.trials)),
        ("ours", "f0", sorted(t.measured_fold for t in tested.trials)),
    ]
    chart = Chart(
        "Fold error of both methods",
        "The lower line is the better method: the fold error within which a share of the cases lies.",
        Scale(0.0, 1.0),
        Scale(1.0, max(fold for *_, folds in series for fold in folds) * 1.05, log=True),
        "share of cases",
        "fold error",
        height=360,
        x_ticks=[(s / 100, f"{s} %") for s in (0, 20, 50, 80, 95)],
    )
    for name, css, folds in series:
        chart.line([((i + 1) / len(folds), fold) for i, fold in enumerate(folds)], css, name)
    return _figure(
        "Back-test on open models",
        f"{len(tested.trials)} readings, each model estimated from the other models of its system and device.",
        chart,
        [(name, css, None) for name, css, _ in series],
    )


def _intervals(document: dict[str, Any]) -> str:
    """Intervals of active parameters, and the published FP8 span beside them."""
    found = document["measured"]["models"]
    if not found:
        return ""
    published = {m["model"]: m for m in (document["published"] or {}).get("models", [])}
    ends = [value for m in found for value in m["active"]["95"]]
    chart = Chart(
        "Active parameters",
        "Ours with its 80 and 95 % intervals, the published FP8 span beside it.",
        Scale(-0.5, len(found) - 0.5),
        Scale.around([v / BILLION for v in ends], log=True),
        "model",
        "active parameters, billions",
        x_ticks=[(i, m["model"][:18]) for i, m in enumerate(found)],
    )
    for i, model in enumerate(found):
        active = model["active"]
        for percent, shift in (("95", 0.0), ("80", 0.03)):
            low, high = (v / BILLION for v in active[percent])
            chart.whisker(i + shift, low, high, "f0")
        chart.mark(i, active["median"] / BILLION, 0, "f0", f"{model['model']}: {active['median'] / BILLION:.0f} B")
        if model["model"] in published:
            low, high = (v / BILLION for v in published[model["model"]]["active"]["fp8"])
            chart.whisker(i - 0.12, low, high, "f1")
            chart.mark(i - 0.12, (low * high) ** 0.5, 1, "f1", f"published, FP8: {low:.1f} to {high:.1f} B")
    return _figure(
        "Active parameters of closed models",
        "A provider hides precision, speculation, batch and replica size; the intervals hold all of them.",
        chart,
        [("ours: median, 80 and 95 %", "f0", 0), ("published, FP8", "f1", 1)],
    )


def _table(document: dict[str, Any]) -> str:
    found = document["measured"]["models"]
    if not found:
        return ""
    rows = []
    for model in found:
        active, total = model["active"], model["total"]
        rows.append(
            (
                model["model"],
                f"{model['tokens_per_s']:g}",
                f"{active['median'] / BILLION:.0f}",
                *(" – ".join(f"{v / BILLION:.0f}" for v in active[p]) for p in ("50", "80", "95")),
                f"{total['median'] / 1e12:.1f}",
                " – ".join(f"{v / 1e12:.1f}" for v in total["80"]),
            )
        )
    headings = ("model", "tokens/s", "active, B", "50 %", "80 %", "95 %", "total, T", "80 %")
    return elements.table("Ours, parameters", headings, rows)


def _variance(document: dict[str, Any]) -> str:
    found = document["measured"]["models"]
    if not found:
        return ""
    shares = [(name, share) for name, share in found[0]["variance"].items() if share >= 0.005]
    rows = [(name, f"{100 * share:.0f} %") for name, share in shares]
    return (
        f"<h2>What would narrow it most</h2><p>Share of the variance of log(active) of {escape(found[0]['model'])} "
        "that each assumption explains alone (first-order Sobol index).</p>"
        + elements.table("Share of the variance", ("assumption", "share"), rows)
    )


def _batches() -> str:
    """By what factor an inversion that knows only active parameters is misled, against the batch."""
    reference = models.load(CALIBRATOR)
    place = on_device(hardware.device(DEVICE), DEVICES)
    series = [(name, curve(models.load(name).cast("fp8"), reference, place)) for name in CURVES]
    folds = [point.misled for _, points in series for point in points]
    chart = Chart(
        "Misled by the batch",
        "The factor by which active-only inversion errs grows with the batch and the gap in sparsity.",
        Scale.around([float(b) for b in BATCHES], log=True, margin=0.02),
        Scale.around(folds, log=True),
        "streams decoded together",
        "estimated over true active bytes",
        height=360,
        x_ticks=[(float(b), str(b)) for b in BATCHES],
    )
    for i, (name, points) in enumerate(series):
        chart.line([(p.batch, p.misled) for p in points], f"f{i}", name)
        for p in points:
            chart.mark(p.batch, p.misled, i, f"f{i}", f"{name}, batch {p.batch}: x{p.misled:.2f}")
    return _figure(
        "More than one stream",
        f"Calibrated on {CALIBRATOR} at the same batch on {place.name}, uniform routing, all in FP8, no context.",
        chart,
        [(name, f"f{i}", i) for i, name in enumerate(CURVES)],
    )
