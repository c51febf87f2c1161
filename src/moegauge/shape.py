"""`ModelShape`: what one decode step of a model multiplies by, layer by layer.

The only thing that crosses from counting to predicting and measuring; a published model and a made-up one are the same
type.

It holds no names of tensors and no weights. It is JSON on disk (schema `moegauge.shape/1`), where equal neighbouring
layers are written once with a `repeat`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from moegauge import outfile
from moegauge.errors import ShapeError
from moegauge.formats import FORMATS, get_format
from moegauge.limits import NAME_LIMIT_CHARACTERS, SHAPE_LAYERS, SHAPE_LIMIT_BYTES, SHAPE_NUMBER
from moegauge.regular import read_file
from moegauge.text import is_text, shown

SCHEMA = "moegauge.shape/1"

# Roles whose matrices change format under `--format`; router, head, embedding and norms keep the released one, as
# every released FP8 / FP4 / INT4 checkpoint does.
QUANTISED_ROLES = frozenset({"attention", "dense_mlp", "shared_expert", "routed_expert"})

ATTENTION_KINDS = frozenset({"gqa", "mla", "linear", "none"})


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of a decode step: y[rows] = W[rows, columns] x[columns].

    Attributes:
        name: the field's usual short name, e.g. `q_proj`, `gate_proj`, `lm_head`.
        role: the role it is counted under, e.g. `attention`, `routed_expert`.
        rows, columns: outputs and inputs.
        format: a row of `moegauge.formats.FORMATS`.
        stored_bytes: bytes in the checkpoint, scales included, where its storage layout is not exactly that row
            (zero points, another scale type); None means exactly the row's bytes.
    """

    name: str
    role: str
    rows: int
    columns: int
    format: str
    stored_bytes: int | None = None

    @property
    def parameters(self) -> int:
        """Logical weights."""
        return self.rows * self.columns

    @property
    def bytes(self) -> int:
        """Bytes one product reads: as stored where known, else as the format's row says."""
        if self.stored_bytes is not None:
            return self.stored_bytes
        return get_format(self.format).bytes(self.rows, self.columns)


@dataclass(frozen=True, slots=True)
class Vectors:
    """What a layer (or one expert) has beside its matrices: norms, biases, small state. Counts only."""

    parameters: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Attention:
    """What a layer mixes tokens with.

    Attributes:
        kind: `gqa` (also MHA and MQA), `mla` (multi-head latent attention, absorbed), `linear` (recurrent state, no
            growing cache), `none`.
        heads, kv_heads: query heads, key/value heads (`mla`: 1).
        head_dim: width of a query/key head (`mla`: kv_lora_rank + qk_rope_head_dim, the width absorbed heads see).
        value_dim: width of a value head (`mla`: kv_lora_rank).
        cache_elements: elements this layer caches per token of context.
        window: tokens a step looks back at most; None is all of them.
        state_elements: elements of recurrent state read and written each step.
        matrices: its projections, in the order a step runs them.
    """

    kind: str
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    cache_elements: int = 0
    window: int | None = None
    state_elements: int = 0
    matrices: tuple[Matrix, ...] = ()


@dataclass(frozen=True, slots=True)
class Experts:
    """A pool of routed experts, of which a token uses `top_k`.

    Attributes:
        count: routed experts in the pool.
        top_k: experts a token uses.
        matrices: the matrices of one expert, e.g. gate_proj, up_proj, down_proj.
        vectors: biases of one expert.
    """

    count: int
    top_k: int
    matrices: tuple[Matrix, ...]
    vectors: Vectors = field(default_factory=Vectors)

    @property
    def gated(self) -> bool:
        """True when an expert has a gate beside its up projection (three matrices)."""
        return len(self.matrices) == 3

    @property
    def expert_parameters(self) -> int:
        """Logical parameters of one expert."""
        return sum(m.parameters for m in self.matrices) + self.vectors.parameters

    @property
    def expert_bytes(self) -> int:
        """Bytes one expert's products read."""
        return sum(m.bytes for m in self.matrices) + self.vectors.bytes

    def coverage(self, batch: int) -> float:
        """Expected distinct experts at `batch` tokens under uniform routing: E (1 - (1 - k/E)^B)."""
        return self.count * (1.0 - (1.0 - self.top_k / self.count) ** batch)


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: attention, then the matrices every token uses (dense MLP, shared experts, router, latent
    projections), then the routed pools.

    Attributes:
        attention: the token mixer with its projections.
        matrices: every other matrix all tokens use, in step order, told apart by role.
        experts: routed pools; empty for a dense layer.
        vectors: norms, biases and other small parameters of the layer (not those of routed experts).
    """

    attention: Attention
    matrices: tuple[Matrix, ...] = ()
    experts: tuple[Experts, ...] = ()
    vectors: Vectors = field(default_factory=Vectors)

    @property
    def dense_matrices(self) -> Iterator[Matrix]:
        """The matrices every token reads, attention's first."""
        yield from self.attention.matrices
        yield from self.matrices


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model as a decode step sees it.

    Attributes:
        name: lower-case short name, e.g. `deepseek-v3`.
        family: the config's `model_type`.
        hidden: width of the residual stream.
        embedding: the input table, [vocabulary, hidden]; a step reads one row of it.
        head: the LM head; None when it is tied to the embedding (the table is then read whole, as the head).
        layers: in order, expanded.
        vectors: final norm and anything else outside the layers.
        source: where it came from: repo, commit, command.
        mtp_parameters: of the multi-token-prediction layers its release holds beside `layers`, with which a server can
            draft tokens; a plain decode step reads none of them.

    Raises:
        ShapeError: an impossible model: widths that do not chain, heads or experts that contradict each other.
    """

    name: str
    family: str
    hidden: int
    embedding: Matrix
    head: Matrix | None
    layers: tuple[Layer, ...]
    vectors: Vectors = field(default_factory=Vectors)
    source: dict[str, str] = field(default_factory=dict)
    mtp_parameters: int = 0

    def __post_init__(self) -> None:
        for where, what in _contradictions(self):
            raise ShapeError(f"{self.name}: {where} {what}.", advice="See docs/architecture.md for the schema.")

    @property
    def moe_layers(self) -> int:
        """Layers with at least one routed pool."""
        return sum(1 for layer in self.layers if layer.experts)

    @property
    def head_matrix(self) -> Matrix:
        """The matrix the last product reads: the head, or the tied embedding."""
        return self.head or replace(self.embedding, name="lm_head", role="lm_head")

    @property
    def routed_parameters(self) -> int:
        """Parameters of all routed experts."""
        return sum(e.count * e.expert_parameters for layer in self.layers for e in layer.experts)

    @property
    def dense_parameters(self) -> int:
        """Parameters of the decoder every token uses: embedding, head, attention, dense and shared MLPs, routers,
        norms, biases."""
        total = self.embedding.parameters + (self.head.parameters if self.head else 0) + self.vectors.parameters
        for layer in self.layers:
            total += layer.vectors.parameters + sum(m.parameters for m in layer.dense_matrices)
        return total

    @property
    def total_parameters(self) -> int:
        """Dense and routed."""
        return self.dense_parameters + self.routed_parameters

    @property
    def routed_active_parameters(self) -> int:
        """Parameters of the routed experts one token uses."""
        return sum(e.top_k * e.expert_parameters for layer in self.layers for e in layer.experts)

    @property
    def active_parameters(self) -> int:
        """Dense plus the routed experts one token uses; the input embedding is included."""
        return self.dense_parameters + self.routed_active_parameters

    @property
    def active_without_embedding(self) -> int:
        """`active_parameters` without an untied input embedding, of which a step reads one row."""
        return self.active_parameters - (self.embedding.parameters if self.head else 0)

    @property
    def dense_bytes(self) -> int:
        """Bytes of what every step reads at batch 1 whatever the routing; the embedding as one row."""
        row = self.embedding.bytes // self.embedding.rows
        total = row + self.head_matrix.bytes + self.vectors.bytes
        for layer in self.layers:
            total += layer.vectors.bytes + sum(m.bytes for m in layer.dense_matrices)
        return total

    @property
    def routed_bytes(self) -> int:
        """Bytes of the routed experts one token reads."""
        return sum(e.top_k * e.expert_bytes for layer in self.layers for e in layer.experts)

    @property
    def bytes_per_token(self) -> int:
        """Bytes one decode step reads at batch 1, no KV."""
        return self.dense_bytes + self.routed_bytes

    def cache_elements(self, context: int) -> int:
        """KV elements one step reads per sequence at `context` tokens, windows applied."""
        return sum(
            layer.attention.cache_elements
            * (context if layer.attention.window is None else min(context, layer.attention.window))
            for layer in self.layers
        )

    def cast(self, format: str) -> ModelShape:
        """This model with its attention, MLP and expert matrices in `format`; `native` is this model itself.

        The one place where a model meets a format: cast once, then everything reads formats off the matrices.

        Router, head, embedding and vectors keep their released format (see `QUANTISED_ROLES`).

        Raises:
            UnknownNameError: no such format.
        """
        if format == "native":
            return self
        get_format(format)

        def recast(matrices: Iterable[Matrix]) -> tuple[Matrix, ...]:
            return tuple(
                replace(m, format=format, stored_bytes=None) if m.role in QUANTISED_ROLES else m for m in matrices
            )

        layers = tuple(
            replace(
                layer,
                attention=replace(layer.attention, matrices=recast(layer.attention.matrices)),
                matrices=recast(layer.matrices),
                experts=tuple(replace(e, matrices=recast(e.matrices)) for e in layer.experts),
            )
            for layer in self.layers
        )
        return replace(self, layers=layers)

    def to_json(self) -> dict[str, Any]:
        """The JSON document, equal neighbouring layers folded into one with `repeat`."""
        document: dict[str, Any] = {"schema": SCHEMA}
        for item in fields(self):
            if item.name == "layers":
                document["layers"] = [
                    {"repeat": len(list(run)), **_plain(layer)} for layer, run in groupby(self.layers)
                ]
            else:
                document[item.name] = _plain(getattr(self, item.name))
        return document

    @classmethod
    def from_json(cls, document: Any, where: str = "shape") -> ModelShape:
        """Build and check a shape from its JSON document.

        Args:
            document: the decoded JSON.
            where: the file it came from, for messages.

        Raises:
            ShapeError: a field is missing, of the wrong type, out of range, or contradicts another.
        """
        return _Reader(where).model(document)

    @classmethod
    def load(cls, path: Path) -> ModelShape:
        """Read a shape from a JSON file.

        Raises:
            ShapeError: the file cannot be read, is not JSON, or is not a shape.
        """
        try:
            text = read_file(path, SHAPE_LIMIT_BYTES).decode("utf-8")
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise ShapeError(f"{path}: cannot be read ({reason}).", advice="Give a ModelShape JSON.") from None
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ShapeError(f"{path}: not JSON ({error}).") from None
        return cls.from_json(document, str(path))

    def save(self, path: Path) -> None:
        """Write the JSON document, indented, one trailing newline."""
        outfile.write(path, json.dumps(self.to_json(), indent=1) + "\n")


def _contradictions(shape: ModelShape) -> Iterator[tuple[str, str]]:
    """(where, what) of everything in a shape that no model can be.

    Only what holds for every order of matrices and for shapes that list some of a layer's matrices: each matrix must
    find a source of its inputs as wide as itself.
    """
    for name, table in (("embedding", shape.embedding), ("head", shape.head)):
        if table and table.columns != shape.hidden:
            yield f"{name}.columns", f"is {table.columns}, not the hidden size {shape.hidden}"
    seen: set[int] = set()
    for i, layer in enumerate(shape.layers):
        if id(layer) in seen:  # equal neighbours are one object in what is read from files
            continue
        seen.add(id(layer))
        where = f"layers[{i}].attention"
        yield from ((where, what) for what in _impossible_heads(layer.attention))
        yield from ((where, what) for what in _broken_mixer(layer.attention, shape.hidden))
        for role in ("dense_mlp", "shared_expert"):
            group = [m for m in layer.matrices if m.role == role]
            for m in group:
                if m.rows == shape.hidden != m.columns and not any(o.rows in (m.columns, 2 * m.columns) for o in group):
                    yield f"layers[{i}]", f"{_sized(m)}: no {role} matrix has so many outputs"
        for j, pool in enumerate(layer.experts):
            where = f"layers[{i}].experts[{j}]"
            yield from ((where, what) for what in _broken_pool(pool, layer.matrices, shape.hidden))


def _sized(matrix: Matrix) -> str:
    return f"'{matrix.name}' reads {matrix.columns} inputs"


def _impossible_heads(a: Attention) -> Iterator[str]:
    if a.kind not in ("gqa", "mla"):
        return
    if min(a.heads, a.kv_heads, a.head_dim, a.value_dim) < 1:
        yield f"of kind {a.kind} needs heads, kv_heads, head_dim and value_dim"
    elif a.kind == "gqa" and a.heads % a.kv_heads:
        yield f"has {a.heads} heads, not a multiple of {a.kv_heads} kv_heads"
    elif a.kind == "mla" and a.kv_heads != 1:
        yield f"has {a.kv_heads} kv_heads; latent attention has 1"
    elif a.kind == "mla" and a.head_dim < a.value_dim:
        yield f"has a head_dim of {a.head_dim}, less than its latent width value_dim, {a.value_dim}"


def _broken_mixer(a: Attention, hidden: int) -> Iterator[str]:
    """Projections of a token mixer without a source of their width."""
    first = [m for m in a.matrices if m.columns == hidden]
    given = sum(m.rows for m in first)
    widths = (a.heads * a.head_dim, a.kv_heads * a.head_dim, a.kv_heads * a.value_dim)
    if a.kind == "gqa" and len(first) > 2 and given < sum(widths):
        yield f"projections give {given} outputs; {a.heads} heads and {a.kv_heads} KV heads need {sum(widths)}"
    if a.kind == "mla":
        yield from _broken_latents(a, first, hidden)
        return
    for m in a.matrices:
        others = sum(o.rows for o in a.matrices if o is not m)
        if m.rows != hidden or m.columns == hidden:
            continue
        if a.kind == "gqa" and m.columns < a.heads * a.value_dim:
            yield f"{_sized(m)}: {a.heads} heads give {a.heads * a.value_dim}"
        elif m.columns > max(others, a.heads * a.value_dim):
            yield f"{_sized(m)}: all others give {others}"


def _broken_latents(a: Attention, first: Sequence[Matrix], hidden: int) -> Iterator[str]:
    """Every projection reads the residual, the latents, or projections of the residual: one, two joined, or one twice
    over (A.X K2). One alone may read the values of all heads, which are part of what the latents expand to."""
    given = {n * m.rows for m in first for n in (1, 2)} | {m.rows + o.rows for m in first for o in first}
    lost = [m for m in a.matrices if m.columns not in {hidden, a.value_dim, *given}]
    widest = max((m.rows for m in a.matrices if m.columns == a.value_dim), default=0)
    out = [m for m in lost if m.rows == hidden and m.columns % a.heads == 0 and m.columns < widest]
    for m in lost:
        if m not in out or len(out) > 1:
            yield f"{_sized(m)}: no projection gives so many, and the latents are {a.value_dim}"


def fit_each_other(mlp: Sequence[Matrix]) -> bool:
    """Whether gate and up projection (or up alone, or both in one) and the down projection, in this order, chain."""
    *first, down = mlp
    up = first[-1]
    halves = (1, 2) if len(first) == 1 else (1,)
    return up.rows in [h * down.columns for h in halves] and all(
        (m.rows, m.columns) == (up.rows, up.columns) for m in first
    )


def _broken_pool(pool: Experts, beside: Sequence[Matrix], hidden: int) -> Iterator[str]:
    """A pool of routed experts that no token can go through."""
    if pool.top_k > pool.count:
        yield f"top_k is {pool.top_k}, more than its {pool.count} experts"
    if not pool.matrices:
        yield "matrices must not be empty"
        return
    *first, down = pool.matrices
    if len(first) not in (1, 2):
        return
    up = first[-1]
    halves = (1, 2) if len(first) == 1 else (1,)  # one matrix may be gate and up in one
    if any((m.rows, m.columns) != (up.rows, up.columns) for m in first) or up.rows not in [
        h * down.columns for h in halves
    ]:
        sizes = ", ".join(f"'{m.name}' [{m.rows}, {m.columns}]" for m in pool.matrices)
        yield f"matrices do not fit each other: {sizes}"
    if all(m.columns != hidden for m in pool.matrices) and all(m.rows != up.columns for m in beside):
        yield f"{_sized(up)}: neither the hidden size {hidden} nor what a matrix of the layer gives"
    if all(m.rows != hidden for m in pool.matrices) and all(m.columns != down.rows for m in beside):
        wanted = f"neither the hidden size {hidden} nor what a matrix of the layer reads"
        yield f"'{down.name}' gives {down.rows} outputs: {wanted}"


def _plain(value: Any) -> Any:
    """Dataclasses to dicts, fields that hold their default left out."""
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if not hasattr(value, "__dataclass_fields__"):
        return value
    out: dict[str, Any] = {}
    for item in fields(value):
        member = getattr(value, item.name)
        if isinstance(member, Vectors):
            if member != Vectors():
                out[item.name] = asdict(member)
        elif member not in (item.default, ()):
            out[item.name] = _plain(member)
    return out


class _Reader:
    """Reads the JSON document, naming the field that is wrong."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, path: str, what: str) -> ShapeError:
        return ShapeError(f"{self.where}: {path} {what}.", advice="See docs/architecture.md for the schema.")

    def mapping(self, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(path, "must be an object")
        return value

    def sequence(self, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list):
            raise self.fail(path, "must be a list")
        return value

    def string(self, holder: dict[str, Any], key: str, path: str) -> str:
        value = holder.get(key)
        if not isinstance(value, str) or not value:
            raise self.fail(f"{path}.{key}", "must be a non-empty string")
        if len(value) > NAME_LIMIT_CHARACTERS or not is_text(value):
            raise self.fail(f"{path}.{key}", f"must be text of at most {NAME_LIMIT_CHARACTERS:,} characters")
        return value

    def integer(self, holder: dict[str, Any], key: str, path: str, low: int = 0, default: int | None = None) -> int:
        value = holder.get(key, default)
        if type(value) is not int or not low <= value <= SHAPE_NUMBER:
            raise self.fail(f"{path}.{key}", f"must be an integer of at least {low}")
        return value

    def matrix(self, value: Any, path: str) -> Matrix:
        holder = self.mapping(value, path)
        name = self.string(holder, "format", path)
        if name not in FORMATS:
            raise self.fail(f"{path}.format", f"'{shown(name)}' is no known format ({', '.join(FORMATS)})")
        stored = self.integer(holder, "stored_bytes", path, 1) if "stored_bytes" in holder else None
        return Matrix(
            self.string(holder, "name", path),
            self.string(holder, "role", path),
            self.integer(holder, "rows", path, 1),
            self.integer(holder, "columns", path, 1),
            name,
            stored,
        )

    def matrices(self, holder: dict[str, Any], path: str) -> tuple[Matrix, ...]:
        values = self.sequence(holder.get("matrices", []), f"{path}.matrices")
        return tuple(self.matrix(v, f"{path}.matrices[{i}]") for i, v in enumerate(values))

    def vectors(self, holder: dict[str, Any], path: str) -> Vectors:
        value = self.mapping(holder.get("vectors", {}), f"{path}.vectors")
        return Vectors(
            self.integer(value, "parameters", f"{path}.vectors", default=0),
            self.integer(value, "bytes", f"{path}.vectors", default=0),
        )

    def attention(self, value: Any, path: str) -> Attention:
        holder = self.mapping(value, path)
        kind = self.string(holder, "kind", path)
        if kind not in ATTENTION_KINDS:
            raise self.fail(f"{path}.kind", f"'{kind}' is none of {', '.join(sorted(ATTENTION_KINDS))}")
        window = holder.get("window")
        return Attention(
            kind,
            heads=self.integer(holder, "heads", path, default=0),
            kv_heads=self.integer(holder, "kv_heads", path, default=0),
            head_dim=self.integer(holder, "head_dim", path, default=0),
            value_dim=self.integer(holder, "value_dim", path, default=0),
            cache_elements=self.integer(holder, "cache_elements", path, default=0),
            window=None if window is None else self.integer(holder, "window", path, 1),
            state_elements=self.integer(holder, "state_elements", path, default=0),
            matrices=self.matrices(holder, path),
        )

    def experts(self, value: Any, path: str) -> Experts:
        holder = self.mapping(value, path)
        count = self.integer(holder, "count", path, 1)
        top_k = self.integer(holder, "top_k", path, 1)
        return Experts(count, top_k, self.matrices(holder, path), self.vectors(holder, path))

    def layer(self, value: Any, path: str) -> tuple[int, Layer]:
        holder = self.mapping(value, path)
        pools = self.sequence(holder.get("experts", []), f"{path}.experts")
        layer = Layer(
            self.attention(holder.get("attention"), f"{path}.attention"),
            self.matrices(holder, path),
            tuple(self.experts(v, f"{path}.experts[{i}]") for i, v in enumerate(pools)),
            self.vectors(holder, path),
        )
        return self.integer(holder, "repeat", path, 1, default=1), layer

    def model(self, document: Any) -> ModelShape:
        holder = self.mapping(document, "document")
        if holder.get("schema") != SCHEMA:
            raise self.fail("schema", f"must be '{SCHEMA}'")
        source = {str(k): str(v) for k, v in self.mapping(holder.get("source", {}), "source").items()}
        if not all(is_text(word) for pair in source.items() for word in pair):
            raise self.fail("source", "must be text")
        layers: list[Layer] = []
        for i, value in enumerate(self.sequence(holder.get("layers"), "layers")):
            repeat, layer = self.layer(value, f"layers[{i}]")
            if len(layers) + repeat > SHAPE_LAYERS:
                raise self.fail(f"layers[{i}].repeat", f"makes more than {SHAPE_LAYERS:,} layers")
            layers.extend([layer] * repeat)
        head = holder.get("head")
        arguments = (
            self.string(holder, "name", "document"),
            self.string(holder, "family", "document"),
            self.integer(holder, "hidden", "document", 1),
            self.matrix(holder.get("embedding"), "embedding"),
            None if head is None else self.matrix(head, "head"),
            tuple(layers),
            self.vectors(holder, "document"),
            source,
            self.integer(holder, "mtp_parameters", "document", default=0),
        )
        try:
            return ModelShape(*arguments)
        except ShapeError as error:
            raise ShapeError(f"{self.where}: {error.message}", advice=error.advice) from None
