"""The published one-term formula: bytes per token x tokens/s is a constant of the provider.

Source: "Estimating the Size of Claude Opus 4.5/4.6", unexcitedneurons, 12 March 2026. Nothing here knows of floors,
batches or layers, and nothing of ours is used.
"""

from __future__ import annotations

from collections.abc import Sequence


def effective_bandwidth(observed: Sequence[tuple[float, float]]) -> float:
    """Mean of bytes per token x tokens/s over the calibration models, in bytes/s.

    Args:
        observed: (bytes per token, tokens/s) of each reading; at least one.
    """
    return sum(size * speed for size, speed in observed) / len(observed)


def invert(bandwidth: float, tokens_per_s: float) -> float:
    """Bytes per token of a model that decodes at `tokens_per_s` (1/s) of `bandwidth` (bytes/s)."""
    return bandwidth / tokens_per_s


def active_parameters(bytes_per_token: float, bytes_per_parameter: float) -> float:
    """Active parameters when one takes `bytes_per_parameter` on average."""
    return bytes_per_token / bytes_per_parameter


def total_parameters(active: float, dense_share: float, expansion: float) -> float:
    """Always-active part plus the routed part times experts / experts per token.

    Args:
        active: active parameters.
        dense_share: share of them every token uses, 0 to 1.
        expansion: experts / experts per token.
    """
    return active * (dense_share + (1 - dense_share) * expansion)
