"""The plan of `moegauge validate`: which models are laid out and counted, which points measured.

No checkpoint is needed: the headers of a released model are written as sparse files, exactly as released, and counted
as any checkpoint is; the shape that comes out is what the decode step is built from.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegauge import models
from moegauge.bench.plan.points import NATIVE, Point
from moegauge.counting import count
from moegauge.counting.sources.release_layout import release, write
from moegauge.errors import MoegaugeError
from moegauge.shape import ModelShape
from moegauge.units import human_bytes, human_count

COUNTED = "gpt-oss-20b"

# Three models of different depth and width, so that leaving one out leaves two. Small steps first: on a slow machine
# the later points are dropped, never the models.
FULL: tuple[Point, ...] = (
    *(Point(model, NATIVE) for model in ("gpt-oss-20b", "qwen3-30b-a3b", "gpt-oss-120b")),
    *(Point(model, "fp8") for model in ("gpt-oss-20b", "qwen3-30b-a3b", "gpt-oss-120b")),
    *(Point(model, "mxfp4") for model in ("gpt-oss-20b", "qwen3-30b-a3b", "gpt-oss-120b")),
    Point("deepseek-v3", NATIVE),
)
QUICK: tuple[Point, ...] = (
    *(Point(model, NATIVE) for model in ("gpt-oss-20b", "qwen3-30b-a3b", "gpt-oss-120b")),
    Point("gpt-oss-20b", "fp8"),
    Point("qwen3-30b-a3b", "mxfp4"),
)
# Seconds of sampling per point, all points in rounds, and seconds after which no further point is begun.
FULL_LIMIT_S, FULL_BUDGET_S = 9.0, 110.0
QUICK_LIMIT_S, QUICK_BUDGET_S = 4.0, 45.0


@dataclass(frozen=True, slots=True)
class CountedRelease:
    """A count of a checkpoint's headers, as `validate` tells it.

    Attributes:
        repo: the release whose headers were laid out.
        shape: what was derived from them.
        tensors, files: what was read.
        claimed_bytes: bytes of weights those files claim.
        decoder, active: logical parameters.
        seconds: of the count alone.
    """

    repo: str
    shape: ModelShape
    tensors: int
    files: int
    claimed_bytes: int
    decoder: int
    active: int
    seconds: float

    def lines(self) -> tuple[str, str]:
        """Two lines for people."""
        size, claimed = human_bytes(self.shape.bytes_per_token), human_bytes(self.claimed_bytes)
        total, active = human_count(self.decoder), human_count(self.active)
        return (
            f"{self.repo}: {total} parameters ({self.decoder:,}), {active} active, {size} per token",
            f"{self.tensors} tensors in {self.files} files that claim {claimed}, counted in {self.seconds:.2f} s",
        )

    def to_json(self) -> dict[str, Any]:
        """`count` of `moegauge.validate/1`."""
        return {
            "repo": self.repo,
            "decoder": self.decoder,
            "active": self.active,
            "bytes_per_token": self.shape.bytes_per_token,
            "tensors": self.tensors,
            "files": self.files,
            "seconds": self.seconds,
        }


def count_release(name: str = COUNTED) -> CountedRelease:
    """Lay out the headers of a shipped release in a temporary folder and count them.

    Raises:
        UnknownNameError: no such release.
        CheckpointError: the layout cannot be written or counted.
    """
    facts = release(name)
    with tempfile.TemporaryDirectory(prefix="moegauge-") as folder:
        claimed = write(Path(folder), facts["config"], facts["shards"])
        start = time.perf_counter()
        census = count(folder)
        seconds = time.perf_counter() - start
        shape = census.model_shape()
        files = len(list(Path(folder).glob("*.safetensors")))
        tensors = sum(group.tensors for group in census.groups)
    active = shape.active_parameters
    return CountedRelease(facts["repo"], shape, tensors, files, claimed, census.decoder, active, seconds)


def miscount(counted: CountedRelease, name: str = COUNTED) -> list[MoegaugeError]:
    """What differs between a count and the shape that ships for the same release; empty when nothing does."""
    shipped = models.load(name)
    pairs = (
        ("parameters", counted.shape.total_parameters, shipped.total_parameters),
        ("bytes per token", counted.shape.bytes_per_token, shipped.bytes_per_token),
    )
    return [
        MoegaugeError(f"{name}: counted {found:,} {what}, its shipped shape says {told:,}.", advice="Report this.")
        for what, found, told in pairs
        if found != told
    ]
