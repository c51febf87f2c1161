"""One timed decode step as the law of measured steps sees it: bytes, counts, seconds, and the roof beside it."""

from __future__ import annotations

from dataclasses import dataclass

from moegauge.errors import ObservationError

MAX_SECONDS = 1e5  # of one step: more than a day is a unit slip
MAX_BYTES = 1e16  # 10 PB a step: likewise
MAX_ROOF = 1e16  # bytes/s
MAX_COUNT = 1e18  # of kernels, layers or multiply-accumulates of one step


@dataclass(frozen=True, slots=True)
class Observation:
    """One timed decode step.

    Attributes:
        model: the model's name; leaving a model out leaves all its observations out.
        bytes: bytes the step read, scales and KV included.
        seconds: time of the step.
        roof_bytes_per_s: read roof measured beside it.
        kernels: kernel boundaries of the step.
        layers: decoder layers of the step.
        macs: multiply-accumulates of the step; 0 when not stated.
        attention_macs: those of `macs` that are attention over the cache: softmax makes them dearer, and an absorbed
            MLA does 30 times as many per cached byte as GQA.
        format, batch, context: labels.
        format_macs: those of `macs` with weights, by the weight's format; empty when not stated.
        parts: bytes by format, e.g. (("mxfp4", 2.0e9), ("bf16", 1.2e9)); what `bytes` has beyond them, and what is
            called `kv:...`, streams at efficiency 1. Empty means all of `bytes` in `format`.
        measured: seconds of this step by term of `moegauge.estimator.terms`, where what the term counts was measured
            apart from any step.
    """

    model: str
    bytes: float
    seconds: float
    roof_bytes_per_s: float
    kernels: int = 0
    layers: int = 0
    macs: float = 0.0
    format: str = ""
    batch: int = 1
    context: int = 0
    parts: tuple[tuple[str, float], ...] = ()
    attention_macs: float = 0.0
    format_macs: tuple[tuple[str, float], ...] = ()
    measured: tuple[tuple[str, float], ...] = ()

    @property
    def by_format(self) -> dict[str, float]:
        """Bytes of weights by format."""
        if not self.parts:
            return {self.format: self.bytes}
        return {name: size for name, size in self.parts if not name.startswith("kv:")}

    def check(self, where: str) -> None:
        """Refuse zero, negative, NaN and absurd values.

        Raises:
            ObservationError: naming `where` and the field.
        """
        limits = (("bytes", MAX_BYTES), ("seconds", MAX_SECONDS), ("roof_bytes_per_s", MAX_ROOF))
        for name, limit in limits:
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value <= limit):
                raise ObservationError(f"{where}: {name} is {value!r}, not above 0 and at most {limit:.0e}.")
        for name in ("kernels", "layers", "macs", "attention_macs"):
            value = getattr(self, name)
            if not 0 <= value <= MAX_COUNT:
                raise ObservationError(f"{where}: {name} is {value!r}, not a count.")
        sizes = self.by_format.values()
        if not (all(0 <= v <= MAX_BYTES for v in sizes) and sum(sizes) <= 1.01 * self.bytes):
            raise ObservationError(
                f"{where}: bytes by format {self.by_format} are more than its {self.bytes:.6g} bytes."
            )
