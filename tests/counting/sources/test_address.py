"""Addresses of the Hub that people paste stand for the repo, revision and file they name."""

from __future__ import annotations

import pytest

from moegauge.counting.sources.address import Address, parse
from moegauge.errors import MoegaugeError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("https://huggingface.co/org/name", Address("org/name")),
        ("https://huggingface.co/org/name/", Address("org/name")),
        ("huggingface.co/org/name?library=vllm#usage", Address("org/name")),
        ("https://hf.co/org/name/tree/main", Address("org/name", "main")),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F4", Address("org/name", "refs/pr/4")),
        ("https://huggingface.co/org/name/tree/refs/pr/4", Address("org/name", "refs/pr/4")),
        (f"https://huggingface.co/org/name/commit/{COMMIT}", Address("org/name", COMMIT)),
        ("https://huggingface.co/org/name/discussions/3", Address("org/name")),
        (
            "https://huggingface.co/org/name/blob/main/a-Q4_K_M.gguf?download=true",
            Address("org/name", "main", "a-Q4_K_M.gguf"),
        ),
        (
            f"https://huggingface.co/org/name/resolve/{COMMIT}/x.safetensors",
            Address("org/name", COMMIT, "x.safetensors"),
        ),
        ("hf://org/name", Address("org/name")),
        ("hf://models/org/name", Address("org/name")),
        ("hf://org/name@dev", Address("org/name", "dev")),
        ("hf://org/name@refs/pr/4/x.safetensors", Address("org/name", "refs/pr/4", "x.safetensors")),
        ("hf://org/name/x.safetensors", Address("org/name", None, "x.safetensors")),
        ("org/name", None),
        ("name", None),
        ("./folder", None),
        ("/a/b.safetensors", None),
    ],
)
def test_an_address_is_taken_apart(target: str, found: Address | None) -> None:
    assert parse(target) == found


@pytest.mark.parametrize(
    "target",
    [
        "https://example.org/org/name",
        "https://huggingface.co/datasets/org/name",
        "https://huggingface.co/spaces/org/name",
        "https://huggingface.co/org",
        "https://huggingface.co/",
        "hf://datasets/org/name",
        "hf://name",
        "s3://bucket/name",
    ],
)
def test_what_is_no_model_is_refused(target: str) -> None:
    with pytest.raises(MoegaugeError, match="Give a model's repo"):
        parse(target)


@pytest.mark.parametrize("target", ["[::1", "a[b]c/d", "\x1b[31mred]/x", "\u2100/x"])
def test_what_no_address_can_be_is_none(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(target) is None
    with pytest.raises(MoegaugeError, match="is not an address of the Hub"):
        parse(f"https://{target}")
    monkeypatch.setenv("HF_ENDPOINT", f"https://{target}")
    assert parse("org/name") is None
