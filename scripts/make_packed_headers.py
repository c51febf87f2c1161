"""Make test data: headers of a small MoE layer packed by the real packers, and its number of weights.

Run where the packers are installed (none is a dependency of this package); those that are absent are left alone:

    pip install compressed-tensors nvidia-modelopt torchao hqq bitsandbytes "mlx[cpu]" mlx-lm transformers requests
    pip install datasets
    python scripts/make_packed_headers.py tests/data/packed

Each file holds the headers, tensors of up to 256 bytes in full (shapes are data in some formats), the config a
checkpoint would carry, and the weights of every module before packing.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

SMALL_BYTES = 256
HIDDEN, WIDTH, EXPERTS, VOCABULARY = 256, 384, 2, 128
CONFIG = {
    "model_type": "qwen3_moe", "num_hidden_layers": 1, "hidden_size": HIDDEN, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "num_experts": EXPERTS, "num_experts_per_tok": 1,
    "moe_intermediate_size": WIDTH, "vocab_size": VOCABULARY,
}  # fmt: skip
LINEARS = {
    "model.layers.0.self_attn.q_proj": (HIDDEN, HIDDEN),
    "model.layers.0.self_attn.o_proj": (HIDDEN, HIDDEN),
    **{
        f"model.layers.0.mlp.experts.{e}.{name}": shape
        for e in range(EXPERTS)
        for name, shape in (
            ("gate_proj", (WIDTH, HIDDEN)),
            ("up_proj", (WIDTH, HIDDEN)),
            ("down_proj", (HIDDEN, WIDTH)),
        )
    },
}
FUSED = {
    "model.layers.0.mlp.experts.gate_up_proj": (EXPERTS, 2 * WIDTH, HIDDEN),
    "model.layers.0.mlp.experts.down_proj": (EXPERTS, HIDDEN, WIDTH),
}
PLAIN = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}
Packed = tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]  # tensors, config additions, file metadata


def tree(linears: dict[str, tuple[int, int]] = LINEARS) -> nn.Module:
    """A module tree with these linear layers at their names."""
    root = nn.Module()
    for name, (rows, columns) in linears.items():
        at = root
        *path, last = name.split(".")
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at._modules[part]
        at.add_module(last, nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16))
    return root


def compressed_tensors(preset: str) -> Packed:
    """compressed-tensors' preset schemes."""
    from compressed_tensors.compressors.model_compressors.model_compressor import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

    model = tree()
    scheme = preset_name_to_scheme(preset, ["Linear"])
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"]))
    for name, parameter in model.named_parameters():
        if "scale" in name or "zero" in name:
            parameter.data.fill_(0 if "zero" in name else 1)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    section = compressor.quantization_config.model_dump(mode="json")
    return model.state_dict(), {"quantization_config": section}, {}


def torchao(make: Callable[[Any], Any]) -> Packed:
    """torchao's tensor subclasses, flattened by its own safetensors support."""
    import torchao.quantization
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    model = tree()
    torchao.quantization.quantize_(model, make(torchao.quantization))
    tensors, metadata = flatten_tensor_state_dict(model.state_dict())
    return tensors, {"quantization_config": {"quant_method": "torchao"}}, metadata


def torchao_int4() -> Packed:
    """torchao's plain int4: its quantiser needs a GPU library, so the subclass is filled by hand, then flattened."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization.quantize_.workflows.int4.int4_tensor import Int4Tensor

    state = {}
    for name, (rows, columns) in LINEARS.items():
        scale = torch.ones(columns // 32, rows, dtype=torch.bfloat16)
        data = torch.zeros(rows, columns // 2, dtype=torch.int8)
        state[f"{name}.weight"] = Int4Tensor(data, scale, scale.clone(), [1, 32], torch.Size((rows, columns)))
    tensors, metadata = flatten_tensor_state_dict(state)
    return tensors, {"quantization_config": {"quant_method": "torchao"}}, metadata


def hqq(bits: int, axis: int) -> Packed:
    """HQQ's linear layers."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    tensors = {}
    for name, (rows, columns) in LINEARS.items():
        config = BaseQuantizeConfig(nbits=bits, group_size=64, axis=axis)
        plain = nn.Linear(columns, rows, bias=False)
        layer = HQQLinear(plain, config, compute_dtype=torch.bfloat16, device="cpu")
        tensors.update({f"{name}.{k}": v for k, v in layer.state_dict().items()})
    parameters = {"weight_quant_params": {"nbits": bits, "group_size": 64, "axis": axis}}
    return tensors, {"quantization_config": {"quant_method": "hqq", "quant_config": parameters}}, {}


def bitsandbytes(kind: str, nested: bool) -> Packed:
    """bitsandbytes' 4-bit and 8-bit layers."""
    import bitsandbytes as bnb

    tensors = {}
    for name, (rows, columns) in LINEARS.items():
        data = torch.randn(rows, columns)
        if kind == "int8":
            layer: Any = bnb.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False)
            layer.weight = bnb.nn.Int8Params(data, requires_grad=False, has_fp16_weights=False)._quantize("cpu")
        else:
            layer = bnb.nn.Linear4bit(columns, rows, bias=False, quant_type=kind, compress_statistics=nested)
            weight = bnb.nn.Params4bit(
                data.to(torch.bfloat16), requires_grad=False, quant_type=kind, compress_statistics=nested
            )
            layer.weight = weight._quantize("cpu")
        tensors.update({f"{name}.{k}": v for k, v in layer.state_dict().items()})
    return tensors, {"quantization_config": {"quant_method": "bitsandbytes"}}, {}


def bitsandbytes_fused(kind: str, nested: bool) -> Packed:
    """bitsandbytes on the fused parameters of transformers 5, which have no `.weight`."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    root = tree({n: shape for n, shape in LINEARS.items() if ".experts." not in n})
    mlp, experts = nn.Module(), nn.Module()
    for name, shape in FUSED.items():
        data = torch.randn(shape, dtype=torch.bfloat16)
        experts.register_parameter(name.rpartition(".")[2], nn.Parameter(data, requires_grad=False))
        replace_parameter_4bit(experts, name.rpartition(".")[2], compress_statistics=nested, quant_type=kind)
    mlp.add_module("experts", experts)
    root.get_submodule("model.layers.0").add_module("mlp", mlp)
    tensors = dict(root.state_dict())
    return tensors, {"quantization_config": {"quant_method": "bitsandbytes"}}, {}


def mlx(bits: int, group: int, mode: str) -> tuple[Path, dict[str, int]]:
    """MLX's quantiser over mlx-lm's stacked experts and absorbed attention; router and head left plain."""
    import mlx.core as mx
    from mlx import nn as layers
    from mlx.utils import tree_flatten
    from mlx_lm.models.mla import MultiLinear
    from mlx_lm.models.switch_layers import SwitchGLU

    class Decoder(layers.Module):  # type: ignore[misc]  # mlx has no stubs here
        def __init__(self) -> None:
            super().__init__()
            self.embed_tokens = layers.Embedding(VOCABULARY, HIDDEN)
            self.layers = [layers.Module()]
            self.layers[0].self_attn = layers.Module()
            self.layers[0].self_attn.embed_q = MultiLinear(64, 128, 4)
            self.layers[0].self_attn.unembed_out = MultiLinear(128, 64, 4)
            self.layers[0].self_attn.o_proj = layers.Linear(HIDDEN, HIDDEN, bias=False)
            self.layers[0].mlp = layers.Module()
            self.layers[0].mlp.gate = layers.Linear(HIDDEN, EXPERTS, bias=False)
            self.layers[0].mlp.switch_mlp = SwitchGLU(HIDDEN, WIDTH, EXPERTS)

    root = layers.Module()
    root.model, root.lm_head = Decoder(), layers.Linear(HIDDEN, VOCABULARY, bias=False)
    root.set_dtype(mx.bfloat16)
    truth = {name: value.size for name, value in tree_flatten(root.parameters())}
    how = {"group_size": group, "bits": bits, "mode": mode}

    def chosen(path: str, module: Any) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized") or path in ("lm_head", "model.layers.0.mlp.gate"):
            return False
        return {**how, "global_scale": True} if mode == "nvfp4" and "switch_mlp" in path else how

    layers.quantize(root, group, bits, mode=mode, class_predicate=chosen)
    folder = Path(tempfile.mkdtemp())
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(root.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization": how}))
    return folder, truth


def modelopt(preset: str) -> tuple[Path, dict[str, int]]:
    """NVIDIA modelopt's Hugging Face export of a tiny Llama; (folder, weights by module)."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCABULARY, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    truth = {n: p.numel() for n, p in model.named_parameters()}
    mtq.quantize(model, getattr(mtq, preset), lambda m: m(torch.arange(32)[None]))
    folder = Path(tempfile.mkdtemp())
    export_hf_checkpoint(model, export_dir=folder)
    return folder, truth


def jobs() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(file name, distribution, what to run) of every fixture."""
    for preset in ("W2A16", "W3A16", "W4A16", "W4A16_ASYM", "W5A16", "W8A16", "W8A8", "W4AFP8", "FP8", "FP8_DYNAMIC",
                   "FP8_BLOCK", "NVFP4A16", "NVFP4", "MXFP4A16", "MXFP4", "MXFP6A16", "MXFP8A16"):  # fmt: skip
        yield f"compressed-tensors-{preset.lower()}", "compressed-tensors", lambda p=preset: compressed_tensors(p)
    for preset in ("NVFP4_DEFAULT_CFG", "FP8_DEFAULT_CFG", "INT4_AWQ_CFG", "W4A8_AWQ_BETA_CFG", "MXFP4_DEFAULT_CFG",
                   "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "FP8_PER_CHANNEL_PER_TOKEN_CFG",
                   "INT8_SMOOTHQUANT_CFG"):  # fmt: skip
        name = preset.removesuffix("_CFG").removesuffix("_DEFAULT").lower()
        yield f"modelopt-{name}", "nvidia-modelopt", lambda p=preset: modelopt(p)
    yield "torchao-int8", "torchao", lambda: torchao(lambda q: q.Int8WeightOnlyConfig())
    yield "torchao-fp8", "torchao", lambda: torchao(lambda q: q.Float8WeightOnlyConfig())
    yield "torchao-intx4", "torchao", lambda: torchao(lambda q: q.IntxWeightOnlyConfig(weight_dtype=torch.int4))
    yield "torchao-int4", "torchao", torchao_int4
    for bits, axis in ((4, 0), (4, 1), (3, 1), (2, 1), (1, 1), (8, 1)):
        yield f"hqq-{bits}bit-axis{axis}", "hqq", lambda b=bits, a=axis: hqq(b, a)
    for kind, nested in (("nf4", False), ("nf4", True), ("fp4", False), ("int8", False)):
        label = f"bitsandbytes-{kind}{'-nested' if nested else ''}"
        yield label, "bitsandbytes", lambda k=kind, n=nested: bitsandbytes(k, n)
    for mode, bits, group in (("affine", 4, 64), ("affine", 3, 32), ("affine", 6, 64), ("mxfp4", 4, 32),
                              ("nvfp4", 4, 16), ("mxfp8", 8, 32)):  # fmt: skip
        yield f"mlx-{mode}-{bits}bit", "mlx-lm", lambda b=bits, g=group, m=mode: mlx(b, g, m)
    for kind, nested in (("nf4", True), ("fp4", False)):
        yield f"bitsandbytes-{kind}-fused", "bitsandbytes", lambda k=kind, n=nested: bitsandbytes_fused(k, n)


def read(folder: Path) -> tuple[list[list[Any]], dict[str, str], dict[str, str]]:
    """(rows, small tensors in base64, file metadata) of every shard in a folder."""
    rows, small, metadata = [], {}, {}
    for file in sorted(folder.glob("*.safetensors")):
        raw = file.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        with safe_open(file, "pt") as opened:
            metadata.update(opened.metadata() or {})
        for name, entry in json.loads(raw[8:start]).items():
            if name == "__metadata__":
                continue
            rows.append([name, entry["dtype"], entry["shape"]])
            begin, end = entry["data_offsets"]
            if end - begin <= SMALL_BYTES and re.search(r"shape|nbits|quant_state", name):
                small[name] = base64.b64encode(raw[start + begin : start + end]).decode()
    return sorted(rows), small, metadata


def make(distribution: str, work: Callable[[], Any]) -> dict[str, Any]:
    """The document of one fixture."""
    result = work()
    if distribution == "nvidia-modelopt":
        folder, truth = result
        config = json.loads((folder / "config.json").read_text())
        config = {k: config[k] for k in ("model_type", "num_hidden_layers", "hidden_size", "quantization_config")}
        quant = json.loads((folder / "hf_quant_config.json").read_text())
    elif distribution == "mlx-lm":
        folder, truth = result
        config, quant = json.loads((folder / "config.json").read_text()), None
    else:
        tensors, extra, metadata = result
        numbered = not any(name in tensors for name in FUSED)
        truth = {f"{n}.weight": rows * columns for n, (rows, columns) in LINEARS.items() if numbered or "attn" in n}
        truth.update({} if numbered else {n: math.prod(shape) for n, shape in FUSED.items()})
        truth.update({n: rows * columns for n, (rows, columns) in PLAIN.items()})
        tensors = {**tensors, **{n: torch.zeros(s, dtype=torch.bfloat16) for n, s in PLAIN.items()}}
        folder = Path(tempfile.mkdtemp())
        plain = {n: t.detach().reshape(t.shape).clone().contiguous() for n, t in tensors.items() if hasattr(t, "shape")}
        save_file(plain, folder / "model.safetensors", metadata=metadata or None)
        config, quant = {**CONFIG, **extra}, None
    rows, small, metadata = read(folder)
    return {
        "packer": f"{distribution} {importlib.metadata.version(distribution)}",
        "config": config,
        "hf_quant_config": quant,
        "metadata": metadata,
        "weights": truth,
        "small": small,
        "headers": rows,
    }


def main(target: str) -> int:
    """Write one file per format of every packer that is installed."""
    Path(target).mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, distribution, work in jobs():
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            print(f"left alone {name}: {distribution} is not installed")
            continue
        torch.manual_seed(0)
        try:
            document = make(distribution, work)
        except Exception as error:  # a packer that fails is listed, not hidden
            print(f"FAILED {name}: {type(error).__name__}: {str(error)[:200]}")
            failed += 1
            continue
        lines = [f'"{k}": {json.dumps(v, separators=(",", ":"))}' for k, v in document.items()]
        (Path(target) / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(f"{name}: {sum(document['weights'].values()):,} weights, {len(document['headers'])} tensors")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
