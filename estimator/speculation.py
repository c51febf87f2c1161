"""What drafted tokens cost: the speculation term of the law, fitted to published speeds with and without a draft.

    speed-up = tokens per step x time of a plain step / (time of the step that verifies + drafted x time of a draft)

The step that verifies is one of 1 + drafted tokens of one stream (`additive`); a draft is one layer and the head, which
a stack runs e^draft times as long as the law has it (its own launches, sampling, a cache to update). `draft` is one
constant, normal about 0 before any fit. Of `data/throughput_speculative.csv` those readings are fitted to whose
architecture `kept_apart` does not keep; a reading can be used where a plain speed of the same model stands on the same
devices beside it and tokens per step are stated.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from moegauge.estimator import additive, hierarchy
from moegauge.estimator.additive import TokenStep, TokenSteps
from moegauge.estimator.architectures import find, kept_apart
from moegauge.estimator.packaged import packaged
from moegauge.estimator.readings import Skipped
from moegauge.units import GB

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

PRIOR_DEVIATION = 1.0  # of the log constant `draft`
NOISE = 0.08  # least standard deviation of log(speed-up): verifying steps leave the law by about as much


@dataclass(frozen=True, slots=True)
class Drafted:
    """A published speed with drafted tokens and the plain one beside it.

    Attributes:
        line: of the drafted row; system, device, model: as given; architecture: its known name, or the model's.
        kept: whether it is kept apart from the fit.
        step: the plain step; draft: one layer, the projection that joins two states, and the head.
        tokens: drafted before each step; yields: tokens a step yields.
        speed_up: drafted speed over the plain one.
        source: where it was published.
    """

    line: int
    system: str
    device: str
    model: str
    architecture: str
    kept: bool
    step: TokenStep
    draft: TokenStep
    tokens: int
    yields: float
    speed_up: float
    source: str


@dataclass(frozen=True, slots=True)
class Speculation:
    """The fitted constant.

    Attributes:
        log_cost: mean of log(time of a draft over the law's of one layer and the head); deviation: of it.
        noise: standard deviation of log(speed-up) beside it.
        readings: how many it was fitted to; models: of how many models.
    """

    log_cost: float
    deviation: float
    noise: float
    readings: int
    models: int

    @property
    def cost(self) -> float:
        """What a draft's time by the law is multiplied by."""
        return math.exp(self.log_cost)

    def predict(self, row: Drafted) -> tuple[float, float]:
        """(speed-up, standard deviation of its logarithm): that of the constant, of the law's there, and of the model's
        own slowing with the tokens of a step."""
        import numpy as np

        posterior = hierarchy.fitted()
        mean, covariance = posterior.of_group(_place(row))
        value = log_speed_up(row, self.log_cost, mean)
        step = 1e-4
        slope = (log_speed_up(row, self.log_cost + step, mean) - value) / step
        moved = mean + step * np.eye(len(mean))
        slopes = np.array([log_speed_up(row, self.log_cost, at) - value for at in moved]) / step
        own = posterior.spreads.model_batch * math.log2(1 + row.tokens)
        variance = self.noise**2 + (slope * self.deviation) ** 2 + float(slopes @ covariance @ slopes) + own**2
        return math.exp(value), math.sqrt(variance)


def log_speed_up(row: Drafted, log_cost: float, constants: Array) -> float:
    """Log of the speed-up where a draft costs e^log_cost times what the law has."""
    verified = replace(row.step, streams=1.0 + row.tokens)
    plain, verify, draft = additive.seconds(constants, TokenSteps.of([row.step, verified, row.draft]))
    return math.log(row.yields * float(plain) / (float(verify) + row.tokens * math.exp(log_cost) * float(draft)))


def _place(row: Drafted) -> hierarchy.Case:
    return hierarchy.Case(
        step=row.step,
        group=f"{row.system}|{row.device}",
        family=hierarchy.family_of(row.system),
        device=hierarchy.device_of(row.device),
        model=row.architecture,
        context=0.0,
    )


def fit(rows: Sequence[Drafted]) -> Speculation:
    """The constant by maximum a posteriori likelihood on a grid, and its curvature; the prior without rows."""
    import numpy as np

    grid = np.linspace(-4 * PRIOR_DEVIATION, 4 * PRIOR_DEVIATION, 161)
    at = [hierarchy.fitted().of_group(_place(r))[0] for r in rows]
    off = np.array(
        [[math.log(r.speed_up) - log_speed_up(r, float(d), x) for r, x in zip(rows, at, strict=True)] for d in grid]
    )
    misses = np.square(off / NOISE).sum(axis=1) if rows else np.zeros_like(grid)
    mass = np.exp(-0.5 * (misses - misses.min() + np.square(grid / PRIOR_DEVIATION)))
    mean = float(np.average(grid, weights=mass))
    deviation = math.sqrt(float(np.average(np.square(grid - mean), weights=mass)))
    left = off[int(np.argmax(mass))] if rows else np.zeros(1)
    noise = max(NOISE, float(np.sqrt(np.mean(np.square(left)))))
    return Speculation(mean, deviation, noise, len(rows), len({r.architecture for r in rows}))


@lru_cache(maxsize=1)
def fitted() -> Speculation:
    """From the rows of the packaged file that are not kept apart."""
    return fit([r for r in read()[0] if not r.kept])


def judge() -> list[tuple[Drafted, Speculation]]:
    """Every usable row and the constant it is judged by: fitted to the fit part without its own model."""
    rows, _ = read()
    return [(r, fit([o for o in rows if not o.kept and o.architecture != r.architecture])) for r in rows]


def read() -> tuple[list[Drafted], list[Skipped]]:
    """Usable rows of the packaged file, and the others with why not."""
    table = list(enumerate(csv.DictReader(io.StringIO(packaged("throughput_speculative.csv"))), start=2))
    plain = {_same(row): float(row["tokens_per_s"]) for _, row in table if row["draft_tokens"] == "0"}
    rows, skipped = [], []
    for line, row in table:
        if row["draft_tokens"] == "0":
            continue
        why = ""
        if _same(row) not in plain:
            why = "no speed without a draft on the same devices"
        elif not row["tokens_per_step"]:
            why = "neither acceptance nor tokens per step are stated"
        elif "CPUs" in row["note"]:
            why = f"not one memory: {row['note']}"
        if why:
            skipped.append(Skipped(line, row["model"], why))
        else:
            rows.append(_drafted(line, row, plain[_same(row)]))
    return rows, skipped


def _same(row: dict[str, str]) -> tuple[str, ...]:
    return row["model"], row["system"], row["device"], row["n_devices"]


def _drafted(line: int, row: dict[str, str], plain: float) -> Drafted:
    key = row["model"].lower().split(" ")[0]
    known = find(key)
    dense, routed, layers = (float(row[name]) for name in ("dense_params", "routed_params", "layers"))
    head = float(row["head_params"])
    step = TokenStep(
        layers=layers,
        dense=dense,
        routed=routed,
        expansion=float(row["experts"]) / float(row["top_k"]) if row["experts"] else 1.0,
        dense_bits=float(row["dense_bits"]),
        routed_bits=float(row["routed_bits"]),
        kv_bytes=0.0,
        streams=1.0,
        devices=float(row["n_devices"]),
        bandwidth=float(row["device_bandwidth_GBps"]) * GB,
        moe=float(routed > 0),
        recurrent=float(row["recurrent"]),
        quantised=hierarchy.quantised(row["format"]),
    )
    join = 2 * float(row["hidden"]) ** 2
    return Drafted(
        line=line,
        system=row["system"],
        device=row["device"],
        model=row["model"],
        architecture=known.name if known else key,
        kept=kept_apart(key),
        step=step,
        draft=replace(step, layers=1.0, dense=(dense - head) / layers + join + head, routed=routed / layers),
        tokens=int(row["draft_tokens"]),
        yields=float(row["tokens_per_step"]),
        speed_up=float(row["tokens_per_s"]) / plain,
        source=row["source"],
    )
