"""Smoke tests of a device: small made-up steps, every kernel judged against float64 before anything is timed."""

from __future__ import annotations

from dataclasses import dataclass

from moegauge.kernels.backend import Backend
from moegauge.shape import Attention, Experts, Layer, Matrix, ModelShape, Vectors

HIDDEN, INNER, EXPERTS, TOP_K, VOCABULARY = 1024, 512, 16, 4, 2048
CONTEXT = 200  # tokens: several blocks of attention, the last one not full
REPEATS = 100  # runs of a step of dependent launches: a wait that is missing may show one time in many
REFERENCE = "graph"  # the mode that formats and layers are judged in first


@dataclass(frozen=True, slots=True)
class SmokeTest:
    """One small step.

    Attributes:
        shape: grouped-query attention and plain experts (`gqa`), or latent attention and experts beside shared ones
            (`mla`).
        format: of its matrices.
        mode: how it is launched.
        runs: whole runs whose answers must be alike.
    """

    shape: str
    format: str
    mode: str
    runs: int = 1

    @property
    def model(self) -> str:
        """Its step's name in a record's verdicts."""
        return f"smoke {self.shape}"

    @property
    def label(self) -> str:
        """`gqa mxfp4`."""
        return f"{self.shape} {self.format}"


def smoke_tests(backend: Backend) -> list[SmokeTest]:
    """Every format in one mode, both kinds of layer, then what else the device can launch, dependent launches often."""
    modes = backend.launch_modes
    first = REFERENCE if REFERENCE in modes else backend.launch_mode
    formats = sorted(backend.matrix_formats - {"f32", "int4_g128"})
    tests = [SmokeTest("gqa", name, first) for name in formats]
    pairs = [pair for pair in (("gqa", "mxfp4"), ("mla", "fp8")) if pair[1] in formats]
    tests += [SmokeTest("mla", name, first) for shape, name in pairs if shape == "mla"]
    for mode in modes:
        if mode != first:
            tests += [SmokeTest(*pair, mode, REPEATS if mode == "pdl" else 1) for pair in pairs]
    return tests


def shape_of(test: SmokeTest) -> ModelShape:
    """The step's model, in bf16: cast it to the test's format."""
    latent = test.shape == "mla"
    attention = _latent() if latent else _grouped()
    pool = Experts(EXPERTS, TOP_K, _mlp("routed_expert"), Vectors() if latent else Vectors(2 * INNER + HIDDEN, 4096))
    router = Matrix("router", "router", EXPERTS, HIDDEN, "bf16")
    norms = Vectors(2 * HIDDEN, 4 * HIDDEN)
    layer = Layer(attention, (router, *(_mlp("shared_expert") if latent else ())), (pool,), norms)
    dense = Layer(attention, _mlp("dense_mlp"), (), norms)
    table, head = (Matrix(name, name, VOCABULARY, HIDDEN, "bf16") for name in ("embedding", "lm_head"))
    return ModelShape(test.model, "made-up", HIDDEN, table, head, (dense, layer), Vectors(HIDDEN, 2 * HIDDEN))


def _mlp(role: str) -> tuple[Matrix, ...]:
    sizes = (("gate_proj", INNER, HIDDEN), ("up_proj", INNER, HIDDEN), ("down_proj", HIDDEN, INNER))
    return tuple(Matrix(name, role, rows, columns, "bf16") for name, rows, columns in sizes)


def _attention(sizes: tuple[tuple[str, int, int], ...]) -> tuple[Matrix, ...]:
    return tuple(Matrix(name, "attention", rows, columns, "bf16") for name, rows, columns in sizes)


def _grouped() -> Attention:
    heads, kv, width = 16, 4, 64
    sizes = (
        ("q_proj", heads * width, HIDDEN), ("k_proj", kv * width, HIDDEN), ("v_proj", kv * width, HIDDEN),
        ("o_proj", HIDDEN, heads * width),
    )  # fmt: skip
    return Attention("gqa", heads, kv, width, width, 2 * kv * width, matrices=_attention(sizes))


def _latent() -> Attention:
    heads, query, latent, rope, nope, value = 16, 512, 512, 64, 128, 128
    sizes = (
        ("q_a_proj", query, HIDDEN), ("q_b_proj", heads * (nope + rope), query),
        ("kv_a_proj_with_mqa", latent + rope, HIDDEN), ("kv_b_proj", heads * (nope + value), latent),
        ("o_proj", HIDDEN, heads * value),
    )  # fmt: skip
    return Attention("mla", heads, 1, latent + rope, latent, latent + rope, matrices=_attention(sizes))
