"""Turn a census into a `ModelShape`: per layer the matrices a step multiplies by, and the experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod

from moegauge.counting.counts import Counts
from moegauge.counting.group import Group
from moegauge.counting.headers.ggml import PACKED_LEAVES
from moegauge.counting.mixers import Mixer, describe, layer_mixers
from moegauge.counting.pools import ExpertPool
from moegauge.counting.roles import DENSE_ROLES
from moegauge.errors import ShapeError
from moegauge.formats import FORMATS, get_format
from moegauge.shape import Experts, Layer, Matrix, ModelShape, Vectors, fit_each_other

# Storage format -> the row of `moegauge.formats` a kernel would run it in. Where the stored bytes differ from that
# row's, the matrix says so itself.
ROWS: dict[str, str] = {
    "bf16": "bf16",
    "f16": "bf16",
    "f32": "f32",
    "f64": "f32",
    "int8": "int8",
    "mxfp4": "mxfp4",
    "nvfp4": "nvfp4",
    "int4": "int4",
    "mxfp6": "fp8",
    "mxfp8": "mxfp8",
    **dict.fromkeys(("fp8", "fp8_block", "fp8_channel", "fp8_tensor"), "fp8"),
    **dict.fromkeys(("int1", "int2", "int3", "ternary", "bnb_nf4", "bnb_fp4", "hqq", "packed"), "int4"),
    **dict.fromkeys(("int5", "int6", "int7"), "int8"),
    # ggml's block types, by the bits of a weight; their bytes are said by the matrix itself.
    **{
        row.name: "int4" if 8 * row.bytes / row.weights < 5 else "int8"
        for row in PACKED_LEAVES.values()
        if row.name not in FORMATS
    },
}

# The order a step uses a layer's matrices in; names not listed come after, by name.
STEP_ORDER = (
    *("q_a_proj", "q_b_proj", "q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "k_proj", "v_proj", "o_proj"),
    *("gate", "router", "gate_proj", "up_proj", "down_proj"),
)
_ROLE_ORDER = ("attention", "norm", "router", "dense_mlp", "shared_expert")
# Other families' names of an expert's matrices.
_EXPERT_NAMES = {
    "w1": "gate_proj",
    "w3": "up_proj",
    "v1": "up_proj",
    "w2": "down_proj",
    "w2_weight": "down_proj",
    "linear": "gate_proj",
    "linear_v": "up_proj",
    "linear_1": "down_proj",
    **dict.fromkeys(("input_linear", "w13_weight", "fc1"), "gate_up_proj"),
    **dict.fromkeys(("output_linear", "fc2", "wo", "down_embed"), "down_proj"),
    **dict.fromkeys(("wi", "up_embed"), "up_proj"),
}


@dataclass(slots=True)
class _Weight:
    """One module's weight in one layer, with the bytes of everything that describes it."""

    group: Group
    beside_bytes: int

    @property
    def bytes(self) -> int:
        return self.group.read_bytes + self.beside_bytes


def build(census: Counts) -> ModelShape:
    """The shape of a counted checkpoint. Its totals equal the census's exactly.

    Raises:
        ShapeError: the census lacks what a step needs, or the shape does not reconcile with it.
    """
    name = census.checkpoint.name
    table = census.embedding
    if table is None or table.logical is None:
        raise ShapeError(f"{name}: no input embedding, so no decode step.")
    if census.active is None:
        raise ShapeError(f"{name}: experts per token unknown.", advice="Give --top-k, or a config.json that says it.")
    if any("encoder" in p.groups[0].stack for p in census.pools):
        raise ShapeError(f"{name}: encoder-decoder models have no single decode step.")
    mixers = layer_mixers(census)
    outside = [g for g in census.groups if g.owner in DENSE_ROLES and not 0 <= g.layer < census.layers]
    tables = _weights([g for g in outside if g.owner == "embedding"])
    heads = _weights([g for g in outside if g.owner == "lm_head"])
    embedding = _matrix(next(w for w in tables if w.group is table), "embed_tokens")
    head = None if census.tied else _matrix(max(heads, key=lambda w: w.group.parameters), "lm_head")
    rest = [w for w in _weights(outside) if w.group is not table and (head is None or w.group.owner != "lm_head")]
    by_layer: dict[int, list[Group]] = {n: [] for n in range(census.layers)}
    for group in census.groups:
        if group.owner in DENSE_ROLES and group.layer in by_layer:
            by_layer[group.layer].append(group)
    pools: dict[int, list[ExpertPool]] = {n: [] for n in range(census.layers)}
    for pool in census.pools:
        if pool.modality == "text":
            pools[pool.layer].append(pool)
    layers = tuple(_layer(census, n, groups, pools[n], mixers[n]) for n, groups in by_layer.items())
    checkpoint = census.checkpoint
    source = {"target": checkpoint.name, "commit": checkpoint.commit or "", "command": "moegauge count --shape"}
    shape = ModelShape(
        name.rstrip("/").rpartition("/")[2].lower(),
        census.facts.family or "unknown",
        embedding.columns,
        embedding,
        head,
        layers,
        _vectors(rest),
        {k: v for k, v in source.items() if v},
        census.parameters("mtp"),
    )
    return _reconciled(shape, census)


def _reconciled(shape: ModelShape, census: Counts) -> ModelShape:
    """`shape`, once every total equals the census's."""
    pairs = {
        "dense parameters": (shape.dense_parameters, census.dense),
        "routed parameters": (shape.routed_parameters, sum(p.parameters for p in census.pools if p.modality == "text")),
        "active parameters": (shape.active_parameters, census.active),
        "dense bytes": (shape.dense_bytes, census.dense_bytes),
        "routed bytes": (shape.routed_bytes, census.routed_bytes),
    }
    for what, (ours, counted) in pairs.items():
        if ours != counted:
            raise ShapeError(
                f"{shape.name}: {what} of the shape are {ours:,}, of the count {counted:,}.",
                advice="This layout has no exact shape yet; the count itself stands.",
            )
    return shape


def _weights(groups: list[Group]) -> list[_Weight]:
    """The tensors with parameters, each with the bytes of the scales of its module."""
    beside: dict[str, int] = {}
    for group in groups:
        if group.logical is None:
            beside[group.module] = beside.get(group.module, 0) + group.read_bytes
    return [
        _Weight(g, beside.pop(g.module, 0))
        for g in sorted(groups, key=lambda g: (g.module, -g.parameters))
        if g.logical is not None
    ]


def _matrix(weight: _Weight, name: str, role: str | None = None) -> Matrix:
    """One matrix [rows, columns] with its bytes as stored."""
    group = weight.group
    assert group.logical is not None
    rows, columns = prod(group.logical[:-1]), group.logical[-1]
    return _with_bytes(Matrix(name, role or group.role, rows, columns, ROWS.get(group.format, "bf16")), weight.bytes)


def _with_bytes(matrix: Matrix, stored: int) -> Matrix:
    """`matrix` with `stored` bytes, said only where its format's row says otherwise."""
    exact = get_format(matrix.format).bytes(matrix.rows, matrix.columns) == stored
    return matrix if exact else replace(matrix, stored_bytes=stored)


def _vectors(weights: list[_Weight]) -> Vectors:
    return Vectors(sum(w.group.parameters for w in weights), sum(w.bytes for w in weights))


def _short(module: str) -> str:
    return module.removesuffix(".#").rpartition(".")[2]


def _order(matrix: Matrix) -> tuple[int, int, str]:
    rank = STEP_ORDER.index(matrix.name) if matrix.name in STEP_ORDER else len(STEP_ORDER)
    role = _ROLE_ORDER.index(matrix.role) if matrix.role in _ROLE_ORDER else len(_ROLE_ORDER)
    return role, rank, matrix.name


def _layer(census: Counts, number: int, groups: list[Group], pools: list[ExpertPool], mixer: Mixer) -> Layer:
    attention = describe(mixer, number, census.facts)
    if attention is None:
        raise ShapeError(
            f"{census.checkpoint.name}: the config lacks the attention widths of layer {number}, or contradicts them.",
            advice="heads, kv heads and head size are needed for a shape.",
        )
    matrices: list[Matrix] = []
    small: list[_Weight] = []
    for weight in _weights(groups):
        logical = weight.group.logical or ()
        if len(logical) == 2 and weight.group.role != "norm" and weight.group.tensors == 1:
            matrices.append(_matrix(weight, _short(weight.group.module)))
        else:
            small.append(weight)
    matrices.sort(key=_order)
    projections = tuple(m for m in matrices if m.role == "attention")
    return Layer(
        replace(attention, matrices=projections),
        tuple(m for m in matrices if m.role != "attention"),
        tuple(_experts(pool, census) for pool in pools),
        _vectors(small),
    )


def _experts(pool: ExpertPool, census: Counts) -> Experts:
    """One pool; every expert has the same matrices, or the shape does not reconcile."""
    assert pool.count is not None
    assert pool.top_k is not None
    large: list[_Weight] = []
    small: list[_Weight] = []
    for weight in _weights(pool.groups):
        few = weight.group.parameters % pool.count or len(weight.group.logical or ()) < 2
        (small if few or weight.group.module.endswith("_bias") else large).append(weight)
    matrices: list[Matrix] = []
    # Experts read the residual, or latents as wide as a side of one of their matrices (a stack says not which side).
    sides = sorted({side for w in large for side in (w.group.logical or ())[-2:]})
    for width in (census.facts.hidden, *sides):
        matrices = [m for w in large for m in _expert_matrices(w, pool.count, width)]
        matrices.sort(key=_order)
        if len(matrices) not in (2, 3) or fit_each_other(matrices):
            break
    if not matrices:
        raise ShapeError(
            f"{census.checkpoint.name}: {pool.name} stores its experts flat, their widths unknown.",
            advice="This layout has no exact shape; the count itself stands.",
        )
    vectors = _vectors(small)
    used = pool.share * pool.count if pool.share is not None else Fraction(pool.top_k)
    if used.denominator != 1:
        raise ShapeError(
            f"{census.checkpoint.name}: {pool.name} uses {float(used):.2f} experts a token on average.",
            advice="This layout has no exact shape; the count itself stands.",
        )
    return Experts(
        pool.count, int(used), tuple(matrices), Vectors(vectors.parameters // pool.count, vectors.bytes // pool.count)
    )


def _expert_matrices(weight: _Weight, count: int, hidden: int | None) -> list[Matrix]:
    """One expert's share of a weight: a matrix [outputs, inputs], or gate and up where they are fused."""
    group = weight.group
    assert group.logical is not None
    rows, columns = group.logical[-2:]
    name = _EXPERT_NAMES.get(_short(group.module), _short(group.module))
    numbered = len(group.logical) == 2 and group.tensors > 1
    if len(group.logical) == 2 and not numbered:
        rows //= count  # all experts stacked on the rows of one matrix (DBRX)
    # Down projections end in the hidden size, the others begin with it; fused files may store either transposed.
    inputs = rows if name == "down_proj" else columns
    outputs = columns if name == "down_proj" else rows
    if not numbered and hidden == outputs != inputs:
        rows, columns = columns, rows
    share = weight.bytes // count
    role, row = group.role, ROWS.get(group.format, "bf16")
    if name == "gate_up_proj" and "attention" not in group.module:
        halves = ("gate_proj", "up_proj")
        return [_with_bytes(Matrix(half, role, rows // 2, columns, row), share // 2) for half in halves]
    return [_with_bytes(Matrix(name, role, rows, columns, row), share)]
