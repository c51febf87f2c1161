"""`moegauge backtest`: open models estimated as if they were closed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moegauge.commands._output import json_option, print_json, print_table, say
from moegauge.commands._threads import one_blas_thread
from moegauge.errors import UsageError

if TYPE_CHECKING:
    from moegauge.estimator.closed.backtest import Backtest, Folds, Trial


@click.command("backtest", epilog="Example: moegauge backtest --observations my.csv --json")
@click.option(
    "--observations",
    type=click.Path(dir_okay=False, path_type=Path),
    help="CSV with the columns of the packaged throughput.csv; without it the packaged readings.",
)
@click.option(
    "--unseen",
    type=click.Choice(["model", "system", "family"]),
    default="model",
    show_default=True,
    help="What the priors never saw: the target's model, also its system, also its whole family of systems.",
)
@click.option(
    "--kept-apart", is_flag=True, help="Instead: the models of the packaged sweeps that the law was not fitted to."
)
@click.option(
    "--oracle", is_flag=True, help="Also the method with the group's constants told as well as all readings tell them."
)
@click.option(
    "--record",
    "records",
    type=click.Path(dir_okay=False, path_type=Path),
    multiple=True,
    help="Also on the decode cases of this record of moegauge bench; may be repeated.",
)
@json_option
def command(
    observations: Path | None, unseen: str, kept_apart: bool, oracle: bool, records: tuple[Path, ...], as_json: bool
) -> None:
    """Estimate open models as if they were closed, each from the other models of its system and device, with the
    published one-term formula and with ours, and say how far off they are."""
    one_blas_thread()
    from moegauge.estimator.closed import backtest

    by_file: list[dict[str, Any]] = []
    if kept_apart:
        if observations is not None or unseen != "model":
            raise UsageError("--kept-apart judges packaged readings as they are: no --observations and no --unseen.")
        parts = backtest.kept_apart_trials(with_oracle=oracle)
        by_file = [
            {"file": name, "inverse": backtest.inverse(part), "forward": backtest.forward(part)}
            for name, part in ((name, backtest.Backtest(trials, ())) for name, trials in parts.items())
        ]
        whole = (parts, backtest.kept_apart_trials(False))
        result, untold = (backtest.Backtest(tuple(t for part in p.values() for t in part), ()) for p in whole)
    else:
        result = backtest.run(observations, unseen=unseen, with_oracle=oracle)
        untold = backtest.run(observations, unseen=unseen, moe_told=False)
    emulated = {str(path): _emulated(path) for path in records}
    if as_json:
        print_json(
            {
                "schema": "moegauge.backtest/1",
                **result.summary(),
                "sentence": result.sentence,
                "measured_moe_untold": untold.summary()["measured"],
                "priors_without": unseen,
                **({"by_file": by_file} if kept_apart else {}),
                **({"oracle": backtest.oracle(result)} if oracle else {}),
                **({"records": emulated} if emulated else {}),
                "cases": [_case(t) for t in result.trials],
                "skipped_rows": [{"line": s.line, "model": s.model, "reason": s.reason} for s in result.skipped],
            }
        )
        return
    _print(result, untold, by_file)
    for row in backtest.oracle(result):
        over = row["ours_over_oracle"]
        say(
            f"oracle, {row['regime']}: {row['n']} readings within x{row['median_fold']:.3f} in half and "
            f"x{row['p80_fold']:.3f} in 80 % of cases; ours is x{over['median']:.3f} and x{over['p80']:.3f} of that"
        )
    for path, part in emulated.items():
        say()
        say(f"{path}: {part['n']} emulated decode cases, bytes per step estimated from the other models")
        for method in ("published", "measured"):
            folds = part[method]
            say(
                f"  {'ours' if method == 'measured' else method:<10}median x{folds['median_fold']:.3f}, "
                f"80 % x{folds['p80_fold']:.3f}, worst x{folds['worst_fold']:.3f}"
            )


def _folds(folds: Folds) -> list[str]:
    return [f"x{v:.3f}" for v in (folds.median, folds.p80, folds.p95, folds.worst)]


def _regime(row: dict[str, Any]) -> str:
    kind = {True: ", MoE", False: ", dense", None: ""}[row["moe"]]
    streams = {"1": ", one stream", "above 1": ", several", None: ""}[row["batch"]]
    return f"  {row['regime']}{kind}{streams}"


def _emulated(path: Path) -> dict[str, Any]:
    from moegauge.estimator.closed.backtest import Folds
    from moegauge.estimator.closed.emulated import trials

    cases = [t.to_json() for t in trials(path)]
    inside = [c["interval_80"][0] <= c["bytes"] <= c["interval_80"][1] for c in cases]
    return {
        "n": len(cases),
        "published": Folds.of([c["published_fold"] for c in cases]).to_json(),
        "measured": {
            **Folds.of([c["measured_fold"] for c in cases]).to_json(),
            "coverage_80": sum(inside) / len(inside),
        },
        "cases": cases,
    }


def _case(trial: Trial) -> dict[str, Any]:
    from moegauge.estimator.closed.widths import PERCENTS

    reading = trial.reading
    return {
        "line": reading.line,
        "system": reading.system,
        "device": reading.device,
        "devices": reading.devices,
        "model": reading.model,
        "format": reading.format,
        "bits": reading.bits,
        "context": reading.context,
        "tokens_per_s": reading.tokens_per_s,
        "active": reading.active,
        "calibrators": trial.calibrators,
        "published": trial.published,
        "published_fold": trial.published_fold,
        "measured": trial.measured,
        "measured_fold": trial.measured_fold,
        "estimate": trial.measured,
        "interval_80": list(trial.interval(80)),
        "intervals": {str(p): list(trial.interval(p)) for p in PERCENTS},
        "floor_share": trial.density.floor_share,
        "batch": reading.batch,
        "forward": _forward(trial),
    }


def _forward(trial: Trial) -> dict[str, Any] | None:
    if trial.forward is None:
        return None
    return {"tokens_per_s": trial.forward.tokens_per_s, "interval_80": list(trial.forward.interval(80))}


def _print(result: Backtest, untold: Backtest, by_file: list[dict[str, Any]]) -> None:
    from moegauge.estimator.closed.backtest import Backtest, forward, inverse
    from moegauge.estimator.closed.widths import PERCENTS

    say(result.sentence)
    rows = [("published formula", str(len(result.trials)), *[""] * 5, *_folds(result.published))]
    judged = [("ours", inverse(result)), ("ours, not told MoE", inverse(untold)), ("forward", forward(result))]
    for part in by_file:
        judged += [(f"  {part['file']}", part["inverse"]), ("    forward", part["forward"])]
    for name, row in judged + [(_regime(row), row) for row in result.by_regime()]:
        if row["n"]:
            rows.append(
                (
                    name,
                    str(row["n"]),
                    *(f"{row[f'coverage_{p}']:.0%}{'*' if p in row['rejected'] else ''}" for p in PERCENTS),
                    f"x{row['width_80']:.2f}",
                    f"{row['score_80']:.2f}",
                    *(f"x{row[q]:.3f}" for q in ("median_fold", "p80_fold", "p95_fold", "worst_fold")),
                )
            )
    headings = ("", "n", "in 50 %", "in 80 %", "in 95 %", "80 % wide", "score", "median", "80 %", "95 %", "worst")
    print_table(headings, rows)
    say("* not what the interval promises, at 5 %, by a bootstrap over models")
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in result.trials:
        groups.setdefault(trial.reading.group, []).append(trial)
    parts = {group: Backtest(tuple(trials), ()) for group, trials in groups.items()}
    say()
    say("by system and device")
    print_table(
        ("system", "device", "n", "published", "ours"),
        [
            (*group, str(len(part.trials)), f"x{part.published.median:.2f}", f"x{part.measured.median:.2f}")
            for group, part in parts.items()
        ],
        2,
    )
    if result.skipped:
        say()
        say(f"{len(result.skipped)} rows not used:")
        for reason, count in Counter(s.reason for s in result.skipped).most_common():
            lines = [str(s.line) for s in result.skipped if s.reason == reason]
            shown = ", ".join(lines[:8]) + (", ..." if len(lines) > 8 else "")
            say(f"  {count:4d}  {reason} (line {shown})")
