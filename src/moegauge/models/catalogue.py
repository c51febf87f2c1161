"""The catalogue of open MoE models: a line of `catalogue.jsonl` holds counts, the whole `ModelShape` and their sources.

Lines are made by `scripts/make_models.py`. A shape is packed: each kind of layer once, the order of the layers as runs
of kinds, a matrix as a list of its fields.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

from moegauge.shape import SCHEMA, Matrix, ModelShape

FILE = "catalogue.jsonl"
# Fields of a line that a table shows, in the order of its columns.
COLUMNS = (
    *("name", "repo", "family", "total", "dense", "routed", "active", "active_without_embedding"),
    *("experts", "top_k", "layers", "moe_layers", "bytes_per_token", "kv_per_context_token", "source"),
)
_MATRIX = tuple(f.name for f in fields(Matrix))


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue.

    Attributes:
        name: the lower-case name that serves wherever a model is asked for.
        repo: its repository on the Hub.
        family: the config's `model_type`.
        total, dense, routed: logical parameters of the text decoder.
        active, active_without_embedding: parameters one token uses, with and without an untied input embedding.
        experts, top_k: of most MoE layers.
        layers, moe_layers: decoder layers, and those with routed experts.
        mtp, beside: parameters of the release's multi-token-prediction layers, and of towers and tables beside them.
        buffers: elements of integer tables beside the parameters (hash routing, stored shapes).
        stored_elements: elements of everything the release's files hold, scales and tables included.
        bytes_per_token: format -> bytes a decode step reads at batch 1 without KV; `native` is as released.
        kv_per_context_token: KV bytes in bf16 per token of context, inside every window; None where unknown.
        source: `config`, where the config came from, and `made`, how its tensors were laid out.
        published: what others publish: `total`, `active`, `hub_total` (None where not seen) and `from`.
        packed: the shape, packed.
    """

    name: str
    repo: str
    family: str
    total: int
    dense: int
    routed: int
    active: int
    active_without_embedding: int
    experts: int
    top_k: int
    layers: int
    moe_layers: int
    mtp: int
    beside: int
    buffers: int
    stored_elements: int
    bytes_per_token: dict[str, int]
    kv_per_context_token: int | None
    source: dict[str, str]
    published: dict[str, Any]
    packed: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """The fields of `COLUMNS`."""
        return {name: getattr(self, name) for name in COLUMNS}

    def shape(self) -> ModelShape:
        """The whole shape.

        Raises:
            ShapeError: the line is damaged.
        """
        source = {"repo": self.repo, **self.source, "command": "python scripts/make_models.py"}
        return ModelShape.from_json({**unpack(self.packed), "name": self.name, "source": source}, self.name)

    def line(self) -> str:
        """The line of `catalogue.jsonl`."""
        return json.dumps({f.name: getattr(self, f.name) for f in fields(self)}, separators=(",", ":"))


@cache
def entries() -> dict[str, Entry]:
    """Name -> entry, in the order of the file."""
    text = (resources.files("moegauge.models") / FILE).read_text(encoding="utf-8")
    found = (Entry(**json.loads(line)) for line in text.splitlines())
    return {entry.name: entry for entry in found}


def find(name: str) -> Entry | None:
    """The entry called `name`, case ignored. A name without its active size serves too where one model answers to it:
    `qwen3.5-397b` is `qwen3.5-397b-a17b`."""
    wanted, known = name.lower(), entries()
    if wanted in known:
        return known[wanted]
    answering = _without_active().get(wanted, [])
    return answering[0] if len(answering) == 1 else None


@cache
def _without_active() -> dict[str, list[Entry]]:
    """Entries by their names without `-a17b`."""
    found: dict[str, list[Entry]] = {}
    for name, entry in entries().items():
        found.setdefault(re.sub(r"-a[\d.]+[bm]$", "", name), []).append(entry)
    return found


def repo_of(target: str) -> str | None:
    """The repository a catalogue name stands for; None for a path that exists and for every other target."""
    entry = None if "/" in target or os.path.lexists(target) else find(target)
    return entry.repo if entry else None


def pack(shape: ModelShape) -> dict[str, Any]:
    """`shape` without its name and source, each kind of layer once."""
    document = shape.to_json()
    kinds: list[Any] = []
    order: list[list[int]] = []
    for layer in document.pop("layers"):
        repeat = layer.pop("repeat")
        if layer not in kinds:
            kinds.append(layer)
        order.append([kinds.index(layer), repeat])
    kept = {k: v for k, v in document.items() if k not in ("schema", "name", "source")}
    return {**_each_matrix(kept, _listed), "kinds": _each_matrix(kinds, _listed), "order": _fold(order)}


def unpack(packed: dict[str, Any]) -> dict[str, Any]:
    """The `moegauge.shape/1` document of a packed shape, without name and source."""
    rest = {k: _each_matrix(v, _named) for k, v in packed.items() if k not in ("kinds", "order")}
    kinds = _each_matrix(packed["kinds"], _named)
    runs = [run for runs, times in packed["order"] for run in runs * times]
    return {"schema": SCHEMA, **rest, "layers": [{"repeat": repeat, **kinds[kind]} for kind, repeat in runs]}


def _fold(order: list[list[int]]) -> list[list[Any]]:
    """Runs of layers as [[runs, times], ...]: [[0, 1], [1, 1], [0, 1], [1, 1]] -> [[[[0, 1], [1, 1]], 2]]."""
    for period in range(1, 7):
        times = len(order) // period
        if times > 1 and order[: period * times] == order[:period] * times:
            rest = order[period * times :]
            return [[order[:period], times], *([[rest, 1]] if rest else [])]
    return [[order, 1]]


def _each_matrix(value: Any, change: Any) -> Any:
    """`value` with `change` applied to every matrix in it, however deep."""
    changed = change(value)
    if changed is not value:
        return changed
    if isinstance(value, dict):
        return {k: _each_matrix(v, change) for k, v in value.items()}
    if isinstance(value, list):
        return [_each_matrix(v, change) for v in value]
    return value


def _listed(value: Any) -> Any:
    """A matrix's object as the list of its fields; anything else as it is."""
    if not (isinstance(value, dict) and "rows" in value and "columns" in value):
        return value
    return [value[name] for name in _MATRIX if name in value]


def _named(value: Any) -> Any:
    """The inverse of `_listed`: only a matrix is a list that begins with a name and a role."""
    if not (isinstance(value, list) and len(value) >= len(_MATRIX) - 1 and isinstance(value[0], str)):
        return value
    return dict(zip(_MATRIX, value, strict=False))


def flat(rows: Iterable[dict[str, Any]]) -> list[dict[str, str | int | None]]:
    """Rows for a flat table: one `bytes_per_token_*` column per format, the source as one text."""
    out = []
    for row in rows:
        cells: dict[str, str | int | None] = {}
        for key, value in row.items():
            if key == "bytes_per_token":
                cells.update({f"bytes_per_token_{form}": size for form, size in value.items()})
            elif key == "source":
                cells[key] = "; ".join(value.values())
            else:
                cells[key] = value
        out.append(cells)
    return out
