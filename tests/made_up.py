"""Made-up model shapes for tests: attention, MLPs, experts, layers and whole models of any small size.

tests/conftest.py loads this file before any test, so a test module just says `import made_up`. Widths are chosen by
the test that uses a shape; what is derived here (cache elements, rows and columns of projections, counts of biases)
follows from them as it does in a real model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from moegauge.shape import Attention, Experts, Layer, Matrix, ModelShape, Vectors


def bf16(parameters: int) -> Vectors:
    """Norms or biases of two bytes each."""
    return Vectors(parameters, 2 * parameters)


def matrices(role: str, sizes: Iterable[tuple[str, int, int]], format: str = "bf16") -> tuple[Matrix, ...]:
    """Matrices of one role from (name, rows, columns)."""
    return tuple(Matrix(name, role, rows, columns, format) for name, rows, columns in sizes)


def mlp(role: str, inner: int, hidden: int, format: str = "bf16") -> tuple[Matrix, ...]:
    """Gate, up and down projections."""
    sizes = (("gate_proj", inner, hidden), ("up_proj", inner, hidden), ("down_proj", hidden, inner))
    return matrices(role, sizes, format)


def gqa(
    hidden: int, heads: int, kv_heads: int, width: int, *,
    window: int | None = None, format: str = "bf16", only: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
) -> Attention:  # fmt: skip
    """Grouped-query attention with heads of `width`; `only` names the projections it has."""
    q, kv = heads * width, kv_heads * width
    sizes = (("q_proj", q, hidden), ("k_proj", kv, hidden), ("v_proj", kv, hidden), ("o_proj", hidden, q))
    projections = matrices("attention", (size for size in sizes if size[0] in only), format)
    return Attention("gqa", heads, kv_heads, width, width, 2 * kv, window, matrices=projections)


def mla(
    hidden: int, heads: int, *, query: int, latent: int, rope: int, nope: int, value: int, format: str = "bf16"
) -> Attention:
    """Absorbed multi-head latent attention: ranks of query and latent, widths of a head's rotary part, other part and
    value."""
    sizes = (
        ("q_a_proj", query, hidden), ("q_b_proj", heads * (nope + rope), query),
        ("kv_a_proj_with_mqa", latent + rope, hidden), ("kv_b_proj", heads * (nope + value), latent),
        ("o_proj", hidden, heads * value),
    )  # fmt: skip
    projections = matrices("attention", sizes, format)
    return Attention("mla", heads, 1, latent + rope, latent, latent + rope, matrices=projections)


def linear(hidden: int, state: int, sizes: Iterable[tuple[str, int, int]]) -> Attention:
    """A mixer with `state` elements of recurrent state and no cache."""
    return Attention("linear", state_elements=state, matrices=matrices("attention", sizes))


def dense_layer(attention: Attention, inner: int, hidden: int, format: str = "bf16") -> Layer:
    """Attention and a gated MLP, with two norms."""
    return Layer(attention, mlp("dense_mlp", inner, hidden, format), (), bf16(2 * hidden))


def moe_layer(
    attention: Attention, experts: int, top_k: int, inner: int, hidden: int, *,
    format: str = "bf16", router: str = "bf16", shared: int = 0, biases: bool = False, vectors: Vectors | None = None,
) -> Layer:  # fmt: skip
    """Attention, a router, perhaps a shared expert of width `shared`, and routed experts, perhaps with biases."""
    pool = Experts(
        experts, top_k, mlp("routed_expert", inner, hidden, format), bf16(2 * inner + hidden) if biases else Vectors()
    )
    always = (
        Matrix("router", "router", experts, hidden, router),
        *(mlp("shared_expert", shared, hidden) if shared else ()),
    )
    return Layer(attention, always, (pool,), vectors or bf16(2 * hidden))


def model(
    layers: Sequence[Layer], hidden: int, *,
    name: str = "made-up", family: str = "made_up", vocabulary: int = 100, tied: bool = False,
    source: dict[str, str] | None = None,
) -> ModelShape:  # fmt: skip
    """Embedding, layers, a final norm and, unless tied, an LM head."""
    table, head = (Matrix(n, n, vocabulary, hidden, "bf16") for n in ("embedding", "lm_head"))
    return ModelShape(name, family, hidden, table, None if tied else head, tuple(layers), bf16(hidden), source or {})


def tiny(name: str = "tiny", layers: int = 2, hidden: int = 64) -> ModelShape:
    """A small MoE model of few parts: a query projection, 4 experts of which a token uses 2, one norm a layer."""
    attention = gqa(hidden, 2, 1, 32, only=("q_proj",))
    layer = moe_layer(attention, 4, 2, 64, hidden, router="f32", vectors=bf16(hidden))
    return replace(model([layer] * layers, hidden, name=name), vectors=Vectors())


HIDDEN = 96
MIXERS = {
    "gqa": gqa(HIDDEN, 4, 2, 24),
    "window": gqa(HIDDEN, 4, 2, 24, window=100),
    "mla": mla(HIDDEN, 4, query=64, latent=32, rope=8, nope=16, value=16),
    "linear": linear(HIDDEN, 1000, (("in", 130, HIDDEN), ("out", HIDDEN, 64))),
}


def decoder(mixer: str = "gqa", experts: int = 8, top_k: int = 2) -> ModelShape:
    """What a decode step meets, once each: a dense layer, MoE layers with a shared expert and biases, a tied head."""
    moe = moe_layer(
        MIXERS[mixer], experts, top_k, 56, HIDDEN, router="f32", shared=40, biases=True,
        vectors=Vectors(2 * HIDDEN + 100, 4 * HIDDEN + 300),
    )  # fmt: skip
    dense = dense_layer(MIXERS[mixer], 200, HIDDEN)
    return model([dense, moe, moe], HIDDEN, name="tiny", vocabulary=500, tied=True)
