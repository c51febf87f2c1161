"""Devices that serve one model together: tensor, expert and pipeline parallelism, and whether the model fits them.

One stream passes every layer in turn. Tensor-parallel devices (tp) read a layer's matrices together and then sum their
parts (all-reduce), so a stream gets faster until the all-reduces take what the bytes gave. Pipeline-parallel stages
(pp) hold different layers and wait for each other: they pool memory and serve further streams, and one stream gets no
faster. Expert parallelism (ep) deals whole experts to `ep` parts of a tensor-parallel group, and a layer waits for the
part that holds most of the chosen ones (`imbalance`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from moegauge.errors import UsageError
from moegauge.estimator.traffic import KV_BYTES, layer_traffic, weight_bytes
from moegauge.hardware import Device
from moegauge.shape import Attention, ModelShape

MAX_DEVICES = 4096


@dataclass(frozen=True, slots=True)
class Parallel:
    """How a model is spread over devices.

    Attributes:
        tp: devices that share every layer.
        ep: parts that the experts are dealt into, whole; divides `tp`; 1 splits every expert.
        pp: stages, each with some of the layers.
    """

    tp: int = 1
    ep: int = 1
    pp: int = 1

    @property
    def world(self) -> int:
        """Devices: tp x pp."""
        return self.tp * self.pp

    @classmethod
    def parse(cls, text: str) -> Parallel:
        """`tp=8,ep=8,pp=2`, in any order; what is left out is 1.

        Raises:
            UsageError: not of that form, out of range, or ep does not divide tp.
        """
        found: dict[str, int] = {}
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            if name not in ("tp", "ep", "pp") or name in found or not (value.isascii() and value.isdigit()):
                raise UsageError(f"--parallel has '{part.strip()}'.", advice="Example: --parallel tp=8,ep=8,pp=2")
            found[name] = int(value[:9])
        return cls(**found).checked()

    def checked(self) -> Parallel:
        """Itself.

        Raises:
            UsageError: out of range, or ep does not divide tp.
        """
        if min(self.tp, self.ep, self.pp) < 1 or self.world > MAX_DEVICES:
            raise UsageError(f"devices is {self.world}, not between 1 and {MAX_DEVICES}.")
        if self.tp % self.ep:
            raise UsageError(f"ep is {self.ep}, which does not divide tp, {self.tp}.")
        return self

    def check(self, shape: ModelShape) -> None:
        """Refuse what a model cannot be spread over.

        Raises:
            UsageError: more stages than layers, or experts that cannot be dealt into `ep` equal parts.
        """
        if self.pp > len(shape.layers):
            raise UsageError(f"pp is {self.pp}, and {shape.name} has {len(shape.layers)} layers.")
        pools = {pool.count for layer in shape.layers for pool in layer.experts}
        if self.ep > 1 and not pools:
            raise UsageError(f"ep is {self.ep}, and {shape.name} has no experts.")
        for count in sorted(pools):
            if count % self.ep:
                raise UsageError(f"ep is {self.ep}, which does not divide the {count} experts of {shape.name}.")

    def __str__(self) -> str:
        sizes = {"tp": self.tp, "ep": self.ep, "pp": self.pp}
        return ", ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)


def imbalance(shape: ModelShape, tokens: int, ep: int) -> float:
    """Routed bytes of the part of the devices that reads most, over the mean: what `ep` makes a layer wait.

    Expected over uniform routing: any set of as many distinct experts as `tokens` tokens choose is as likely.
    """
    sizes, waits = 0.0, 0.0
    for layer in shape.layers:
        for pool in layer.experts:
            chosen = round(pool.coverage(tokens))
            sizes += pool.expert_bytes * chosen
            waits += pool.expert_bytes * most_on_one(pool.count, chosen, ep) * ep
    return waits / sizes if sizes else 1.0


@lru_cache(maxsize=256)
def most_on_one(experts: int, chosen: int, parts: int) -> float:
    """Expected largest number of chosen experts in one of `parts` equal parts; any set of `chosen` is as likely.

    P(largest <= m) is the coefficient of x^chosen in the product over parts of binomials cut off at m, over the same of
    whole ones: binomial counts given their sum are hypergeometric.
    """
    import numpy as np

    if parts == 1 or chosen >= experts:
        return chosen / parts
    each, share = experts // parts, chosen / experts
    binomial = np.array([math.comb(each, j) * share**j * (1 - share) ** (each - j) for j in range(each + 1)])

    def below(most: int) -> float:
        held = np.ones(1)
        for _ in range(parts):
            held = np.convolve(held, binomial[: most + 1])[: chosen + 1]
        return float(held[chosen]) if len(held) > chosen else 0.0

    whole = below(each)
    return sum(1 - below(m) / whole for m in range(min(each, chosen)))


@dataclass(frozen=True, slots=True)
class Fits:
    """Whether a model fits.

    Attributes:
        devices: the fewest devices whose memory holds the weights; None where memory is not known.
        kv_tokens: tokens of context, of all streams together, that fit beside the weights on the devices there are; 0
            where the weights do not fit; None where memory is not known or nothing is cached.
        weight_bytes: of the whole model.
        memory: bytes of all devices there are; None where it is not known.
    """

    devices: int | None
    kv_tokens: int | None
    weight_bytes: int
    memory: float | None

    def to_json(self) -> dict[str, Any]:
        """The field `fits` of `moegauge predict --json`."""
        return {"devices": self.devices, "kv_tokens": self.kv_tokens, "fit": self.fit}

    @property
    def fit(self) -> bool | None:
        """Whether the weights fit the devices there are; None where memory is not known."""
        return None if self.memory is None else self.weight_bytes <= self.memory

    def sentence(self, world: int) -> str:
        """One line."""
        size = f"weights {self.weight_bytes / 1e9:.0f} GB"
        if self.memory is None or self.devices is None:
            return f"{size}; the memory of the device is not known"
        have = f"{world} {'device has' if world == 1 else 'devices have'} {self.memory / 1e9:.0f} GB"
        if world < self.devices:
            return f"{size} do not fit: {have}, {self.devices} would do"
        left = "" if self.kv_tokens is None else f", KV of {self.kv_tokens:,} tokens beside them"
        return f"{size} fit: {have}, {self.devices} would do{left}"


def fits(shape: ModelShape, device: Device | None, parallel: Parallel, kv_format: str = "bf16") -> Fits:
    """Whether the weights fit the devices, and what is left for caches.

    A cache is split over tensor-parallel devices by its key/value heads, of which latent attention (MLA) has one: what
    cannot be split is held by every device. Windows and recurrent states are of fixed size a stream and left out.

    Args:
        shape: the model in the formats served; device: of each; parallel: how many and how.
        kv_format: as in `traffic.step_traffic`.
    """
    weights = weight_bytes(shape)
    if device is None or device.memory is None:
        return Fits(None, None, weights, None)
    memory = device.memory * parallel.world
    each = sum(
        layer.attention.cache_elements * KV_BYTES[kv_format] / cache_parts(layer.attention, parallel.tp)
        for layer in shape.layers
        if layer.attention.window is None
    )
    room = max(device.memory - weights / parallel.world, 0.0)
    tokens = int(room // (each / parallel.pp)) if each else None
    return Fits(math.ceil(weights / device.memory), tokens, weights, memory)


def cache_parts(attention: Attention, tp: int) -> int:
    """Devices of a tensor-parallel group among which one layer's cache is split."""
    return max(min(tp, attention.kv_heads), 1)


def cached_bytes(shape: ModelShape, tp: int, *, batch: int, context: int, kv_format: str = "bf16") -> float:
    """Bytes of caches and recurrent states that `tp` tensor-parallel devices hold and read for `batch` streams.

    Each rank holds at least one key/value head, so that a latent cache (MLA, one head) is held `tp` times and one of
    four heads on eight devices twice: vLLM (`deepseek_v2.py`: fewer heads than ranks are replicated) and SGLang's
    documentation of data-parallel attention, which is what holds them once. Recurrent states are split by their heads.
    """
    return sum(
        layer_traffic(layer, batch, context, kv_format).kv_bytes * cache_copies(layer.attention, tp)
        for layer in shape.layers
    )


def cache_copies(attention: Attention, tp: int) -> float:
    """How often a tensor-parallel group holds one layer's cache between them."""
    return tp / cache_parts(attention, tp) if attention.cache_elements else 1.0
