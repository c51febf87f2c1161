"""Which experts a step's tokens choose: uniform, Zipf-skewed, or a recorded trace.

A law becomes a table of priors [B, E] per layer. Choosing the k largest of log p_e + Gumbel noise draws k experts
without replacement with probabilities proportional to p (Gumbel-top-k); the router's logits are added with a small gain
(`Route.GAIN`), so the choice still waits for them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moegauge.errors import UsageError

CHOSEN = 1e6  # prior of an expert a trace names: beyond any logit


class Routing:
    """A routing law.

    Args:
        law: `uniform`, `zipf:S` (probability of the r-th expert proportional to r^-S, the order of experts drawn per
            layer), or `trace:FILE` (JSON: [step or layer][token][expert ids], used round and round).

    Raises:
        UsageError: another law, an exponent that is no positive number, or a trace that cannot be used.
    """

    def __init__(self, law: str = "uniform") -> None:
        self.law = law
        self.exponent = 0.0
        self.trace: list[list[list[int]]] | None = None
        kind, _, argument = law.partition(":")
        if kind == "zipf":
            try:
                self.exponent = float(argument or "1")
            except ValueError:
                self.exponent = -1.0
            if not 0 < self.exponent < 10:
                raise UsageError(
                    f"routing '{law}': the exponent must be a number between 0 and 10.", advice="Try zipf:1."
                )
        elif kind == "trace" and argument:
            self.trace = _read_trace(Path(argument))
        elif law != "uniform":
            raise UsageError(f"unknown routing '{law}'.", advice="Known: uniform, zipf:S, trace:FILE.")

    def prior(self, layer: int, batch: int, experts: int, top_k: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Priors [batch, experts] of one layer of one step.

        Raises:
            UsageError: the trace names an expert this layer does not have, or too few for a token.
        """
        prior = rng.gumbel(size=(batch, experts))
        if self.exponent:
            prior += (-self.exponent * np.log(np.arange(1, experts + 1)))[rng.permutation(experts)]
        if self.trace is not None:
            tokens = self.trace[layer % len(self.trace)]
            for b in range(batch):
                chosen = tokens[b % len(tokens)][:top_k]
                if len(set(chosen)) < top_k or max(chosen) >= experts or min(chosen) < 0:
                    raise UsageError(
                        f"routing '{self.law}': entry {layer % len(self.trace)}, token {b % len(tokens)} must name "
                        f"{top_k} different experts below {experts}.",
                        advice="Record the trace with this model.",
                    )
                prior[b, chosen] = CHOSEN
        return prior.astype(np.float32)


def _read_trace(path: Path) -> list[list[list[int]]]:
    try:
        trace = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(trace, list)
        assert trace
        for tokens in trace:
            assert tokens
            assert all(isinstance(e, int) for token in tokens for e in token)
    except (OSError, ValueError, TypeError, AssertionError, RecursionError):
        raise UsageError(
            f"{path}: not a routing trace.", advice="It must be JSON: [layer][token][expert ids], none empty."
        ) from None
    return trace
