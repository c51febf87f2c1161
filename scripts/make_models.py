"""Regenerate src/moegauge/models/*.json (`make models`): lay out each release, count it, write its shape."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from moegauge.counting import count
from moegauge.counting.sources import release_layout

MODELS = Path(__file__).resolve().parent.parent / "src" / "moegauge" / "models"


def make(name: str, scratch: Path) -> None:
    """Write the shape of one release."""
    facts = release_layout.release(name)
    folder = scratch / name
    release_layout.write(folder, facts["config"], facts["shards"])
    shape = count(str(folder)).model_shape()
    source = {"repo": facts["repo"], "config": facts["source"], "command": "python scripts/make_models.py"}
    replace(shape, name=name, source=source).save(MODELS / f"{name}.json")
    print(f"{name}: {shape.total_parameters:,} parameters, {shape.bytes_per_token:,} bytes per token")


def main(names: list[str]) -> int:
    """Write the named releases, or all of them."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in names or release_layout.releases():
            make(name, Path(scratch))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
