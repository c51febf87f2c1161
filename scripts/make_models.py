"""Make the catalogue of open MoE models: lay out every release from its published config, count it, check the count.

Writes `src/moegauge/models/catalogue.jsonl` and, with every published figure beside its count, `docs/catalogue.md`.

    python scripts/make_models.py CONFIGS MODELS.csv

CONFIGS holds `org--name.json` files (config.json as published, or `defaults--org--name.json`, the library's defaults
for that release), SOURCES.txt (file, how it was obtained, source; tabs between) and beside it `index/quant/` with
`org--name_hf_quant_config.json` of modelopt's releases. MODELS.csv has the columns hf_repo, total_params,
active_params, hf_safetensors_total, source and figure_from. The sources of both stand in every line that is written.
Run where transformers and torch are installed (transformers is no dependency of this package).
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import catalogue_layouts as layouts
import catalogue_page
from catalogue_layouts import Config, Row

from moegauge.counting.census import Census, take_census
from moegauge.counting.headers.header import DTYPE_BITS, Header
from moegauge.counting.mixers import kv_bytes_per_token
from moegauge.counting.quant_config import quantisation
from moegauge.counting.sources import release_layout
from moegauge.counting.sources.checkpoint import Checkpoint
from moegauge.errors import MoegaugeError
from moegauge.formats import FORMATS
from moegauge.models import catalogue

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "src" / "moegauge" / "models" / catalogue.FILE
# SOURCES.txt's words for how a config was obtained, as they are printed.
HOW = {
    "verbatim": "verbatim",
    "rebuilt": "rebuilt from the fields quoted there",
    "defaults": "the library's defaults for this release, not a published file",
}
# Rows of MODELS.csv under another name than the repository's.
PUBLISHED_AS = {"reflection/Beam-1.0-501B-A23B": "Beam-1.0-501B-A23B"}

# name, repository, file in CONFIGS (empty: `org--name`).
RELEASES: tuple[tuple[str, str, str], ...] = (
    ("minimax-text-01", "MiniMaxAI/MiniMax-Text-01", "MiniMaxAI--MiniMax-M1"),
    ("minimax-m1", "MiniMaxAI/MiniMax-M1-80k", "MiniMaxAI--MiniMax-M1"),
    ("minimax-m2", "MiniMaxAI/MiniMax-M2", "defaults--MiniMaxAI--MiniMax-M2"),
    ("minimax-m2.5", "MiniMaxAI/MiniMax-M2.5", ""),
    ("minimax-m2.7", "MiniMaxAI/MiniMax-M2.7", ""),
    ("minimax-m2.5-nvfp4", "nvidia/MiniMax-M2.5-NVFP4", ""),
    ("minimax-m2.7-nvfp4", "nvidia/MiniMax-M2.7-NVFP4", ""),
    ("minimax-m3", "MiniMaxAI/MiniMax-M3", ""),
    ("qwen1.5-moe-a2.7b", "Qwen/Qwen1.5-MoE-A2.7B", ""),
    ("qwen2-57b-a14b", "Qwen/Qwen2-57B-A14B", ""),
    ("qwen3-235b-a22b-fp8", "Qwen/Qwen3-235B-A22B-FP8", ""),
    ("qwen3-30b-a3b-fp8", "Qwen/Qwen3-30B-A3B-FP8", ""),
    ("qwen3-235b-a22b-nvfp4", "nvidia/Qwen3-235B-A22B-NVFP4", ""),
    ("qwen3-coder-480b-a35b", "Qwen/Qwen3-Coder-480B-A35B-Instruct", ""),
    ("qwen3-next-80b-a3b", "Qwen/Qwen3-Next-80B-A3B-Instruct", "defaults--Qwen--Qwen3-Next-80B-A3B"),
    ("qwen3-vl-30b-a3b", "Qwen/Qwen3-VL-30B-A3B-Instruct", ""),
    ("qwen3-vl-235b-a22b", "Qwen/Qwen3-VL-235B-A22B-Instruct", ""),
    ("qwen3.5-35b-a3b", "Qwen/Qwen3.5-35B-A3B", ""),
    ("qwen3.5-122b-a10b", "Qwen/Qwen3.5-122B-A10B", ""),
    ("qwen3.5-397b-a17b", "Qwen/Qwen3.5-397B-A17B", ""),
    ("qwen3.5-122b-a10b-nvfp4", "nvidia/Qwen3.5-122B-A10B-NVFP4", ""),
    ("qwen3.5-397b-a17b-nvfp4", "nvidia/Qwen3.5-397B-A17B-NVFP4", ""),
    ("qwen3.6-35b-a3b-nvfp4", "nvidia/Qwen3.6-35B-A3B-NVFP4", ""),
    ("qwen3.5-18b-reap-a3b", "bryce-hoehn/Qwen3.5-18B-REAP-A3B-Coding", ""),
    ("qwen3.5-25b-reap-a3b", "bryce-hoehn/Qwen3.5-25B-REAP-A3B-Coding", ""),
    ("snowflake-arctic", "Snowflake/snowflake-arctic-instruct", ""),
    ("mimo-v2-flash", "XiaomiMiMo/MiMo-V2-Flash", ""),
    ("olmoe-1b-7b", "allenai/OLMoE-1B-7B-0924", "allenai--OLMoE-1B-7B-0125"),
    ("mixtral-8x22b", "mistralai/Mixtral-8x22B-v0.1", ""),
    ("wizardlm-2-8x22b", "alpindale/WizardLM-2-8x22B", ""),
    ("dbrx", "databricks/dbrx-instruct", ""),
    ("deepseek-v2", "deepseek-ai/DeepSeek-V2", "deepseek-ai--inference_config_236B"),
    ("deepseek-v2-lite", "deepseek-ai/DeepSeek-V2-Lite", "deepseek-ai--DeepSeek-V2-Lite-Chat"),
    ("deepseek-r1", "deepseek-ai/DeepSeek-R1", ""),
    ("deepseek-v3.1-nvfp4", "nvidia/DeepSeek-V3.1-NVFP4", ""),
    ("deepseek-v3.2", "deepseek-ai/DeepSeek-V3.2", ""),
    ("deepseek-v3.2-nvfp4", "nvidia/DeepSeek-V3.2-NVFP4", ""),
    ("deepseek-v4-flash", "deepseek-ai/DeepSeek-V4-Flash", ""),
    ("deepseek-v4-pro", "deepseek-ai/DeepSeek-V4-Pro", ""),
    ("deepseek-v4-flash-fp8", "sgl-project/DeepSeek-V4-Flash-FP8", ""),
    ("deepseek-v4-pro-fp8", "sgl-project/DeepSeek-V4-Pro-FP8", ""),
    ("deepseek-v4-flash-nvfp4", "nvidia/DeepSeek-V4-Flash-NVFP4", ""),
    ("deepseek-v4-pro-nvfp4", "nvidia/DeepSeek-V4-Pro-NVFP4", ""),
    ("beam-1.0-501b-a23b", "reflection/Beam-1.0-501B-A23B", "defaults--Beam-1.0-501B-A23B"),
    ("mellum2-12b-a2.5b", "JetBrains/Mellum2-12B-A2.5B-Instruct", "defaults--JetBrains--Mellum2"),
    ("jamba-v0.1", "ai21labs/Jamba-v0.1", "defaults--ai21labs--Jamba-v0.1"),
    ("ernie-4.5-21b-a3b", "baidu/ERNIE-4.5-21B-A3B-PT", "defaults--baidu--ERNIE-4.5-21B-A3B"),
    ("ernie-4.5-vl-28b-a3b", "baidu/ERNIE-4.5-VL-28B-A3B-PT", "defaults--baidu--ERNIE-4.5-VL-28B-A3B"),
    ("ling-3.0-flash", "inclusionAI/Ling-3.0-flash", "defaults--inclusionAI--Ling-3.0-flash"),
    ("ling-lite", "inclusionAI/Ling-lite", "inclusionAI--Ling-lite-base"),
    ("ling-plus", "inclusionAI/Ling-plus", "inclusionAI--Ling-plus-base"),
    ("muse-spark-816b-a42b", "meta-models/Muse-Spark-Open-816B-A42B", "defaults--meta--muse_spark"),
    ("llama-4-scout", "meta-llama/Llama-4-Scout-17B-16E-Instruct", ""),
    ("llama-4-maverick", "meta-llama/Llama-4-Maverick-17B-128E-Instruct", ""),
    ("phi-3.5-moe", "microsoft/Phi-3.5-MoE-instruct", "defaults--microsoft--Phi-3.5-MoE"),
    ("mistral-large-4", "mistralai/Mistral-Large-4-1T-A52B", "defaults--mistralai--Mistral-Large-4"),
    ("mistral-small-4", "mistralai/Mistral-Small-4-119B-2603", "defaults--mistralai--Mistral-Small-4"),
    ("kimi-linear-48b-a3b", "moonshotai/Kimi-Linear-48B-A3B-Instruct", "defaults--moonshotai--Kimi-Linear-48B-A3B"),
    ("kimi-k2.5", "moonshotai/Kimi-K2.5", ""),
    ("kimi-k2.5-nvfp4", "nvidia/Kimi-K2.5-NVFP4", ""),
    ("kimi-k2.6-nvfp4", "nvidia/Kimi-K2.6-NVFP4", ""),
    ("kimi-k2.7-code-nvfp4", "nvidia/Kimi-K2.7-Code-NVFP4", ""),
    ("kimi-k3", "moonshotai/Kimi-K3", ""),
    ("step-3.7-flash", "stepfun-ai/Step-3.7-Flash", ""),
    ("hy3", "tencent/Hy3", "defaults--tencent--Hy3"),
    ("hunyuan-a13b", "tencent/Hunyuan-A13B-Instruct", "tencent--Hunyuan-A13B"),
    ("hunyuan-large", "tencent/Tencent-Hunyuan-Large", "tencent--Hunyuan-Large-A50B-Pretrain"),
    ("solar-open-100b", "upstage/Solar-Open-100B", "defaults--upstage--Solar-Open-100B"),
    ("glm-4.5", "zai-org/GLM-4.5", ""),
    ("glm-4.5-air", "zai-org/GLM-4.5-Air", ""),
    ("glm-4.7-flash", "zai-org/GLM-4.7-Flash", "defaults--zai-org--GLM-4.7-Flash"),
    ("glm-5", "zai-org/GLM-5", ""),
    ("glm-5.1", "zai-org/GLM-5.1", ""),
    ("glm-5.2", "zai-org/GLM-5.2", ""),
    ("glm-5-fp8", "zai-org/GLM-5-FP8", ""),
    ("glm-5.1-fp8", "zai-org/GLM-5.1-FP8", ""),
    ("glm-5.2-fp8", "zai-org/GLM-5.2-FP8", ""),
    ("glm-5-nvfp4", "nvidia/GLM-5-NVFP4", ""),
    ("glm-5.1-nvfp4", "nvidia/GLM-5.1-NVFP4", ""),
    ("glm-5.2-nvfp4", "nvidia/GLM-5.2-NVFP4", ""),
    ("gemma-4-26b-a4b", "google/gemma-4-26B-A4B-it", "google--gemma-4-26B-A4B"),
    ("gemma-4-26b-a4b-nvfp4", "nvidia/Gemma-4-26B-A4B-NVFP4", ""),
    ("inkling", "thinkingmachines/Inkling", "library:inkling_text"),
    ("granite-3.1-1b-a400m", "ibm-granite/granite-3.1-1b-a400m-instruct", ""),
    ("granite-3.1-3b-a800m", "ibm-granite/granite-3.1-3b-a800m-instruct", "ibm-granite--granite-3.1-3b-a800m"),
    ("longcat-flash", "meituan-longcat/LongCat-Flash-Chat", ""),
    ("nemotron-3-nano", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", ""),
    ("nemotron-3-nano-nvfp4", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4", ""),
    ("nemotron-3-super", "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16",
     "nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-FP8"),
    ("nemotron-3-super-fp8", "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8", ""),
    ("nemotron-3-super-nvfp4", "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4", ""),
    ("nemotron-3-ultra", "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16", ""),
    ("nemotron-3-ultra-fp8", "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-FP8", ""),
    ("nemotron-3-ultra-nvfp4", "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4", ""),
    ("nemotron-3.5-lightning-nvfp4", "nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4", ""),
    ("dots.llm1", "rednote-hilab/dots.llm1.inst", "rednote-hilab--dots.llm1"),
    ("command-a-plus", "CohereLabs/command-a-plus", ""),
)  # fmt: skip


class Sources(NamedTuple):
    """Where facts come from: configs by file name, their sources, published figures by repository."""

    folder: Path
    configs: dict[str, tuple[str, str]]
    published: dict[str, dict[str, str]]

    @classmethod
    def read(cls, folder: Path, table: Path) -> Sources:
        """The facts of CONFIGS and MODELS.csv."""
        lines = (folder / "SOURCES.txt").read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
        with table.open(newline="", encoding="utf-8") as file:
            published = {row["hf_repo"]: row for row in csv.DictReader(file)}
        return cls(folder, {name.removesuffix(".json"): (how, said(where)) for name, how, where in rows}, published)

    def figures(self, repo: str) -> dict[str, str]:
        """The published figures of a repository: its row of MODELS.csv, else the sizes in its name."""
        row = self.published.get(PUBLISHED_AS.get(repo, repo))
        sizes = re.search(r"-([\d.]+)([BT])-A([\d.]+)B", repo)
        if row or not sizes:
            return row or {}
        total = round(float(sizes[1]) * {"B": 1e9, "T": 1e12}[sizes[2]])
        return {
            "total_params": str(total), "active_params": str(round(float(sizes[3]) * 1e9)), "hf_safetensors_total": "",
            "source": "the repository's name",
        }  # fmt: skip


def said(source: str) -> str:
    """A source as it is printed: whole commits shortened, remarks about file names left out."""
    source = re.sub(r"\s*\(file name as here.*$|\s*\(?;?\(?stored copy.*$|\s*\(stored page.*?\)", "", source)
    return re.sub(r"@([0-9a-f]{10})[0-9a-f]{30}", r"@\1", source).strip() or "quoted in public text"


def census_of(rows: list[Row], documents: dict[str, Config]) -> Census:
    """The count of a checkpoint with these tensors."""
    offsets, end = [], 0
    for row in rows:
        begin, end = end, end + prod(row.shape) * DTYPE_BITS[row.dtype] // 8
        offsets.append((begin, end))
    names, dtypes, shapes = [r.name for r in rows], [r.dtype for r in rows], [r.shape for r in rows]
    header = Header("model.safetensors", names, dtypes, shapes, offsets, header_bytes=8, data_bytes=end)
    return take_census(Checkpoint("folder", "release", None, [header], documents))


class Release(NamedTuple):
    """One release to lay out.

    Attributes:
        name, repo: as in the catalogue.
        config, quant: config.json and hf_quant_config.json.
        origin: where the config came from.
        rules: the package's own rules lay it out, though the library could.
    """

    name: str
    repo: str
    config: Config
    quant: Config | None
    origin: str
    rules: bool = False


class Layout(NamedTuple):
    """A release's tensors as stored, how they were laid out, and the tree's own counts where there is a tree."""

    rows: list[Row]
    made: str
    tree: layouts.Laid | None


def laid_out(release: Release) -> Layout:
    """Every tensor of a release.

    Raises:
        Exception: neither the library nor a rule can lay it out; the message says why.
    """
    config, family = release.config, release.config.get("model_type")
    if release.rules or (family in (*release_layout.FAMILIES, *release_layout.WHOLE) and not layouts.known(config)):
        rows = [Row(t.name, t.dtype, t.shape) for t in release_layout.tensors(config)]
        return Layout(rows, f"layout rules of moegauge for {family}", None)
    tree = layouts.module_tree(config)
    rows = tree.rows + layouts.prediction_layers(tree.rows, layouts.translated(config))
    made = f"module tree of {tree.kind}, {layouts.VERSION}"
    section = quantisation(config, None) or (release.quant or {}).get("quantization")
    if section:
        rows = layouts.stored(rows, section, layouts.translated(config).get("expert_dtype"))
        made += ", stored as its quantisation section says"
    return Layout(rows, made, tree)


def entry(release: Release, row: dict[str, str]) -> catalogue.Entry:
    """The catalogue's line of one release.

    Args:
        row: its row of MODELS.csv, empty where it has none.

    Raises:
        ValueError: the count and the module tree differ.
        MoegaugeError: the count has no shape.
    """
    layout = laid_out(release)
    config = release.config if release.config.get("model_type") else layouts.translated(release.config)
    documents = {"config.json": config}
    if release.quant:
        documents["hf_quant_config.json"] = release.quant
    census = census_of(layout.rows, documents)
    if census.unclassified():
        raise ValueError(f"names no rule knows: {census.unclassified()[:3]}")
    if layout.tree is not None:
        tree, built = layout.tree, census.total - census.parameters("mtp")
        if built not in (tree.parameters, tree.parameters + tree.buffers) or census.routed != tree.routed:
            raise ValueError(f"counted {built:,} / {census.routed:,}, its tree {tree.parameters:,} / {tree.routed:,}")
    shape = census.model_shape()
    made = catalogue.Entry(
        name=release.name,
        repo=release.repo,
        family=census.facts.family,
        total=shape.total_parameters,
        dense=shape.dense_parameters,
        routed=shape.routed_parameters,
        active=shape.active_parameters,
        active_without_embedding=shape.active_without_embedding,
        experts=census.common("count") or 0,
        top_k=census.common("top_k") or 0,
        layers=len(shape.layers),
        moe_layers=shape.moe_layers,
        mtp=shape.mtp_parameters,
        beside=census.total - shape.mtp_parameters - shape.total_parameters,
        buffers=sum(g.elements for g in census.groups if g.role == "buffer"),
        stored_elements=sum(prod(r.shape) for r in layout.rows),
        bytes_per_token={form: shape.cast(form).bytes_per_token for form in ("native", *FORMATS) if form != "f32"},
        kv_per_context_token=kv_bytes_per_token(census)[0],
        source={"config": release.origin, "made": layout.made},
        published={
            "total": number(row.get("total_params")),
            "active": number(row.get("active_params")),
            "hub_total": number(row.get("hf_safetensors_total")),
            "from": said(row.get("source", "")) if row else "",
        },
        packed=catalogue.pack(shape),
    )
    if made.shape().layers != shape.layers:
        raise ValueError("its packed shape is not the shape")
    return made


def number(text: str | None) -> int | None:
    """A cell as an integer, None when empty."""
    return int(text) if text else None


def releases(sources: Sources) -> Iterator[Release]:
    """Every release to make: those the package itself lays out (`models --layout`), then those of `RELEASES`."""
    for name in release_layout.releases():
        facts = release_layout.release(name)
        yield Release(name, facts["repo"], facts["config"], None, facts["source"], rules=True)
    for name, repo, file in RELEASES:
        stem = file or repo.replace("/", "--")
        if stem.startswith("library:"):
            config = layouts.defaults(stem.removeprefix("library:"))
            yield Release(
                name, repo, config, None, f"{layouts.VERSION} model_type {config['model_type']} ({HOW['defaults']})"
            )
            continue
        config = json.loads((sources.folder / f"{stem}.json").read_text(encoding="utf-8"))
        beside = sources.folder.parent / "index" / "quant" / f"{stem}_hf_quant_config.json"
        quant = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else None
        if repo.endswith("BF16"):  # its config may be that of a quantised release of the same model
            config, quant = {k: v for k, v in config.items() if k != "quantization_config"}, None
        how, where = sources.configs[stem]
        yield Release(name, repo, config, quant, f"{where} ({HOW[how]})")


def main(configs: str, table: str) -> int:
    """Write the catalogue and its page; say what could not be made."""
    sources = Sources.read(Path(configs), Path(table))
    made: list[catalogue.Entry] = []
    left_out = dict(catalogue_page.LEFT_OUT)
    for release in releases(sources):
        try:
            made.append(entry(release, sources.figures(release.repo)))
        except (KeyError, ValueError, TypeError, MoegaugeError) as error:
            left_out[release.repo] = str(error)
            print(f"LEFT OUT {release.repo}: {type(error).__name__}: {error}")
            continue
        print(f"{release.name}: {made[-1].total:,}")
    for repo, row in sources.published.items():
        if row["figure_from"] != "dense" and repo not in {PUBLISHED_AS.get(e.repo, e.repo) for e in made}:
            left_out.setdefault(repo, "no config of it in the sources")
    made.sort(key=lambda e: e.name)
    OUT.write_text("".join(f"{e.line()}\n" for e in made), encoding="utf-8")
    catalogue_page.PAGE.write_text(catalogue_page.page(made, left_out), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
