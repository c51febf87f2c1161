"""Print the table of docs/counting.md: published totals beside counts of the published configs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from moegauge.counting.census import Census, take_census
from moegauge.counting.headers.header import DTYPE_BITS, Header
from moegauge.counting.sources.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parent.parent
CONVENTIONS = ("all", "no embedding", "no embedding, no head")


def census_of(document: dict[str, Any]) -> Census:
    """The census of one release fixture."""
    names, dtypes, shapes, offsets, end = [], [], [], [], 0
    for template, dtype, shape, spans in document["headers"]:
        size = DTYPE_BITS[dtype] // 8
        for n in shape:
            size *= n
        for span in spans.split(","):
            first, _, last = span.partition("-")
            for number in range(int(first), int(last or first) + 1):
                names.append(template.format(number))
                dtypes.append(dtype)
                shapes.append(tuple(shape))
                offsets.append((end, end + size))
                end += size
    header = Header("model.safetensors", names, dtypes, shapes, offsets, data_bytes=end)
    return take_census(Checkpoint("folder", document["repo"], None, [header], {"config.json": document["config"]}))


def nearest_convention(census: Census, published: int) -> tuple[str, int]:
    """The convention of `active` that comes closest to the published figure, and its count."""
    active = census.active or 0
    embedding = 0 if census.tied else census.parameters("embedding")
    counts = (active, active - embedding, active - embedding - census.parameters("lm_head"))
    return min(zip(CONVENTIONS, counts, strict=True), key=lambda item: abs(item[1] - published))


def main() -> int:
    """Print one row per release."""
    print(
        "| repository | counted | published | difference | active, all | published | nearest convention | difference |"
    )
    print("|---|--:|--:|--:|--:|--:|---|--:|")
    for path in sorted((ROOT / "tests" / "data" / "releases").glob("*.json"), key=lambda p: p.name.lower()):
        document = json.loads(path.read_text())
        census, published = census_of(document), document["published"]
        total, active = published["total_params"], published["active_params"]
        row = [document["repo"], f"{census.total:,}"]
        row += [f"{total / 1e9:g} B", f"{census.total / total - 1:+.1%}"] if total else ["", ""]
        row += [f"{census.active:,}"]
        if active:
            name, count = nearest_convention(census, active)
            row += [f"{active / 1e9:g} B", name, f"{count / active - 1:+.1%}"]
        else:
            row += ["", "", ""]
        print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
