"""Nothing touches a GPU at import."""

from __future__ import annotations

import subprocess
import sys

EVERY = """
import ctypes, importlib, pkgutil, sys
real = ctypes.CDLL.__init__
def watched(self, name, *a, **k):
    assert not any(word in str(name) for word in ("libcuda.so", "nvidia-ml")), name
    real(self, name, *a, **k)
ctypes.CDLL.__init__ = watched
import moegauge
skipped = []
for room in pkgutil.walk_packages(moegauge.__path__, "moegauge."):
    if room.name.rpartition(".")[2] in ("__main__", "_cpu"):
        continue
    try:
        importlib.import_module(room.name)
    except ImportError as error:
        skipped.append(f"{room.name}: {error}")
torch = sys.modules.get("torch")
assert torch is None or not torch.cuda.is_initialized()
print(len(sys.modules), skipped)
"""


def test_importing_every_module_opens_no_driver_and_no_context() -> None:
    done = subprocess.run([sys.executable, "-c", EVERY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
