"""Seconds a step's products and attention take by what they cost in cache, as its record measured it (`in_cache`)."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean

from moegauge.estimator.traffic import format_macs, format_passes, layer_attention_macs
from moegauge.formats import FORMATS
from moegauge.record import AttentionInCache, InCache, Record
from moegauge.shape import Attention, ModelShape
from moegauge.units import GB


class CacheCosts:
    """Costs in cache of one record.

    Args:
        record: with or without measurements in cache.
        threads: cores that work at a step.
    """

    def __init__(self, record: Record, threads: int | None) -> None:
        self._products = {row.format: row for row in record.in_cache}
        self._attention = record.attention_in_cache
        self._threads = threads or max((row.threads for row in record.in_cache), default=1)

    def measured(
        self,
        shape: ModelShape,
        *,
        batch: int,
        context: int,
        distinct: float | None = None,
    ) -> tuple[tuple[str, float], ...]:
        """Seconds of a step by term of `moegauge.estimator.terms`, of those terms that were measured.

        Args:
            shape: the model in the formats its matrices are read in.
            batch, context: tokens of the step, and cached ones.
            distinct: distinct experts read per pool, where counted; None expects uniform routing.
        """
        found = []
        macs = format_macs(shape, batch=batch)
        if all(name in self._products for name in macs):
            found.append(("products", self._multiply(shape, macs, batch, distinct)))
        if context and self._attention:
            each = [
                layer_attention_macs(layer.attention, context) * self._ps_per_mac(layer.attention)
                for layer in shape.layers
            ]
            found.append(("attention", batch * sum(each) * 1e-12 / self._threads))
        return tuple(found)

    def _multiply(self, shape: ModelShape, macs: Mapping[str, float], batch: int, distinct: float | None) -> float:
        """A weight is decoded once for every `tile` tokens it meets, and multiplied with each of them."""
        seconds = 0.0
        for name, count in macs.items():
            row = self._products[name]
            one, whole = _seconds_per_weight(row, row.gb_per_s_per_core), 0.0
            multiply = one
            if row.tile > 1 and row.tile_gb_per_s_per_core:
                whole = _seconds_per_weight(row, row.tile_gb_per_s_per_core)
                multiply = max(0.0, (whole - one) / (row.tile - 1))
            passes = format_passes(shape, batch=batch, tile=row.tile, distinct=distinct)[name]
            seconds += (one - multiply) * passes + multiply * count
        return seconds / self._threads

    def _ps_per_mac(self, attention: Attention) -> float:
        """Of the geometry itself where it was measured, else the mean of its kind, else of all."""
        same = [row.ps_per_mac for row in self._attention if _geometry(row) == _geometry(attention)]
        alike = [row.ps_per_mac for row in self._attention if row.kind == attention.kind]
        return mean(same or alike or [row.ps_per_mac for row in self._attention])


def _seconds_per_weight(row: InCache, gb_per_s: float) -> float:
    return FORMATS[row.format].bytes_per_parameter / (gb_per_s * GB)


def _geometry(of: Attention | AttentionInCache) -> tuple[object, ...]:
    return of.kind, of.heads, of.kv_heads, of.head_dim, of.value_dim
