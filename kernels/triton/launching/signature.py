"""Types of the kernels' pointer parameters, for compiling ahead of time and checks before a launch."""

from __future__ import annotations

from typing import Any

from moegauge.errors import DeviceError

# The usual type first; the others are what single kernels take (see `moegauge.kernels.triton.inspect.compile_report`).
POINTERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("w_pool", "s_pool", "shared_w_pool", "shared_s_pool"), ("*u32", "*u8")),
    **dict.fromkeys(("x",), ("*bf16", "*fp32")),
    **dict.fromkeys(("out",), ("*fp32", "*bf16", "*i32")),
    **dict.fromkeys(("shadow", "normalised"), ("*bf16",)),
    **dict.fromkeys(("bias", "gate_bias", "up_bias", "gain", "next_gain"), ("*bf16", "*fp32")),
    **dict.fromkeys(("keys", "values"), ("*bf16", "*u8")),
    **dict.fromkeys(
        (
            "counters",
            "slots",
            "counts",
            "members",
            "distinct",
            "slot_of",
            "number_of",
            "ids",
            "choices",
            "firsts",
            "numbers",
        ),
        ("*i32",),
    ),
    **dict.fromkeys(("buffer",), ("*i32",)),
    **dict.fromkeys(
        (
            "t_pool",
            "shared_t_pool",
            "part",
            "bias_f32",
            "share",
            "logits",
            "prior",
            "pool",
            "stats",
            "squares",
            "next_squares",
        ),
        ("*fp32",),
    ),
    **dict.fromkeys(("q", "q_rope", "k", "v"), ("*fp32",)),
}

_DTYPES = {"torch.uint32": "*u32", "torch.uint8": "*u8", "torch.bfloat16": "*bf16", "torch.float32": "*fp32",
           "torch.int32": "*i32"}  # fmt: skip


def kind_of(value: Any) -> str:
    """Triton's word for the type of an argument that is no whole number; "" for one that is."""
    if hasattr(value, "dtype"):
        return _DTYPES.get(str(value.dtype), str(value.dtype))
    return "fp32" if isinstance(value, float) else ""


def check(kernel: str, arguments: dict[str, Any], device: str) -> None:
    """Refuse arguments a kernel would misread.

    Raises:
        DeviceError: a tensor of the wrong type, on another device, or whose elements do not lie side by side.
    """
    for name, value in arguments.items():
        expected = POINTERS.get(name)
        if expected is None:
            continue
        if not hasattr(value, "dtype"):
            raise DeviceError(
                f"{kernel}: {name} is {type(value).__name__}, not a tensor.", advice="Please report this."
            )
        kind = kind_of(value)
        if kind not in expected:
            raise DeviceError(f"{kernel}: {name} is {kind}, not {' or '.join(expected)}.", advice="Please report this.")
        if value.device.type != device:
            raise DeviceError(f"{kernel}: {name} lies on {value.device}, not {device}.", advice="Move it there first.")
        if value.dim() and value.stride(-1) != 1:
            raise DeviceError(f"{kernel}: {name} is not contiguous.", advice="Pass .contiguous().")
