"""What claimed ratios of model sizes would need, when speeds are known: a floor that both steps pay.

Steps of t1 > t2 seconds that pay the same floor f read bytes in the ratio (t1 - f) / (t2 - f): t1 / t2 without floors,
as the one-term formula has it, and more with them. A claimed ratio r needs f = (r t2 - t1) / (r - 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Ratio:
    """Two speeds, and a ratio of sizes or of speeds that was claimed.

    Attributes:
        slower, faster: model names.
        claimed: ratio that was said.
        by_formula: ratio of the speeds, which is the formula's ratio of sizes.
        floor_s: seconds both steps would have to pay for the claimed ratio of sizes; negative where none could.
        floor_share: of the faster model's step.
    """

    slower: str
    faster: str
    claimed: float
    by_formula: float
    floor_s: float
    floor_share: float

    @classmethod
    def of(cls, speeds: Mapping[str, float], slower: str, faster: str, claimed: float) -> Ratio:
        """From speeds in tokens/s by model; `claimed` above 1."""
        long, short = 1 / speeds[slower], 1 / speeds[faster]
        floor = (claimed * short - long) / (claimed - 1)
        return cls(slower, faster, claimed, long / short, floor, floor / short)

    def to_json(self) -> dict[str, Any]:
        """The fields as commands print them."""
        return {
            "slower": self.slower,
            "faster": self.faster,
            "claimed": self.claimed,
            "by_formula": self.by_formula,
            "floor_ms_needed": self.floor_s * 1e3,
            "floor_share_needed": self.floor_share,
        }
