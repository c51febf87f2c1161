"""The commands' documents have the fields other programs read, and errors are one line."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moegauge.cli import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*argv: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(list(argv))
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


Run = Callable[..., tuple[int, str, str]]


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(finite(v) for v in value.values())
    if isinstance(value, list):
        return all(finite(v) for v in value)
    return not isinstance(value, float) or math.isfinite(value)


def test_predict_document(run: Run) -> None:
    code, out, err = run("predict", "glm-4.7", "--bandwidth", "1000", "--floor-us", "2", "--batch", "2", "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["schema"] == "moegauge.predict/1"
    assert set(document["terms_ms"]) == {"weights", "kv", "floor", "draft", "communication", "all_reduce"}
    assert document["terms_ms"].pop("all_reduce") == 0  # one device; `communication` includes it
    assert sum(document["terms_ms"].values()) == pytest.approx(1e3 / document["tokens_per_s"])
    assert document["fits"] == {"devices": None, "kv_tokens": None, "fit": None}  # a bandwidth says nothing of memory
    assert document["interval"][0] < document["tokens_per_s"] < document["interval"][1]
    assert document["bytes_per_step"] > 60e9


def test_estimate_document(run: Run) -> None:
    code, out, _ = run("estimate", "--preset", "opus-2026-03", "--json")
    document = json.loads(out)
    assert code == 0
    assert finite(document)
    assert document["schema"] == "moegauge.estimate/1"
    assert document["identifiable"] is True
    published = document["published"]
    assert published["bandwidth"] == [4.0e12, 4.5e12]
    assert {"model", "tokens_per_s", "bytes_per_token", "bandwidth"} <= set(published["calibration"][0])
    opus = published["models"][0]
    assert opus["model"] == "Opus 4.6"
    assert set(opus["active"]) == {"fp8", "bf16", "fp8_fp4"}
    assert set(opus["total"]) == {"glm-4.7", "deepseek-v3", "kimi-k2"}
    for model in document["measured"]["models"]:
        assert {"median", "50", "80", "95"} == set(model["active"]) == set(model["total"])
        assert model["variance"]


def test_backtest_document(run: Run) -> None:
    code, out, _ = run("backtest", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["schema"] == "moegauge.backtest/1"
    assert document["n"] == len(document["cases"])
    assert document["skipped"] == len(document["skipped_rows"])
    folds = {"median_fold", "p80_fold", "p95_fold", "worst_fold"}
    assert set(document["published"]) == folds
    assert set(document["measured"]) == folds | {"coverage_50", "coverage_80", "coverage_95"}
    assert folds | {"n", "coverage_50", "coverage_80", "coverage_95"} <= set(document["forward"])
    assert {row["regime"] for row in document["by_regime"]} == {"one device", "data centre"}
    for row in document["by_regime"]:
        assert {"moe", "n", "median_fold", "p80_fold", "coverage_80"} <= set(row)
    for trial in document["cases"]:
        low, high = trial["interval_80"]
        assert low < trial["estimate"] < high


def test_other_documents(run: Run) -> None:
    for argv, schema in (
        (("claims", "opus-1t-32b"), "moegauge.claims/1"),
        (("batching", "kimi-k2", "--bandwidth", "3000", "--dollars-per-device-hour", "2"), "moegauge.batching/1"),
        (("predict", "--judge"), "moegauge.predict-judge/1"),
    ):
        code, out, _ = run(*argv, "--json")
        assert code == 0
        document = json.loads(out)
        assert document["schema"] == schema
        assert finite(document)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ("estimate", "--preset", "opus-2026-03"),
            "readings of open MoE models in data centres the 80 % interval holds",
        ),
        (("backtest",), "On 144 readings of open models the intervals hold"),
        (("claims", "mythos-10t"), "no usable speed"),
        (("claims",), "opus-active-17b"),
        (("batching", "kimi-k2"), "misled"),
        (("backtest", "--kept-apart"), "the intervals hold"),
        (("predict", "--judge"), "llama.cpp"),
        (("predict", "deepseek-v3", "--device", "H200 SXM", "--devices", "8"), "tokens/s a stream"),
    ],
)
def test_words_for_people(run: Run, argv: tuple[str, ...], words: str) -> None:
    code, out, _ = run(*argv)
    assert code == 0
    assert words in " ".join(out.split())


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("predict", "glm-4.7"), 2, "exactly one of --record, --bandwidth and --device"),
        (("predict",), 2, "no model given"),
        (("predict", "glm-4.6", "--bandwidth", "1"), 2, "glm-4.7"),
        (("predict", "glm-4.7", "--bandwidth", "nan"), 2, "bandwidth"),
        (("predict", "glm-4.7", "--bandwidth", "1", "--batch", "0"), 2, "batch"),
        (("predict", "glm-4.7", "--bandwidth", "1", "--format", "fp9"), 2, "fp8"),
        (("predict", "glm-4.7", "--record", "absent.json"), 1, "absent.json"),
        (("predict", "glm-4.7", "--device", "abacus"), 2, "abacus"),
        (("predict", "glm-4.7", "--bandwidth", "1", "--devices", "8", "--parallel", "tp=8"), 2, "not both"),
        (("predict", "glm-4.7", "--bandwidth", "1", "--parallel", "tp=8,ep=3"), 2, "ep is 3, which does not divide tp"),
        (("predict", "glm-4.7", "--bandwidth", "1", "--parallel", "tp=7,ep=7"), 2, "does not divide the 160 experts"),
        (("predict", "glm-4.7", "--bandwidth", "1", "--parallel", "tp=8,dp=2"), 2, "Example: --parallel"),
        (("predict", "glm-4.7", "--bandwidth", "1", "--parallel", "tp=2,tp=4"), 2, "Example: --parallel"),
        (("predict", "glm-4.7", "--bandwidth", "1", "--parallel", "tp=0"), 2, "devices is 0"),
        (("predict", "glm-4.7", "--bandwidth", "1", "--parallel", "pp=93"), 2, "has 92 layers"),
        (("predict", "glm-4.7", "--bandwidth", "1", "--draft", "3"), 2, "go together"),
        (("predict", "glm-4.7", "--bandwidth", "1", "--draft", "3", "--acceptance", "1.5"), 2, "acceptance is 1.5"),
        (("predict", "glm-4.7", "--bandwidth", "1", "--draft", "-1", "--acceptance", "1"), 2, "draft is -1"),
        (("predict", "glm-4.7", "--record", "absent.json", "--devices", "2"), 2, "a record is of one device"),
        (("estimate",), 2, "exactly one"),
        (("estimate", "--preset", "opus"), 2, "opus-2026-03"),
        (("estimate", "--observations", "absent.csv"), 1, "absent.csv"),
        (("estimate", "--preset", "opus-2026-03", "--assume", "batch=-1"), 2, "batch"),
        (("backtest", "--observations", "absent.csv"), 1, "absent.csv"),
        (("claims", "nothing"), 2, "unknown claim"),
        (("backtest", "--kept-apart", "--unseen", "system"), 2, "--kept-apart"),
        (("batching", "kimi-k2", "--dollars-per-device-hour", "1"), 2, "--bandwidth"),
        (("batching", "kimi-k2", "--device", "NVIDIA H200 SXM"), 2, "Give more --devices"),
    ],
)
def test_one_line_errors(run: Run, argv: tuple[str, ...], code: int, words: str) -> None:
    got, out, err = run(*argv)
    assert got == code
    assert out == ""
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_hostile_names_are_shown_harmless(run: Run, readings_csv: Callable[..., Path]) -> None:
    evil = "m\x1b[31m[bold]"
    path = readings_csv({"model": evil, "system": evil}, {"model": "b", "system": evil}, {"model": evil, "batch": 2})
    code, out, _ = run("backtest", "--observations", str(path))
    assert code == 0
    assert "\x1b" not in out
    assert "[bold]" in out


@pytest.mark.parametrize("argv", [("predict", "--judge"), ("batching", "deepseek-v3", "--calibrator", "mixtral-8x7b")])
def test_the_document_prints_what_the_command_prints(run: Run, argv: tuple[str, ...]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "estimating.md").read_text(encoding="utf-8")
    shown = {line.strip() for line in text.splitlines() if line.startswith("    ")}
    _, out, _ = run(*argv)
    figures = [line.strip() for line in out.splitlines() if not line.lstrip().startswith("batch")]
    assert [line for line in figures if line not in shown] == []


SERVED = ("predict", "deepseek-v3", "--device", "NVIDIA B200 SXM", "--stack", "SGLang", "--parallel")


@pytest.mark.parametrize(
    "argv",
    [
        ("formula",),
        (*SERVED, "tp=8"),
        (*SERVED, "tp=8,ep=8,pp=2"),
        (*SERVED, "tp=2"),
        (*SERVED, "tp=8", "--draft", "3", "--acceptance", "0.7"),
    ],
)
def test_the_map_page_prints_what_the_commands_print(run: Run, argv: tuple[str, ...]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "formula.md").read_text(encoding="utf-8")
    code, out, _ = run(*argv)
    assert code == 0
    shown = "\n".join(line.removeprefix("    ") for line in text.splitlines())
    assert f"\n{out.strip()}\n" in shown


@pytest.mark.parametrize(
    "argv",
    [
        ("claims",),
        ("claims", "price-rule"),
        ("claims", "gpt-4-1.6-1.8t", "--server", "8 x H200", "--precision", "fp8"),
    ],
)
def test_the_ledger_in_the_document_is_the_commands(run: Run, argv: tuple[str, ...]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "estimating.md").read_text(encoding="utf-8")
    shown = "\n".join(line.removeprefix("    ") for line in text.splitlines())
    code, out, _ = run(*argv)
    assert code == 0
    assert f"\n{out.strip()}\n" in shown


def test_formula_document_and_chart(run: Run, tmp_path: Path) -> None:
    code, out, err = run("formula", "--json", "--svg", str(tmp_path / "map.svg"))
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert finite(document)
    fields = {"system", "device", "devices", "model", "floor_share", "error_of_formula"}
    assert all(fields <= set(case) for case in document["cases"])
    chart = (tmp_path / "map.svg").read_text(encoding="utf-8")
    # The page's own chart is this one, but for the last digit of a place.
    page = (Path(__file__).parents[2] / "docs" / "formula.svg").read_text(encoding="utf-8")
    here, there = (re.findall(r"-?\d+\.?\d*", text) for text in (chart, page))
    assert re.sub(r"[-+\d.]+", "", chart) == re.sub(r"[-+\d.]+", "", page)
    assert [float(x) for x in here] == pytest.approx([float(x) for x in there], abs=1.0)
    assert run("formula", "--svg", str(tmp_path / "map.svg"))[0] == 2


def test_an_estimate_says_what_it_assumes_and_what_it_saw(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    argv = ("estimate", "--preset", "opus-2026-03", "--assume", "speculation=1", "--assume", "precision=fp8")
    _, out, _ = run(*argv, "--seed", "7", "--html", str(page))
    left_open = next(line for line in out.splitlines() if line.startswith("Ours, left open: "))
    assert "speculation" not in left_open
    assert "precision" not in left_open
    assert "floor" in left_open
    assert "held: speculation 1 tokens/step, precision fp8" in out
    command = "moegauge estimate --preset opus-2026-03 --seed 7 --assume speculation=1 --assume precision=fp8"
    assert out.splitlines()[-1] == f"seed 7; {command}"
    for text in (out, page.read_text(encoding="utf-8")):
        assert text.count("2026-03-12") >= 9  # a date beside each of nine speeds
        assert "unexcitedneurons" in text
        assert command in text
    assert ">speculation 1 tokens/step</th>" in page.read_text(encoding="utf-8")
    document = json.loads(run(*argv, "--json")[1])
    assert {row["model"] for row in document["observations"]} >= {"Opus 4.6", "GLM-4.7"}
    assert all(row["date"] and row["source"] and row["metric"] for row in document["observations"])


def test_predict_says_that_it_does_not_fit_before_how_fast_it_is(run: Run) -> None:
    argv = ("predict", "deepseek-v3", "--device", "RTX 4090")
    _, out, _ = run(*argv)
    assert "a stream, if it fitted" in out.splitlines()[0]
    assert "do not fit: 1 device has 24 GB, 29 would do" in out
    assert json.loads(run(*argv, "--json")[1])["fits"] == {"devices": 29, "kv_tokens": 0, "fit": False}


ROOT = Path(__file__).parents[2]


def shown() -> list[tuple[str, tuple[str, ...]]]:
    """Every command of docs/estimating.md and the lines under it."""
    found: list[tuple[str, list[str]]] = []
    inside = False
    for line in (ROOT / "docs" / "estimating.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("    $ moegauge "):
            found.append((line.removeprefix("    $ moegauge "), []))
            inside = True
        elif inside and line.startswith("    "):
            found[-1][1].append(line.removeprefix("    ").rstrip())
        else:
            inside = False
    return [(command, tuple(lines)) for command, lines in found]


@pytest.mark.parametrize(("command", "lines"), shown(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_of_the_document_prints_what_is_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, lines: tuple[str, ...]
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, _ = run(*shlex.split(command))
    assert code == 0
    printed = iter(out.splitlines())
    assert lines
    for line in lines:
        assert line in printed, f"not printed, or not in this order: {line}"
