"""The table of latencies: whole, sourced, pessimistic where it says so, and as fixed before the kernels changed."""

from dataclasses import fields
from hashlib import sha256

import pytest

from moegauge.bench.queueing.latencies import COLUMNS, DEVICES, FILE, Latencies, latencies, table
from moegauge.hardware import devices

FASTER_IS_MORE = {"clock", "programs_rate", "issue_share", "roof_share", "datasheet", "multiprocessors"}
FIXED = "5c86f1e36b1384aeb7b9600d922079eb65370e3a27f9ff445c9821d615c00b8c"


def test_every_value_has_a_source_and_pessimistic_is_never_faster():
    known = {field.name for field in fields(Latencies)}
    for row in table():
        assert row.name in known
        assert len(row.source) > 20 or "as H100" in row.source
        if row.name in FASTER_IS_MORE or row.name.endswith("_lanes"):
            assert row.pessimistic <= row.nominal
        else:
            assert row.pessimistic >= row.nominal


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_of_one_device_replaces_the_one_for_all(device):
    nominal, pessimistic = (latencies(device, column) for column in COLUMNS)
    assert nominal.dram == (600 if device == "B200" else 520)
    assert pessimistic.dram == (780 if device == "B200" else 650)
    assert nominal.roof == pytest.approx(0.885 * nominal.datasheet)
    assert any(one.bandwidth / 1e9 == nominal.datasheet for name, one in devices().items() if device.lower() in name)


def test_only_a_device_moves_the_table():
    """Whoever changes a number changes this hash with it, and names the record that moved it in latencies.csv."""
    assert sha256(FILE.read_bytes()).hexdigest() == FIXED
