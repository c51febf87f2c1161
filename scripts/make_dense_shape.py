"""Write the ModelShape of Llama 3.3 70B, the one dense model among the served readings, from its config.

Run: .venv/bin/python scripts/make_dense_shape.py
Source of the numbers: huggingface.co/meta-llama/Llama-3.3-70B-Instruct config.json.
"""

from __future__ import annotations

from pathlib import Path

from moegauge.shape import Attention, Layer, Matrix, ModelShape, Vectors

OUT = Path(__file__).resolve().parent.parent / "estimator" / "data" / "llama-3.3-70b.shape.json"
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCABULARY = 8192, 80, 64, 8, 128, 28672, 128256


def shape() -> ModelShape:
    def matrix(name: str, role: str, rows: int, columns: int) -> Matrix:
        return Matrix(name, role, rows, columns, "bf16")

    attention = Attention(
        "gqa",
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        value_dim=HEAD_DIM,
        cache_elements=2 * KV_HEADS * HEAD_DIM,
        matrices=(
            matrix("q_proj", "attention", HEADS * HEAD_DIM, HIDDEN),
            matrix("k_proj", "attention", KV_HEADS * HEAD_DIM, HIDDEN),
            matrix("v_proj", "attention", KV_HEADS * HEAD_DIM, HIDDEN),
            matrix("o_proj", "attention", HIDDEN, HEADS * HEAD_DIM),
        ),
    )
    layer = Layer(
        attention,
        (
            matrix("gate_proj", "dense_mlp", INTERMEDIATE, HIDDEN),
            matrix("up_proj", "dense_mlp", INTERMEDIATE, HIDDEN),
            matrix("down_proj", "dense_mlp", HIDDEN, INTERMEDIATE),
        ),
        vectors=Vectors(2 * HIDDEN, 4 * HIDDEN),
    )
    return ModelShape(
        "llama-3.3-70b",
        "llama",
        HIDDEN,
        matrix("embed_tokens", "embedding", VOCABULARY, HIDDEN),
        matrix("lm_head", "lm_head", VOCABULARY, HIDDEN),
        (layer,) * LAYERS,
        Vectors(HIDDEN, 2 * HIDDEN),
        {"config": "huggingface.co/meta-llama/Llama-3.3-70B-Instruct", "command": "python scripts/make_dense_shape.py"},
    )


if __name__ == "__main__":
    made = shape()
    made.save(OUT)
    print(f"{made.name}: {made.total_parameters:,} parameters")
