"""Count an MoE checkpoint from its safetensors or GGUF headers: dense, routed and active parameters, bytes per token.

Imports no torch.

from moegauge.counting import count
census = count("openai/gpt-oss-20b")
census.decoder, census.routed, census.active, census.model_shape()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moegauge.counting.census import Census
    from moegauge.counting.families import Rule

__all__ = ["count"]


def count(
    target: str,
    revision: str | None = None,
    *,
    weights: str = "",
    top_k: int | None = None,
    thorough: bool = False,
    deadline_s: float | None = None,
    rules: Sequence[Rule] = (),
) -> Census:
    """Count a checkpoint from its headers; no weights are read.

    Args:
        target: a folder, one `.safetensors` or `.gguf` file, or a repo on the Hub: `org/name`, its page's address, or
            `hf://org/name@revision`.
        revision: branch, tag or commit of a Hub repo.
        weights: which index or file to count where several lie side by side.
        top_k: experts a token uses, where the config does not say.
        thorough: read every header of a Hub repo byte for byte, even where the Hub offers them decoded.
        deadline_s: what all requests of a Hub repo may take together, in seconds; 60 times HF_HUB_DOWNLOAD_TIMEOUT
            (10 s unless set) when None.
        rules: roles of names the shipped rules do not know; see `moegauge.counting.rules`.

    Raises:
        CheckpointError: the checkpoint is damaged, absent, or contradicts its config.
    """
    from moegauge.counting.census import take_census
    from moegauge.counting.sources.open import COLLECTOR_PAUSE, open_checkpoint

    with COLLECTOR_PAUSE:
        opened = open_checkpoint(target, revision, weights=weights, thorough=thorough, deadline_s=deadline_s)
        return take_census(opened, top_k=top_k, rules=rules)
