"""The loopback Hub and the real client in another process, as the counting room's tests have them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location(
    "moegauge_tests_counting_fixtures", Path(__file__).parent.parent / "counting" / "conftest.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = _MODULE
_SPEC.loader.exec_module(_MODULE)

loopback, synthetic, hub, client = _MODULE.loopback, _MODULE.synthetic, _MODULE.hub, _MODULE.client
