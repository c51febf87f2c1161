"""Two other estimators of decode speed on this kit's readings, beside `moegauge backtest`'s forward prediction.

    pip install --no-deps --target TOOLS whichllm==0.5.21 llm-cal==0.2.0
    pip install --target TOOLS pydantic pyyaml diskcache platformdirs httpx
    PYTHONPATH=TOOLS python scripts/compare_tools.py

Both run as their authors ship them, offline, each given what it asks for of a reading:

* whichllm 0.5.21 (github.com/Andyyyy64/whichllm, MIT), `estimate_tok_per_sec`: bandwidth of one device, size and active
  share of the weights, quantisation, vendor; its range is that of `estimate_speed_uncertainty`.
* llm-cal 0.2.0 (github.com/FlyTOmeLight/llm-cal, Apache-2.0), `estimate_decode`: bandwidth, devices, weight bytes over
  devices, and of an MoE the active share. A stream's speed is its figure of one device (half of the bandwidth over the
  active bytes there); its figure of the cluster, that times devices, is of batches. It gives no range.

whichllm knows one device only. Judged are the readings of one stream of the models kept apart from our fit, each of
which our law predicts from the other models of its group: it has seen that system, the two have not; their constants
are of all systems. Printed as the table of docs/estimating.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from llm_cal.architecture.profile import ArchitectureProfile, Confidence, Family, MoETraits
from llm_cal.hardware.loader import GPUSpec
from llm_cal.performance.compute import DEFAULT_CLUSTER_COMM_EFFICIENCY, estimate_decode
from whichllm.engine.performance import estimate_speed_uncertainty, estimate_tok_per_sec
from whichllm.hardware.types import GPUInfo
from whichllm.models.types import GGUFVariant, ModelInfo

from moegauge.estimator.closed.backtest import Trial, kept_apart_trials, quantile
from moegauge.estimator.readings import Reading
from moegauge.units import GB

VENDORS = {"apple": "apple", "amd": "amd", "radeon": "amd", "mi300x": "amd", "mi350x": "amd", "mi355x": "amd"}


@dataclass(frozen=True)
class Said:
    """What a tool says: tokens/s, and its range where it gives one."""

    tokens_per_s: float
    low: float | None = None
    high: float | None = None


def whichllm(reading: Reading) -> Said | None:
    """One device; None of several."""
    if reading.devices > 1:
        return None
    words = reading.device.lower().replace("(", " ").split()
    vendor = next((VENDORS[w] for w in words if w in VENDORS), "nvidia")
    gpu = GPUInfo(
        name=reading.device,
        vendor=vendor,
        vram_bytes=2**45,
        memory_bandwidth_gbps=reading.bandwidth / GB,
        shared_memory=vendor == "apple" or "strix" in words,
    )
    model = ModelInfo(
        id=reading.model,
        family_id=reading.key,
        name=reading.model,
        parameter_count=int(reading.total),
        parameter_count_active=int(reading.active) if reading.moe else None,
        is_moe=reading.moe,
    )
    file = GGUFVariant(
        f"{reading.model}.gguf", reading.format.removeprefix("UD-"), int(reading.total * reading.bits / 8)
    )
    speed = estimate_tok_per_sec(model, file, gpu)
    _, span, _ = estimate_speed_uncertainty(model, file, gpu, "full_gpu", speed)
    return Said(speed, *(span or (None, None)))


def llm_cal(reading: Reading) -> Said:
    """Any number of devices."""
    gpu = GPUSpec(
        id=reading.device,
        memory_gb=0,
        nvlink_bandwidth_gbps=0,
        memory_bandwidth_gbps=round(reading.bandwidth / GB),
        fp16_tflops=0.0,
        fp8_support=False,
        fp4_support=False,
    )
    profile = ArchitectureProfile(
        model_type="moe" if reading.moe else "dense",
        architectures=(),
        family=Family.TRANSFORMER,
        num_hidden_layers=1,
        hidden_size=1,
        vocab_size=1,
        confidence=Confidence.LOW,
        moe=MoETraits(1, 0, 1, 1) if reading.moe else None,  # that it is one is all that is asked
    )
    size = int(reading.total * reading.bits / 8)
    share = reading.active / reading.total if reading.moe else None
    found = estimate_decode(profile, size, gpu, reading.devices, moe_active_params_ratio=share)
    if found.moe_active_tokens_per_sec is None:
        return Said(found.per_gpu_tokens_per_sec.value)
    return Said(found.moe_active_tokens_per_sec.value / reading.devices / DEFAULT_CLUSTER_COMM_EFFICIENCY)


def ours(trial: Trial) -> Said:
    """The law's forward prediction with its 80 % interval."""
    assert trial.forward is not None
    return Said(trial.forward.tokens_per_s, *trial.forward.interval(80))


def row(name: str, part: list[Trial], say: Callable[[Trial], Said]) -> str:
    """One line of the table."""
    said = [(say(t), t.reading.tokens_per_s) for t in part]
    folds = [math.exp(abs(math.log(s.tokens_per_s / true))) for s, true in said]
    spans = [(s.low, s.high, true) for s, true in said if s.low is not None and s.high is not None]
    held = f"{sum(low <= true <= high for low, high, true in spans) / len(spans):.0%}" if spans else ""
    wide = f"x{quantile([high / low for low, high, _ in spans], 0.5):.2f}" if spans else ""
    figures = " | ".join(f"x{v:.2f}" for v in (quantile(folds, 0.5), quantile(folds, 0.8), max(folds)))
    return f"| {name} | {len(part)} | {figures} | {held} | {wide} |"


def main() -> None:
    """Print the table."""
    trials = [t for part in kept_apart_trials().values() for t in part if t.forward and t.reading.batch == 1]
    print("| readings of one stream, kept apart | n | median | 80 % | worst | range holds | wide |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for place, part in (
        ("one device", [t for t in trials if t.reading.devices == 1]),
        ("data centre", [t for t in trials if t.reading.devices > 1]),
    ):
        if place == "one device":
            print(row(f"{place}, whichllm", part, lambda t: whichllm(t.reading) or Said(math.nan)))
        print(row(f"{place}, llm-cal", part, lambda t: llm_cal(t.reading)))
        print(row(f"{place}, moegauge", part, ours))


if __name__ == "__main__":
    main()
