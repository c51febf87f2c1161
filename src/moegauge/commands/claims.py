"""`moegauge claims`: what would have to be true for public claims about closed models to hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from moegauge.commands._output import json_option, print_json, print_table
from moegauge.commands._threads import one_blas_thread
from moegauge.units import human_count

if TYPE_CHECKING:
    from moegauge.estimator.closed.claims import Verdict


@click.command("claims", epilog="Example: moegauge claims opus-1t-32b")
@click.argument("claim", required=False)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the random points.")
@json_option
def command(claim: str | None, seed: int, as_json: bool) -> None:
    """Hold claims about closed models against observed speeds, memory and prices: the region of dense share, sparsity,
    precision, batch, speculation and devices each needs, or the nearest miss. With CLAIM, that one in full."""
    one_blas_thread()
    from moegauge.estimator.closed.claims import adjudicate

    verdicts = adjudicate(claim, seed=seed)
    if as_json:
        print_json({"schema": "moegauge.claims/1", "seed": seed, "claims": [v.to_json() for v in verdicts]})
        return
    if claim is not None:
        _print_one(verdicts[0])
        return
    print_table(
        ("claim", "consistent", "experts per chosen", "batch", "or the nearest miss"),
        [
            (
                verdict.id,
                f"{verdict.consistent:.1%}" if verdict.possible else "none",
                *(_range(verdict.region, name) for name in ("expansion", "batch")),
                "" if verdict.possible else _miss(verdict.nearest_miss or {}),
            )
            for verdict in verdicts
        ],
        note=True,
    )
    click.echo("moegauge claims NAME says what one of them needs.")


def _range(region: dict[str, Any], name: str) -> str:
    if name not in region:
        return ""
    low, high = region[name]
    return f"{low:.3g} - {high:.3g}"


def _miss(miss: dict[str, Any]) -> str:
    broken = miss.get("broken", {})
    return ", ".join(f"{name} by x{factor:.2f}" for name, factor in broken.items())


def _print_one(verdict: Verdict) -> None:
    from moegauge.estimator.closed.claims import RANGES

    click.echo(f"{verdict.text} ({verdict.subject or 'every model'})")
    click.echo(f"held against: {', '.join(verdict.limits)}")
    if verdict.note:
        click.echo(verdict.note)
    if not verdict.possible:
        click.echo(f"no consistent point; nearest miss breaks {_miss(verdict.nearest_miss or {})}, at")
        for name, value in (verdict.nearest_miss or {}).items():
            if name != "broken":
                click.echo(f"  {name:<12} {value if isinstance(value, str) else f'{value:.4g}'}")
        return
    click.echo(f"consistent on {verdict.consistent:.1%} of the points; there (5 to 95 %)")
    for name, value in verdict.region.items():
        if isinstance(value, dict):
            shares = sorted(value.items(), key=lambda item: -item[1])
            click.echo(f"  {name:<12} " + ", ".join(f"{label} {share:.0%}" for label, share in shares))
        elif name in ("active", "total"):
            click.echo(f"  {name:<12} {human_count(value[0])} to {human_count(value[1])}")
        elif isinstance(value, list):
            low, high = RANGES.get(name, (float("nan"), float("nan")))
            click.echo(f"  {name:<12} {value[0]:.3g} to {value[1]:.3g} (drawn from {low:g} to {high:g})")
        else:
            click.echo(f"  {name:<12} {value:.3g}")
