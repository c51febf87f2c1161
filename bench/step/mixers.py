"""Token mixers of a decode step: grouped-query attention, absorbed multi-head latent attention, linear layers."""

from __future__ import annotations

from moegauge.bench.step.emitter import Emitter
from moegauge.errors import ShapeError
from moegauge.formats import get_format
from moegauge.kernels.program import Attend, Place, Product, State, Vector, View
from moegauge.shape import Attention, Matrix


def compose_attention(c: Emitter, shape: Attention, gain: Vector, biases: tuple[Vector, ...]) -> None:
    """Emit one layer's token mixer, from the normed residual back into it.

    Raises:
        ShapeError: the projections do not fit the head geometry.
    """
    if not shape.matrices:
        return
    {"gqa": _grouped, "mla": _latent}.get(shape.kind, _linear)(c, shape, gain, biases)


def _cache(c: Emitter, per_token: int, length: int) -> Place | None:
    """A cache of `length` tokens for every sequence."""
    if not per_token * length * c.batch:
        return None
    size = get_format(c.kv_format).element_bits // 8
    return c.layout.place(f"kv.{c.kv_format}", c.batch * length * per_token * size)


def _inputs_and_output(c: Emitter, shape: Attention) -> tuple[list[Matrix], list[Matrix], Matrix]:
    """(projections of the residual, projections of anything else but the last, the output projection)."""
    *rest, last = shape.matrices
    if last.rows != c.shape.hidden:
        raise ShapeError(
            f"{c.shape.name}, {c.where}: the last attention matrix '{last.name}' has {last.rows} rows, "
            f"not the hidden size {c.shape.hidden}.",
            advice="List an attention's matrices in the order a step runs them.",
        )
    first = [m for m in rest if m.columns == c.shape.hidden]
    return first, [m for m in rest if m.columns != c.shape.hidden], last


def _output(c: Emitter, matrix: Matrix) -> None:
    """The output projection, from the mix register into the residual."""
    x = c.register("mix", matrix.columns)
    c.emit(Product(c.label(matrix.name), x, c.residual, (c.layout.weight(matrix),), accumulate=True))


def _grouped(c: Emitter, shape: Attention, gain: Vector, biases: tuple[Vector, ...]) -> None:
    first, others, last = _inputs_and_output(c, shape)
    widths = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.kv_heads * shape.value_dim)
    rows = sum(m.rows for m in first)
    if rows < sum(widths) or shape.heads * shape.value_dim > last.columns:
        raise ShapeError(
            f"{c.shape.name}, {c.where}: attention projections give {rows} outputs; {shape.heads} heads of "
            f"{shape.head_dim} and {shape.kv_heads} KV heads need {sum(widths)}.",
            advice="Check heads, kv_heads, head_dim and value_dim.",
        )
    out = c.register("qkv", rows)
    c.emit(Product(c.label("q, k, v"), c.residual, out, tuple(c.layout.weight(m) for m in first), gain, biases))
    for matrix in others:
        x = c.register("qkv", matrix.columns)
        c.emit(Product(c.label(matrix.name), x, c.register("scratch", matrix.rows), (c.layout.weight(matrix),)))
    q = View("qkv", 0, widths[0])
    k = View("qkv", widths[0], widths[1])
    v = View("qkv", widths[0] + widths[1], widths[2])
    length = c.context if shape.window is None else min(c.context, shape.window)
    mix = c.register("mix", shape.heads * shape.value_dim)
    c.emit(
        Attend(
            c.label("attention"),
            q,
            k,
            v,
            mix,
            "gqa",
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            shape.value_dim,
            length,
            c.kv_format,
            _cache(c, shape.kv_heads * shape.head_dim, length),
            _cache(c, shape.kv_heads * shape.value_dim, length),
        )
    )
    _output(c, last)


def _latent(c: Emitter, shape: Attention, gain: Vector, biases: tuple[Vector, ...]) -> None:
    """Absorbed MLA (DeepSeek-V2, arXiv 2405.04434, section 2.1.3): kv_b is read as two block-diagonal products, one
    from the queries into latent space and one from the mixed latents to the values; its bytes are the same."""
    first, others, last = _inputs_and_output(c, shape)
    heads, latent = shape.heads, shape.value_dim
    rope = shape.head_dim - latent
    compressed = [m for m in first if m.rows == shape.head_dim]
    expand = [m for m in others if m.columns == latent and m.rows % heads == 0 and "q" not in m.name.split("_")[0]]
    query = [m for m in (*others, *first) if m not in expand and m not in compressed and m.rows % heads == 0]
    value = last.columns // heads
    if not compressed or not expand or not query or last.columns % heads:
        raise ShapeError(
            f"{c.shape.name}, {c.where}: latent attention needs a compressed KV projection of {shape.head_dim} rows, "
            f"its expansion of {latent} columns, a query projection and an output projection.",
            advice="Check head_dim, value_dim and the order of the matrices.",
        )
    kv_a, kv_b, q_b = compressed[0], expand[0], query[0]
    nope = q_b.rows // heads - rope
    if nope < 1 or kv_b.rows != heads * (nope + value):
        raise ShapeError(
            f"{c.shape.name}, {c.where}: '{q_b.name}' and '{kv_b.name}' disagree on the width of a head.",
            advice="Check head_dim and value_dim.",
        )
    q_a = [m for m in first if m.rows == q_b.columns and m is not kv_a][:1] if q_b.columns != c.shape.hidden else []
    entry = [*q_a, kv_a] if q_b.columns != c.shape.hidden else [q_b, kv_a]
    extra = [m for m in shape.matrices if m not in (*entry, q_b, kv_b, last)]
    width = sum(m.rows for m in entry)
    compact = c.register("latent", width)
    c.emit(Product(c.label("q_a, kv_a"), c.residual, compact, tuple(map(c.layout.weight, entry)), gain, biases))
    queries = View("latent", 0, q_b.rows)
    if q_b not in entry:
        queries = c.register("qkv", q_b.rows)
        # At least as wide as what is read: joined latents are wider than one projection of the residual.
        c.emit(Product(c.label(q_b.name), c.register("latent", q_b.columns), queries, (c.layout.weight(q_b),)))
    for matrix in extra:
        x, norm = c.source(matrix.columns, gain)
        c.emit(Product(c.label(matrix.name), x, c.register("extra", matrix.rows), (c.layout.weight(matrix),), norm))
    absorb = c.layout.weight(kv_b, rows=heads * latent, columns=nope, name=f"{kv_b.name} (keys)")
    head_queries = c.register("latent queries", heads * latent)
    plain = View(queries.register, queries.offset, heads * nope)
    c.emit(Product(c.label("absorb keys"), plain, head_queries, (absorb,), blocks=heads))
    length = c.context if shape.window is None else min(c.context, shape.window)
    mixed = c.register("latent mix", heads * latent)
    c.emit(
        Attend(
            c.label("attention"),
            head_queries,
            View("latent", width - shape.head_dim, shape.head_dim),
            None,
            mixed,
            "mla",
            heads,
            1,
            shape.head_dim,
            latent,
            length,
            c.kv_format,
            _cache(c, shape.head_dim, length),
            None,
            View(queries.register, queries.offset + heads * nope, heads * rope),
        )
    )
    values = c.layout.weight(kv_b, rows=heads * value, columns=latent, name=f"{kv_b.name} (values)")
    c.emit(Product(c.label("absorb values"), mixed, c.register("mix", heads * value), (values,), blocks=heads))
    _output(c, last)


def _linear(c: Emitter, shape: Attention, gain: Vector, biases: tuple[Vector, ...]) -> None:
    """A recurrent mixer by its bytes: its projections, and its state read and rewritten once."""
    first, others, last = _inputs_and_output(c, shape)
    rows = sum(m.rows for m in first)
    x = c.residual
    if first:
        x = c.register("qkv", rows)
        c.emit(Product(c.label("in"), c.residual, x, tuple(c.layout.weight(m) for m in first), gain, biases))
    for matrix in others:
        view = c.register("qkv", max(rows, matrix.columns))
        source = View(view.register, 0, matrix.columns)
        c.emit(Product(c.label(matrix.name), source, c.register("extra", matrix.rows), (c.layout.weight(matrix),)))
    elements = shape.state_elements
    place = c.layout.place("state.f32", max(1, c.batch * elements) * 4)
    c.emit(State(c.label("state"), x, c.register("mix", last.columns), elements, place))
    _output(c, last)
