"""The terms of the law of measured steps, one row each: what a parameter multiplies, its unit, what was thought before.

A step's time is `fixed + overlapped(stream, compute)`; a row says which of the three it belongs to. Rows with several
columns (one per weight format) have a parameter for each. A term that an observation states as measured is taken as it
is there, and its columns count nothing: a cost that can be measured is not fitted. Another term is another row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from moegauge.estimator.observation import Observation

# Picoseconds one core takes per weight that lies in its cache, one token: measured on Zen 4 (docs/measuring.md). Of
# records without such a table only the proportions are used, which Zen 5 shares within a fifth (docs/kernels.md).
COSTS = {
    "f32": 60.0,
    "bf16": 42.6,
    "fp8": 41.5,
    "int8": 27.0,
    "int4": 16.6,
    "int4_g128": 16.6,
    "mxfp4": 18.7,
    "mxfp8": 52.3,
    "nvfp4": 22.1,
}


class Summand(StrEnum):
    """Where a term stands in `fixed + (stream^p + compute^p)^(1/p)`."""

    FIXED = "fixed"
    COMPUTE = "compute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One row.

    Attributes:
        name: of the term; of its parameter where it has one column.
        shown: under which name of `Prediction.terms_s` its seconds go.
        part: what it is added to.
        unit: of a parameter.
        columns: of one observation: parameter -> how many units; empty where the observation does not say.
        relative: parameter -> what it costs beside the others of its group, as thought before; a group's parameters are
            shrunk towards a common factor of these. None: no group.
        spread: relative standard deviation of that.
        instead: the parameter, or the group of them, whose mean stands in where no observation showed this one.
        like: the term, as shown, whose cost per multiply-accumulate stands in where no observation showed this one's.
    """

    name: str
    shown: str
    part: Summand
    unit: str
    columns: Callable[[Observation], Mapping[str, float]]
    relative: Callable[[str], float] | None = None
    spread: float = 1.0
    instead: str = ""
    like: str = ""


def cost_of(parameter: str) -> float:
    """What was thought of `mac:FORMAT`: proportional to `COSTS`; an unknown format costs as much as their mean."""
    return COSTS.get(parameter.partition(":")[2], sum(COSTS.values()) / len(COSTS))


TERMS: tuple[Term, ...] = (
    Term(
        name="floor_per_kernel_s",
        shown="kernels",
        part=Summand.FIXED,
        unit="s per kernel boundary",
        columns=lambda o: {"floor_per_kernel_s": o.kernels},
    ),
    Term(
        name="floor_per_layer_s",
        shown="layers",
        part=Summand.FIXED,
        unit="s per layer",
        columns=lambda o: {"floor_per_layer_s": o.layers},
    ),
    Term(
        name="products",
        shown="compute",
        part=Summand.COMPUTE,
        unit="s per multiply-accumulate",
        columns=lambda o: {f"mac:{name}": count for name, count in o.format_macs},
        relative=cost_of,
        spread=0.3,
        instead="seconds_per_mac",
    ),
    Term(
        # A core that decodes waits for some bytes though memory could bring them: where memory is fast, products take
        # longer than the longer of streaming and of the same products in cache.
        name="fetch",
        shown="compute",
        part=Summand.COMPUTE,
        unit="s per byte",
        columns=lambda o: {
            f"fetch:{name}": size for name, size in o.by_format.items() if "products" in dict(o.measured)
        },
        relative=lambda _: 1.0,
        spread=0.5,
    ),
    Term(
        name="seconds_per_mac",
        shown="compute",
        part=Summand.COMPUTE,
        unit="s per multiply-accumulate",
        columns=lambda o: {} if o.format_macs else {"seconds_per_mac": o.macs},
        instead="mac",
    ),
    Term(
        name="attention",
        shown="attention",
        part=Summand.FIXED,
        unit="s per multiply-accumulate",
        columns=lambda o: {"seconds_per_attention_mac": o.attention_macs},
        like="compute",
    ),
)
