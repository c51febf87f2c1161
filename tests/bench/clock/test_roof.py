"""The roof on a made-up device of known bandwidth."""

from __future__ import annotations

from typing import Any

import pytest

from moegauge.bench.clock.roof import find_roof, pass_bytes
from moegauge.errors import DeviceError


def test_the_fastest_pattern_is_the_roof(device: Any) -> None:
    roof = find_roof(device).measure(samples=7, datasheet_gb_per_s=2.0)
    assert roof.pattern == "fast"
    assert roof.gb_per_s == pytest.approx(1.0)
    assert roof.samples == pytest.approx([1.0] * 7)
    assert roof.patterns == pytest.approx({"fast": 1.0, "slow": 0.8})
    assert roof.datasheet_gb_per_s == 2.0


def test_a_host_that_changes_its_state_does_not_choose_the_pattern(fakes: Any) -> None:
    """Most passes of the fast pattern fall in the host's slow state, most of the slow one's in its fast state."""

    class ChangingBackend(fakes.FakeBackend):  # type: ignore[name-defined, misc]
        calls = 0

        def time(self, function: Any) -> float:
            # Two warm-up rounds, then nine of (slow, fast): the state changes within the fifth of them.
            self.calls += 1
            self.drift = lambda: 2.0 if self.calls <= 2 * 6 + 1 else 1.0
            return float(super().time(function))

    meter = find_roof(ChangingBackend(), rounds=9)
    medians = meter.measure(samples=5).patterns
    assert medians["slow"] > medians["fast"]
    assert meter.measure(samples=5).pattern == "fast"


def test_a_pass_reads_more_than_the_cache_holds(device: Any) -> None:
    assert pass_bytes(device) >= 8 * device.last_level_cache
    device.last_level_cache = 10**7
    device.memory = 10**9
    assert pass_bytes(device) == 10**9 // 8  # no more than an eighth of the memory


def test_too_little_memory_is_one_clear_line(device: Any) -> None:
    device.memory = 1000
    with pytest.raises(DeviceError, match="a made-up device: 1,000 bytes free"):
        pass_bytes(device)


def test_a_sample_reads_about_as_long_as_asked(device: Any) -> None:
    meter = find_roof(device, size=10**6)
    before = device.clock.now
    assert meter.sample(0.1) == pytest.approx(1e9)
    assert device.clock.now - before == pytest.approx(0.1)
    before = device.clock.now
    meter.sample(1e-9)  # at least one pass
    assert device.clock.now - before == pytest.approx(0.001)
