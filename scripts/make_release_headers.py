"""Make test data: published configs expanded to whole checkpoints by transformers on the meta device.

    python scripts/make_release_headers.py CONFIGS MODELS.csv tests/data/releases

CONFIGS holds `org--name.json` files (config.json as published, or `defaults--org--name.json`, the library's defaults
for that release); MODELS.csv has the columns hf_repo, total_params, active_params, hf_safetensors_total and source.
Run where transformers is installed (it is no dependency of this package).
"""

from __future__ import annotations

import csv
import json
import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import make_family_headers as families
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# Config files whose name differs from the repository's.
ALIASES = {
    "Qwen/Qwen3-Next-80B-A3B-Instruct": "defaults--Qwen--Qwen3-Next-80B-A3B",
    "deepseek-ai/DeepSeek-V2-Lite": "deepseek-ai--DeepSeek-V2-Lite-Chat",
    "moonshotai/Kimi-Linear-48B-A3B-Instruct": "defaults--moonshotai--Kimi-Linear-48B-A3B",
    "MiniMaxAI/MiniMax-M1-80k": "MiniMaxAI--MiniMax-M1",
    "tencent/Hunyuan-A13B-Instruct": "tencent--Hunyuan-A13B",
    "rednote-hilab/dots.llm1.inst": "rednote-hilab--dots.llm1",
    "baidu/ERNIE-4.5-21B-A3B-PT": "defaults--baidu--ERNIE-4.5-21B-A3B",
    "mistralai/Mistral-Small-4-119B-2603": "defaults--mistralai--Mistral-Small-4",
    "allenai/OLMoE-1B-7B-0924": "allenai--OLMoE-1B-7B-0125",
    "ibm-granite/granite-3.1-3b-a800m-instruct": "ibm-granite--granite-3.1-3b-a800m",
    "microsoft/Phi-3.5-MoE-instruct": "defaults--microsoft--Phi-3.5-MoE",
    "google/gemma-4-26B-A4B-it": "google--gemma-4-26B-A4B",
    "poolside/Laguna-XS-2.1": "defaults--poolside--Laguna-XS",
    "JetBrains/Mellum2-12B-A2.5B-Instruct": "defaults--JetBrains--Mellum2",
    "mistralai/Mixtral-8x22B-v0.1": "mistralai--Mixtral-8x22B-v0.1",
}


def spans(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(sorted(numbers)), lambda item: item[1] - item[0])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def fold(rows: list[list[Any]]) -> list[list[Any]]:
    """[template, dtype, shape, spans of the layer's number]; other numbers stay in the template."""
    found: dict[str, list[int]] = {}
    for name, dtype, shape in rows:
        number = re.search(r"\.(\d+)\.", name)
        template = name if number is None else f"{name[: number.start(1)]}{{}}{name[number.end(1) :]}"
        found.setdefault(json.dumps([template, dtype, shape]), []).append(int(number[1]) if number else 0)
    return [[*json.loads(key), spans(numbers)] for key, numbers in found.items()]


def expand(config: dict[str, Any]) -> tuple[str, list[list[Any]], dict[str, int]]:
    """(class, rows, oracle) of the model this config makes, on the meta device."""
    made = CONFIG_MAPPING[config["model_type"]].from_dict(
        {k: v for k, v in config.items() if k != "quantization_config"}
    )
    kind = families.model_class(made)
    kind = kind[0] if isinstance(kind, tuple) else kind
    with torch.device("meta"):
        model = kind(made)
    tied = set(model.all_tied_weights_keys)
    dtypes = {"float32": "BF16", "bfloat16": "BF16", "float16": "BF16", "int64": "I64", "int32": "I32", "bool": "BOOL"}
    state = model.state_dict()
    rows = [[n, dtypes[str(t.dtype)[6:]], list(t.shape)] for n, t in state.items() if n not in tied]
    padded = config.get("zero_expert_num") or 0
    if padded:  # transformers gives LongCat's experts without weights rows in gate_up_proj; the release has none
        rows = [[n, d, [s[0] - padded, *s[1:]] if n.endswith("experts.gate_up_proj") else s] for n, d, s in rows]
    surplus = sum(t.numel() * padded // t.shape[0] for n, t in state.items() if n.endswith("experts.gate_up_proj"))
    parameters = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    oracle = {
        "parameters": sum(p.numel() for p in model.parameters()) - surplus,
        "routed": families.expert_parameters(model, config["model_type"]) - surplus,
        "buffers": sum(t.numel() for n, t in state.items() if n not in parameters),
    }
    return kind.__name__, rows, oracle


def main(configs: str, table: str, target: str) -> int:
    """Write one file per release whose config is there and whose family transformers knows."""
    Path(target).mkdir(parents=True, exist_ok=True)
    with Path(table).open(newline="") as file:
        published = list(csv.DictReader(file))
    for row in published:
        repo = row["hf_repo"]
        names = (ALIASES.get(repo, ""), repo.replace("/", "--"), f"defaults--{repo.replace('/', '--')}")
        path = next((p for n in names if n and (p := Path(configs) / f"{n}.json").is_file()), None)
        config = json.loads(path.read_text()) if path else {}
        if config.get("model_type") not in CONFIG_MAPPING.keys():  # noqa: SIM118 - a lazy mapping without __contains__
            continue
        try:
            kind, rows, oracle = expand(config)
        except Exception as error:  # a config this transformers cannot build is listed, not hidden
            print(f"FAILED {repo}: {type(error).__name__}: {str(error)[:160]}")
            continue
        if not oracle["routed"]:
            continue
        document = {
            "repo": repo,
            "class": kind,
            "transformers": transformers.__version__,
            "config_from": path.stem if path else "",
            "published": {
                key: int(row[key]) if row[key] else None
                for key in ("total_params", "active_params", "hf_safetensors_total")
            },
            "source": re.sub(r"\s*\(?;?\(?stored copy\)?", "", row["source"]),
            "oracle": oracle,
            "config": families.clean(config),
            "headers": fold(rows),
        }
        lines = [f'"{k}": {json.dumps(v, separators=(",", ":"))}' for k, v in document.items()]
        (Path(target) / f"{repo.replace('/', '--')}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(f"{repo}: {oracle['parameters']:,} parameters, {oracle['routed']:,} routed")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
