"""What is known of open models by name: depth, dense and routed parameters one token uses, experts, cache per token.

`estimator/data/architectures.csv`, one row per architecture, counted from config.json with the kit's own counter where
it holds a routed model. Several released names share a row. A reading finds its row by the longest name that its own
begins with, and only where the total parameters agree: a pruned or renamed relative is not taken for the original.
"""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache

from moegauge.estimator.packaged import packaged

TOTAL_TOLERANCE = 0.12  # published totals are rounded, and some leave out a vision tower


@dataclass(frozen=True, slots=True)
class KnownArchitecture:
    """One row.

    Attributes:
        name: the first of its names.
        layers: decoder layers.
        total: parameters of the decoder.
        dense, routed: parameters one token uses: in always-active matrices without the input embedding, in experts.
        expansion: experts over experts per token; 1 without experts.
        kv_heads: key/value heads, 1 of a latent cache (MLA); None where no reading on several devices asks for it.
        kv_elements: cached per token of context by the layers that see all of it.
        local_kv_elements, window: by the layers that see `window` tokens, and that window.
        recurrent: share of the layers whose mixer keeps a state instead of a cache.
    """

    name: str
    layers: int
    total: float
    dense: float
    routed: float
    expansion: float
    kv_heads: int | None
    kv_elements: float
    local_kv_elements: float
    window: float
    recurrent: float

    def cache_elements(self, context: float) -> float:
        """Elements one decode step reads of one stream's cache of `context` tokens."""
        return self.kv_elements * context + self.local_kv_elements * min(context, self.window)

    def cache_copies(self, devices: float) -> float:
        """How often tensor-parallel devices hold a cache between them; see `parallel.cache_copies`."""
        return devices / min(devices, self.kv_heads) if self.kv_heads else 1.0


@lru_cache(maxsize=1)
def _table() -> dict[str, KnownArchitecture]:
    found = {}
    for row in csv.DictReader(io.StringIO(packaged("architectures.csv"))):
        names = row["names"].split("|")
        known = KnownArchitecture(
            name=names[0],
            layers=int(row["layers"]),
            total=float(row["total"]),
            dense=float(row["dense"]),
            routed=float(row["routed"]),
            expansion=int(row["experts"]) / int(row["top_k"]) if row["experts"] else 1.0,
            kv_heads=int(row["kv_heads"]) if row["kv_heads"] else None,
            kv_elements=float(row["kv_elements"]),
            local_kv_elements=float(row["local_kv_elements"]),
            window=float(row["window"] or 0),
            recurrent=float(row["recurrent"]),
        )
        found.update(dict.fromkeys(names, known))
    return found


def architectures() -> list[KnownArchitecture]:
    """Every row once."""
    return list(dict.fromkeys(_table().values()))


def find(key: str, total: float | None = None) -> KnownArchitecture | None:
    """The row of a model.

    Args:
        key: `Reading.key`.
        total: its total parameters, checked when given.
    """
    table = _table()
    words = key.split("-")
    for n in range(len(words), 0, -1):
        known = table.get("-".join(words[:n])) or table.get("-".join(words[:n]).split(".q", 1)[0])
        if known is not None:
            agrees = total is None or abs(total / known.total - 1) <= TOTAL_TOLERANCE
            return known if agrees else None
    return None


def kept_apart(key: str, total: float | None = None) -> bool:
    """Which part of the readings packaged in round two a model belongs to: True is never fitted to and only judges.

    The parity of the first byte of the SHA-256 of the architecture's name (of the key where none is known). Every
    reading of a model is on one side, whatever system ran it. Fixed before the first fit.
    """
    known = find(key, total)
    return hashlib.sha256((known.name if known else key).encode()).digest()[0] % 2 == 0
