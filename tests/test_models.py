"""The shipped shapes and the command that lists them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from moegauge import cli, models
from moegauge.errors import ShapeError, UnknownNameError
from moegauge.formats import FORMATS
from moegauge.models import catalogue

RELEASES = Path(__file__).resolve().parent / "data" / "releases"

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
        models.load("kimi-k2-thoughts")
    with pytest.raises(UnknownNameError, match=r"Known: .* and \d+ more"):
        models.load("zzz")


def test_a_name_without_its_active_size_serves_where_one_model_answers() -> None:
    assert models.load("qwen3.5-397b").name == "qwen3.5-397b-a17b"
    assert models.resolve("Qwen3-235B").name == "qwen3-235b-a22b"
    with pytest.raises(UnknownNameError):
        models.load("qwen3.5")


def test_every_line_says_what_its_shape_says() -> None:
    found = catalogue.entries().values()
    assert len(found) >= 80
    for entry in found:
        shape = entry.shape()
        assert shape.name == entry.name
        assert shape.source["repo"] == entry.repo
        assert entry.source["config"]
        assert entry.source["made"]
        assert (shape.total_parameters, shape.dense_parameters) == (entry.total, entry.dense), entry.name
        assert (shape.routed_parameters, shape.active_parameters) == (entry.routed, entry.active), entry.name
        assert shape.active_without_embedding == entry.active_without_embedding, entry.name
        assert (len(shape.layers), shape.moe_layers) == (entry.layers, entry.moe_layers), entry.name
        assert shape.mtp_parameters == entry.mtp, entry.name
        pools = Counter((e.count, e.top_k) for layer in shape.layers for e in layer.experts)
        # LongCat's router chooses 12 of 768, of which 256 have no weights: 8 real experts on average.
        top_k = {"longcat-flash": 8}.get(entry.name, entry.top_k)
        assert pools.most_common(1)[0][0] == (entry.experts, top_k), entry.name
        assert list(entry.bytes_per_token) == ["native", *(form for form in FORMATS if form != "f32")]
        for form, size in entry.bytes_per_token.items():
            assert shape.cast(form).bytes_per_token == size, (entry.name, form)
        if entry.kv_per_context_token is not None:
            assert shape.cache_elements(1) * 2 == entry.kv_per_context_token, entry.name
        assert catalogue.pack(shape) == entry.packed, entry.name


def test_the_catalogue_adds_little_to_the_wheel() -> None:
    held = (resources.files("moegauge.models") / catalogue.FILE).read_bytes()
    assert len(held) < 300_000
    assert [e.line() for e in catalogue.entries().values()] == held.decode().splitlines()
    assert list(catalogue.entries()) == sorted(catalogue.entries())


def test_counts_are_the_module_trees() -> None:
    """`tests/data/releases` holds parameters of whole module trees of transformers and of their expert modules."""
    by_repo = {e.repo: e for e in catalogue.entries().values()}
    compared = 0
    for path in sorted(RELEASES.glob("*.json")):
        document = json.loads(path.read_text())
        entry, oracle = by_repo.get(document["repo"]), document["oracle"]
        if entry is None:
            continue
        compared += 1
        built = entry.total + entry.beside
        assert oracle["parameters"] <= built <= oracle["parameters"] + oracle["buffers"], entry.name
        assert entry.routed == oracle["routed"], entry.name
    assert compared >= 45


# Parameters without any tower: counts by modelling code that is neither transformers nor ours (vLLM's and the authors'
# own), and totals the Hub gives to the digit.
@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("ling-lite", 16_801_974_272),
        ("ling-plus", 290_602_910_976),
        # 478,583,848,960 in matrices, by hand, and 106 norms of 7,168.
        ("snowflake-arctic", 478_583_848_960 + 106 * 7_168),
        # 388,697,292,800 in matrices; 129 norms of 6,400 and 96 of 80.
        ("hunyuan-large", 388_697_292_800 + 129 * 6_400 + 96 * 80),
        ("minimax-m1", 456_089_655_296),
        ("deepseek-v2", 235_741_434_880),
        ("wizardlm-2-8x22b", 281_241_268_224 // 2),
        ("qwen3.5-18b-reap-a3b", 37_087_995_136 // 2),
        ("qwen3.5-25b-reap-a3b", 50_182_743_296 // 2),
        ("dbrx", 263_193_047_040 // 2),
    ],
)
def test_totals_by_other_means(name: str, total: int) -> None:
    assert catalogue.entries()[name].total == total


def test_kimi_k3_is_the_hub_s_to_its_tower() -> None:
    """huggingface.js pins 2,779,931,837,184 parameters, 2,722,740,830,208 of them in MXFP4."""
    entry = catalogue.entries()["kimi-k3"]
    assert entry.routed == 2_722_740_830_208
    # The config's vision tower: 27 blocks of 1,024 wide, patches, positions and projector, norms left out.
    tower = 27 * (4 * 1536 * 1024 + 2 * 1024 * 4096 + 2 * 1024) + 1024 * 3 * 196 + 64 * 64 * 1024
    tower += 4096 * 4096 + 4096 * 7168
    assert 0 <= 2_779_931_837_184 - entry.total - tower < 20_000


def test_the_page_is_what_the_catalogue_says(script: Any) -> None:
    page = script("catalogue_page")
    text = page.PAGE.read_text()
    rows = [line.strip("| ").split(" | ") for line in text.split("## Left out")[1].split("## Sources")[0].splitlines()]
    left_out = {row[0]: row[1] for row in rows if len(row) == 2 and row[0] not in ("release", "---")}
    assert page.page(list(catalogue.entries().values()), left_out) == text
    assert set(page.LEFT_OUT) <= set(left_out)
    assert "not known" not in text
    found = [check for entry in catalogue.entries().values() for check in page.checks(entry)]
    assert all(c.verdict == "exact" or (c.entry.repo, c.figure) in page.REASONS for c in found if c.figure == "hub")
    assert sum(c.verdict == "exact" for c in found if c.figure == "hub") >= 28


def test_verdicts(script: Any) -> None:
    verdict = script("catalogue_page").verdict
    assert verdict(671_026_419_200, 671_026_419_200) == "exact"
    assert verdict(671_026_419_200, 671 * 10**9) == "rounds"
    assert verdict(671_877_944_064, 671 * 10**9) == "truncates"
    assert verdict(3_353_032_704, 3_300_000_000) == "truncates"
    assert verdict(478_584_608_768, 480 * 10**9) == "rounds"
    assert verdict(352_797_829_024, 355 * 10**9) == "differs"
    assert verdict(2_439_060_736, 2_500_000_000) == "differs"


def test_table_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", "--table", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in document["models"]} == set(models.names())
    fields = {
        *("name", "repo", "family", "total", "dense", "routed", "active", "active_without_embedding", "experts"),
        *("top_k", "layers", "bytes_per_token", "kv_per_context_token", "source"),
    }
    assert all(fields <= row.keys() for row in document["models"])
    assert call("models", "--table", "--csv", "glm-5", "gpt-oss-20b") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["name"] for row in rows] == ["glm-5", "gpt-oss-20b"]
    by_name = {row["name"]: row for row in document["models"]}
    assert int(rows[0]["bytes_per_token_fp8"]) == by_name["glm-5"]["bytes_per_token"]["fp8"]
    assert call("models", "--table", "--markdown", "glm-5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert len({line.count("|") for line in lines}) == 1
    assert call("models", "--table") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(models.names())


@pytest.mark.parametrize(
    "argv",
    [
        ("--table", "--verify"),
        ("--csv",),
        ("--table", "--csv", "--json"),
        ("glm-5", "gpt-oss-20b"),
        ("--table", "no-such-model"),
        ("--verify", "no-such-model"),
    ],
)
def test_requests_that_make_no_sense(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", *argv) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


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
