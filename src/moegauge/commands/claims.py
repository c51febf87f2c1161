"""`moegauge claims`: what would have to be true for public claims about closed models to hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from moegauge.commands._output import json_option, print_json, print_table, say
from moegauge.commands._threads import one_blas_thread
from moegauge.units import human_count

if TYPE_CHECKING:
    from moegauge.estimator.closed.claims import Verdict


@click.command("claims", epilog="Example: moegauge claims opus-1t-32b")
@click.argument("claim", required=False)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the random points.")
@click.option("--server", help="Held on this server instead of the claim's, e.g. '8 x H100'.")
@click.option("--precision", help="bf16, fp8, fp8_fp4 or fp4, instead of the claim's.")
@click.option("--dollars-per-device-hour", type=float, help="Instead of the claim's or 2.50.")
@json_option
def command(
    claim: str | None,
    seed: int,
    server: str | None,
    precision: str | None,
    dollars_per_device_hour: float | None,
    as_json: bool,
) -> None:
    """Hold claims about closed models against observed speeds, memory and prices: the region of dense share, sparsity,
    precision, batch, speculation and devices each needs, or the nearest miss. With CLAIM, that one in full."""
    one_blas_thread()
    from moegauge.estimator.closed.claims import adjudicate

    own = {"server": server, "precision": precision, "dollars_per_device_hour": dollars_per_device_hour}
    verdicts = adjudicate(claim, seed=seed, own={name: v for name, v in own.items() if v is not None})
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
                _share(verdict),
                *(_range(verdict.region, name) for name in ("expansion", "batch")),
                "" if verdict.possible else _miss(verdict.nearest_miss or {}),
            )
            for verdict in verdicts
        ],
        note=True,
    )
    say("moegauge claims NAME says what one of them needs.")


def _share(verdict: Verdict) -> str:
    """How much of what was drawn is consistent; of a claim that fixes no size whether it holds."""
    if not verdict.decided:
        return "undecided"
    if not verdict.possible:
        return "none"
    return f"{verdict.consistent:.1%}" if "active" in verdict.region else "holds"


def _range(region: dict[str, Any], name: str) -> str:
    if name not in region:
        return ""
    low, high = region[name]
    return f"{low:.3g} - {high:.3g}"


def _words(value: Any) -> str:
    """A figure of a claim, in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(_words(each) for each in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _miss(miss: dict[str, Any]) -> str:
    broken = miss.get("broken", {})
    return ", ".join(f"{name} by x{factor:.2f}" for name, factor in broken.items())


def _print_one(verdict: Verdict) -> None:
    from moegauge.estimator.closed.claims import RANGES

    say(f"{verdict.text} ({verdict.subject or 'every model'})")
    say(f"held against: {', '.join(verdict.limits)}")
    if verdict.note:
        say(verdict.note)
    if not verdict.possible:
        say(f"no consistent point; nearest miss breaks {_miss(verdict.nearest_miss or {})}, at")
        for name, value in (verdict.nearest_miss or {}).items():
            if name != "broken":
                say(f"  {name:<12} {_words(value)}")
        return
    if "active" not in verdict.region:
        for name, value in verdict.region.items():
            say(f"  {name:<12} {_words(value)}")
        return
    say(f"consistent on {verdict.consistent:.1%} of the points; there (5 to 95 %)")
    for name, value in verdict.region.items():
        if isinstance(value, dict):
            shares = sorted(value.items(), key=lambda item: -item[1])
            say(f"  {name:<12} " + ", ".join(f"{label} {share:.0%}" for label, share in shares))
        elif name in ("active", "total"):
            say(f"  {name:<12} {human_count(value[0])} to {human_count(value[1])}")
        elif isinstance(value, list):
            low, high = RANGES.get(name, (float("nan"), float("nan")))
            say(f"  {name:<12} {value[0]:.3g} to {value[1]:.3g} (drawn from {low:g} to {high:g})")
        else:
            say(f"  {name:<12} {value:.3g}")
