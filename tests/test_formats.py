"""Bytes of the formats table, against sizes worked out by hand."""

from __future__ import annotations

import pytest

from moegauge.errors import UnknownNameError
from moegauge.formats import FORMATS, get_format


@pytest.mark.parametrize(
    ("name", "rows", "columns", "weights", "scales"),
    [
        ("f32", 256, 7168, 256 * 7168 * 4, 0),
        ("bf16", 129280, 7168, 129280 * 7168 * 2, 0),
        # DeepSeek-V3 q_a_proj and kv_a_proj: 576 rows are 4.5 blocks of 128, so 5 rows of scales.
        ("fp8", 2048, 7168, 2048 * 7168, 16 * 56 * 4),
        ("fp8", 576, 7168, 576 * 7168, 5 * 56 * 4),
        ("int8", 2048, 7168, 2048 * 7168, 2048 * 4),
        ("int4", 2048, 7168, 2048 * 7168 // 2, 2048 * 224 * 2),
        ("int4_g128", 2048, 7168, 2048 * 7168 // 2, 2048 * 56 * 2),
        # gpt-oss: 2880 columns are 90 groups of 32.
        ("mxfp4", 5760, 2880, 5760 * 90 * 16, 5760 * 90),
        ("nvfp4", 2048, 7168, 2048 * 7168 // 2, 2048 * 448 + 4),
        ("mxfp4", 3, 33, 3 * 17, 3 * 2),
        ("mxfp8", 2048, 7168, 2048 * 7168, 2048 * 224),
        ("mxfp8", 3, 33, 3 * 33, 3 * 2),
    ],
)
def test_bytes(name: str, rows: int, columns: int, weights: int, scales: int) -> None:
    row = get_format(name)
    assert row.weight_bytes(rows, columns) == weights
    assert row.scale_bytes(rows, columns) == scales
    assert row.bytes(rows, columns) == weights + scales


def test_bytes_per_parameter_are_the_textbook_ones() -> None:
    assert get_format("mxfp4").bytes_per_parameter == 0.53125
    assert get_format("mxfp8").bytes_per_parameter == 1.03125
    assert get_format("int4").bytes_per_parameter == 0.5625
    assert get_format("bf16").bytes_per_parameter == 2.0
    assert get_format("fp8").bytes_per_parameter == 1 + 4 / 128**2


def test_unknown_format_suggests() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'mxfp4'"):
        get_format("mxfp-4")
    assert all(name == row.name for name, row in FORMATS.items())
