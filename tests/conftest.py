"""Property tests draw the same examples every time: a red test is red for everyone. `make fuzz` explores."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("same-for-everyone", derandomize=True, deadline=None)
settings.load_profile("same-for-everyone")
