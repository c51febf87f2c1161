"""The published estimate of closed models, regenerated digit by digit from counted checkpoints.

Everything typed stands in `data/opus-2026-03.json` (the post's observations and assumptions); everything counted in
`data/counted.json`, made by scripts/make_counted.py. Nothing of our own method is used here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from moegauge.estimator import one_term
from moegauge.estimator.closed.fleets import Fleet
from moegauge.estimator.packaged import packaged
from moegauge.units import GB


@dataclass(frozen=True, slots=True)
class Counted:
    """A calibration model counted in the post's convention: stored elements of the main model, scales included.

    Attributes:
        always, routed: elements every token uses, and of the routed experts one token uses.
        experts, top_k: of the main decoder.
    """

    always: int
    routed: int
    experts: int
    top_k: int

    @property
    def active(self) -> int:
        """Elements one token uses."""
        return self.always + self.routed

    @property
    def dense_share(self) -> float:
        """Share of the active elements every token uses."""
        return self.always / self.active

    @property
    def expansion(self) -> float:
        """Experts over experts per token."""
        return self.experts / self.top_k


def counted(extra: dict[str, int]) -> dict[str, Counted]:
    """The packaged counts, with the post's further always-active elements added by model."""
    models = json.loads(packaged("counted.json"))["models"]
    return {
        name: Counted(
            m["active_stored_elements"] - m["routed_active_stored_elements"] + extra.get(name, 0),
            m["routed_active_stored_elements"],
            m["experts"],
            m["top_k"],
        )
        for name, m in models.items()
    }


def opus_2026_03() -> dict[str, Any]:
    """Sections of the published estimate, as the `published` field of `moegauge estimate --json`.

    Counts in parameters, sizes in bytes, bandwidths in bytes/s.
    """
    preset = json.loads(packaged("opus-2026-03.json"))
    extra = {c["counted"]: c["uncounted_elements"] for c in preset["calibration"] if "uncounted_elements" in c}
    counts = counted(extra)
    low, high = preset["bandwidth_bytes_per_s"]
    calibration = [_calibrate(row, counts[row["counted"]]) for row in preset["calibration"]]
    return {
        "source": preset["source"],
        "provider": preset["provider"],
        "bandwidth": [low, high],
        "calibration": calibration,
        "models": [_invert(row, preset, counts) for row in preset["models"]],
        "variants": _variants(preset, counts),
        "inputs_not_derived": _assumed(preset, counts),
    }


def of_fleet(fleet: Fleet) -> dict[str, Any]:
    """The same formula on other observations: every open model at FP8, logical parameters, no rounding.

    The bandwidth range is that of the calibrations; dense shares and sparsities are those of the open models.
    """
    shapes = [(row, row.shape) for row in fleet.open if row.shape]
    calibration: list[dict[str, Any]] = [
        {
            "model": row.model,
            "tokens_per_s": row.tokens_per_s,
            "active": shape.active_parameters,
            "bytes_per_token": shape.active_parameters,
            "bandwidth": one_term.effective_bandwidth([(shape.active_parameters, row.tokens_per_s)]),
        }
        for row, shape in shapes
    ]
    bandwidths = [float(c["bandwidth"]) for c in calibration]
    dense = [1 - shape.routed_active_parameters / shape.active_parameters for _, shape in shapes]
    expansion = {
        shape.name: sum(p.count / p.top_k for p in pools) / len(pools)
        for _, shape in shapes
        if (pools := [pool for layer in shape.layers for pool in layer.experts])
    }
    models = []
    for row in fleet.closed:
        sizes = [one_term.invert(b, row.tokens_per_s) for b in (min(bandwidths), max(bandwidths))]
        shares = (max(dense), min(dense))
        models.append(
            {
                "model": row.model,
                "tokens_per_s": row.tokens_per_s,
                "bytes_per_token": sizes,
                "active": {
                    "fp8": sizes,
                    "bf16": [s / 2 for s in sizes],
                    "fp8_fp4": [s / (0.5 + d / 2) for s, d in zip(sizes, shares, strict=True)],
                },
                "total": {
                    name: [one_term.total_parameters(s, d, x) for s, d in zip(sizes, shares, strict=True)]
                    for name, x in expansion.items()
                },
            }
        )
    return {
        "provider": fleet.provider,
        "bandwidth": [min(bandwidths), max(bandwidths)],
        "calibration": calibration,
        "models": models,
        "inputs_not_derived": ["every open model taken to be served in FP8"],
    }


def _calibrate(row: dict[str, Any], count: Counted) -> dict[str, Any]:
    size = count.always * row["always_bytes"] + count.routed * row["routed_bytes"]
    return {
        "model": row["model"],
        "tokens_per_s": row["tokens_per_s"],
        "active": count.active,
        "always_active": count.always,
        "routed_active": count.routed,
        "bytes_per_token": _whole(size),
        "bandwidth": _whole(one_term.effective_bandwidth([(size, row["tokens_per_s"])])),
    }


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _invert(row: dict[str, Any], preset: dict[str, Any], counts: dict[str, Counted]) -> dict[str, Any]:
    sizes = [one_term.invert(b, row["tokens_per_s"]) for b in preset["bandwidth_bytes_per_s"]]
    # Two rows of the post go on from gigabytes rounded to one digit; the others do not.
    carried = [round(s / GB, 1) * GB for s in sizes] if row.get("goes_on_from_rounded") else sizes
    most, least = preset["fp8_fp4_bytes_per_parameter"]
    shares = [counts[preset["dense_share_of"][end]].dense_share for end in ("low", "high")]
    mixed = [[one_term.active_parameters(c, b) for c in carried] for b in (most, least)]
    return {
        "model": row["model"],
        "tokens_per_s": row["tokens_per_s"],
        "bytes_per_token": sizes,
        "active": {
            "fp8": [one_term.active_parameters(s, 1.0) for s in sizes],
            "bf16": [one_term.active_parameters(s, 2.0) for s in carried],
            "fp8_fp4": [mixed[0][0], mixed[1][1]],
        },
        "active_fp8_fp4_at": {str(most): mixed[0], str(least): mixed[1]},
        "total": {
            name: [
                one_term.total_parameters(one_term.active_parameters(size, 1.0), share, counts[name].expansion)
                for size, share in zip(sizes, shares, strict=True)
            ]
            for name in preset["sparsity_of"]
        },
    }


def _variants(preset: dict[str, Any], counts: dict[str, Counted]) -> list[dict[str, Any]]:
    kimi = next(c for c in preset["calibration"] if c["counted"] == "kimi-k2")
    bf16_always = dict(kimi, always_bytes=2)
    ratio = preset["largest_fp8_fp4"] / preset["largest_fp8"]
    opus = preset["models"][0]
    share = counts["kimi-k2"].dense_share
    largest = {
        name: one_term.total_parameters(preset["largest_fp8_fp4"], share, counts[name].expansion)
        for name in preset["sparsity_of"]
    }
    return [
        {
            "name": "Kimi K2 Thinking with BF16 always-active parameters",
            "bandwidth": _calibrate(bf16_always, counts["kimi-k2"])["bandwidth"],
            "note": "6.36 TB/s in the post: one assumed precision moves the calibration by 53 %",
        },
        {
            "name": f"{opus['model']} with FP4 experts: larger totals",
            "ratio": ratio,
            "printed_ratio": preset["printed_ratio"],
            "total": largest,
            "note": "154.0 / 104.7 is 1.471; the post prints 1.46",
        },
        {
            "name": "footnote on GLM-4.7's size",
            "active": counts["glm-4.7"].active,
            "printed": counts["deepseek-v3"].active,
            "note": "the footnote repeats DeepSeek's number for GLM-4.7; the post's own arithmetic uses the right one",
        },
    ]


def _assumed(preset: dict[str, Any], counts: dict[str, Counted]) -> list[str]:
    kimi, deepseek = counts["kimi-k2"], counts["deepseek-v3"]
    mixed = [c.dense_share + 0.5 * (1 - c.dense_share) for c in (deepseek, kimi)]
    most, least = preset["fp8_fp4_bytes_per_parameter"]
    return [
        "tokens/s of every model: read from a router's page that day, no method or percentile stated",
        "Kimi's always-active elements: 3,416 (61 x 56) more than its release layout holds; added as printed",
        (
            "precision served: FP8 for DeepSeek and GLM-4.7 (whose release is BF16), FP8 with 4-bit experts for Kimi "
            "(whose release is BF16 with 4-bit experts)"
        ),
        "bandwidth range 4.0 to 4.5 TB/s: the three calibrations rounded outwards",
        f"bytes per parameter {most} and {least}: rounded; the counts give {mixed[0]:.4f} and {mixed[1]:.4f}",
        "no batch, KV cache, floors, speculation or device count: all are folded into the effective bandwidth",
        "rounding: Opus 4.6 and Sonnet 4.5 go on from gigabytes rounded to one digit, the other rows do not",
    ]
