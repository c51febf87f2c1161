"""Count the published estimate's calibration models from their release layouts, in its convention (stored elements of
the main model). Writes estimator/data/counted.json.

Run: .venv/bin/python scripts/make_counted.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from moegauge.counting import layout

OUT = Path(__file__).resolve().parent.parent / "estimator" / "data" / "counted.json"
MODELS = ("deepseek-v3", "glm-4.7", "kimi-k2")


def counted(name: str, scratch: Path) -> dict[str, Any]:
    """What `moegauge count` says of the laid-out release."""
    facts = layout.release(name)
    layout.write(scratch / name, facts["config"], facts["shards"])
    done = subprocess.run(
        [sys.executable, "-m", "moegauge", "count", str(scratch / name), "--json"], capture_output=True, check=True
    )
    count = json.loads(done.stdout)
    active, roles = count["active"], count["roles"]
    routed = roles["routed_expert"]
    return {
        "repo": facts["repo"],
        "layers": count["layers"],
        "moe_layers": count["moe_layers"],
        "experts": count["experts"],
        "top_k": count["top_k"],
        "active_stored_elements": active["stored_elements"],
        "active_parameters": active["parameters"],
        "routed_active_parameters": active["routed"],
        "total_parameters": count["parameters"]["decoder"],
        "bytes_per_token": count["bytes_per_token"]["total"],
        "routed_role": routed,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        models = {name: counted(name, Path(scratch)) for name in MODELS}
    print(json.dumps(models, indent=1))
    OUT.write_text(json.dumps({"made_by": "scripts/make_counted.py", "models": models}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
