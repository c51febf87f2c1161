"""The shipped shapes and the command that lists them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moegauge import cli, models
from moegauge.errors import ShapeError, UnknownNameError

CONTRACT = {
    "deepseek-v3",
    "glm-4.7",
    "gpt-oss-120b",
    "gpt-oss-20b",
    "kimi-k2",
    "kimi-k2-thinking",
    "mixtral-8x7b",
    "qwen3-235b-a22b",
    "qwen3-30b-a3b",
}


def call(*argv: str) -> int:
    """The exit code of the command line."""
    try:
        cli.main(list(argv))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_named_models_ship() -> None:
    assert set(models.names()) >= CONTRACT


@pytest.mark.parametrize(
    ("name", "total", "routed", "without_embedding"),
    [
        # openai/gpt-oss model card, table 1: 116.83 B and 5.13 B, 20.91 B and 3.61 B.
        ("gpt-oss-120b", 116_829_156_672, 114_701_598_720, 5_132_849_472),
        ("gpt-oss-20b", 20_914_757_184, 19_116_933_120, 3_608_307_264),
        ("deepseek-v3", 671_026_419_200, 653_908_770_816, 36_625_618_432),
        ("kimi-k2", 1_026_408_232_448, 1_014_686_023_680, None),
        ("mixtral-8x7b", 46_702_792_704, 45_097_156_608, None),
        ("qwen3-30b-a3b", 30_532_122_624, 28_991_029_248, 3_041_867_776),
    ],
)
def test_shapes_add_up_to_the_published_counts(
    name: str, total: int, routed: int, without_embedding: int | None
) -> None:
    shape = models.load(name)
    assert shape.total_parameters == total
    assert shape.routed_parameters == routed
    if without_embedding is not None:
        assert shape.active_without_embedding == without_embedding


def test_case_is_ignored_and_near_names_are_suggested() -> None:
    assert models.load("GPT-OSS-20B").name == "gpt-oss-20b"
    with pytest.raises(UnknownNameError, match="Did you mean 'kimi-k2"):
        models.load("kimi-k3")


def test_resolve_takes_a_shape_file(tmp_path: Path) -> None:
    models.load("gpt-oss-20b").save(tmp_path / "mine.json")
    assert models.resolve(str(tmp_path / "mine.json")) == models.load("gpt-oss-20b")
    with pytest.raises(ShapeError, match="no such file"):
        models.resolve(str(tmp_path / "absent.json"))
    with pytest.raises(UnknownNameError):
        models.resolve("nothing-like-it")


def test_list_and_shape_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert {m["name"] for m in listed["models"]} == set(models.names())
    assert call("models", "glm-4.7") == 0
    assert json.loads(capsys.readouterr().out)["hidden"] == 5120


def test_layout_is_counted_like_the_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "g"
    assert call("models", "gpt-oss-20b", "--layout", str(folder)) == 0
    assert sum(f.stat().st_blocks for f in folder.iterdir()) * 512 < 10_000_000  # holes, not 13.8 GB
    capsys.readouterr()
    assert call("count", str(folder), "--json") == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["parameters"]["decoder"] == models.load("gpt-oss-20b").total_parameters
    assert models.resolve(str(folder)).bytes_per_token == models.load("gpt-oss-20b").bytes_per_token
    assert call("models", "gpt-oss-20b", "--layout", str(folder)) == 2
    assert "already exists" in capsys.readouterr().err
    assert call("models", "--layout", str(tmp_path / "h")) == 2
