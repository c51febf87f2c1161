"""Count the published estimate's calibration models, in its convention, into estimator/data/counted.json.

Run: .venv/bin/python scripts/make_counted.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from moegauge import models
from moegauge.counting.sources import release_layout
from moegauge.formats import get_format
from moegauge.shape import Matrix

OUT = Path(__file__).resolve().parent.parent / "estimator" / "data" / "counted.json"
MODELS = ("deepseek-v3", "glm-4.7", "kimi-k2")


def counted(name: str, scratch: Path) -> dict[str, Any]:
    """What `moegauge count` says of the laid-out release."""
    facts = release_layout.release(name)
    release_layout.write(scratch / name, facts["config"], facts["shards"])
    done = subprocess.run(
        [sys.executable, "-m", "moegauge", "count", str(scratch / name), "--json"], capture_output=True, check=True
    )
    count = json.loads(done.stdout)
    active = count["active"]
    shape = models.resolve(str(scratch / name))
    return {
        "repo": facts["repo"],
        "layers": count["layers"],
        "moe_layers": count["moe_layers"],
        "experts": count["experts"],
        "top_k": count["top_k"],
        "active_stored_elements": active["stored_elements"],
        "active_parameters": active["parameters"],
        "routed_active_stored_elements": sum(
            pool.top_k * sum(m.parameters + scale_elements(m) for m in pool.matrices)
            for layer in shape.layers
            for pool in layer.experts
        ),
        "total_parameters": count["parameters"]["decoder"],
    }


def scale_elements(matrix: Matrix) -> int:
    """Scales stored beside one matrix."""
    row = get_format(matrix.format)
    return 8 * (matrix.bytes - row.weight_bytes(matrix.rows, matrix.columns)) // row.scale_bits if row.scale_bits else 0


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        models = {name: counted(name, Path(scratch)) for name in MODELS}
    print(json.dumps(models, indent=1))
    OUT.write_text(json.dumps({"made_by": "scripts/make_counted.py", "models": models}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
