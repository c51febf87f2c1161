"""Readings: what is read, what is left out and why, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moegauge.errors import ObservationError
from moegauge.estimator.readings import Reading, read, read_packaged, table

Writer = Callable[..., Path]


def one(write: Writer, **cells: object) -> Reading:
    rows, _ = read(write(cells))
    return rows[0]


def reason(write: Writer, **cells: object) -> str:
    """Why a row is left out, beside a good one."""
    _, skipped = read(write({}, cells))
    assert [s.line for s in skipped] == [3]
    return skipped[0].reason


def test_a_plain_row(readings_csv: Writer) -> None:
    row = one(readings_csv)
    assert (row.system, row.device, row.devices, row.bandwidth) == ("engine", "card", 1, 1e12)
    assert row.bytes_per_token == 16e9
    assert not row.moe
    assert row.group == ("engine", "card")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("tg128", 64),
        ("tg32 @4096", 4112),
        ("tg128 @ d8192", 64 + 8192),
        ("8k in / 1k out", 8 * 1024 + 512),
        ("512 in / 128 out", 576),
        ("prompt 5", 5),
        ("PP512", 512),
        ("", 128),
        ("600 tokens greedy", 128),
    ],
)
def test_context_in_words(readings_csv: Writer, text: str, tokens: float) -> None:
    assert one(readings_csv, context=text).context == tokens


def test_bits_from_the_file_or_the_format(readings_csv: Writer) -> None:
    assert one(readings_csv, bits_per_weight="", file_GiB=8e9 / 2**30).bits == pytest.approx(8.0)
    assert one(readings_csv, bits_per_weight="", format="Q8_0").bits == 8.5
    assert "does not fix the bits" in reason(readings_csv, bits_per_weight="", format="Q4_K_M")


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"batch": 8}, "batch is 8"),
        ({"system": "vLLM + MTP-3"}, "speculative"),
        ({"note": "speculative: do not use for bandwidth"}, "speculative"),
        ({"evidence": "vendor claim"}, "vendor"),
        ({"tokens_per_s": ""}, "tokens_per_s is empty"),
        ({"tokens_per_s": "fast"}, "tokens_per_s is 'fast', not a number"),
        ({"tokens_per_s": "-3"}, "tokens_per_s is -3"),
        ({"tokens_per_s": "0"}, "tokens_per_s is 0"),
        ({"tokens_per_s": "nan"}, "tokens_per_s is nan"),
        ({"tokens_per_s": "1e9"}, "tokens_per_s is 1e9"),
        ({"active_params": "inf"}, "active_params is inf"),
        ({"active_params": 9e9}, "more than total_params"),
        ({"device_bandwidth_GBps": ""}, "device_bandwidth_GBps is empty"),
        ({"model": ""}, "model is empty"),
    ],
)
def test_rows_left_out_say_why(readings_csv: Writer, cells: dict[str, object], words: str) -> None:
    assert words in reason(readings_csv, **cells)


def test_several_streams_need_to_be_told_whose_speed_it_is(readings_csv: Writer) -> None:
    assert one(readings_csv, batch=8, speed_of="stream").tokens_per_s == 40
    assert one(readings_csv, batch=8, speed_of="all").tokens_per_s == 5
    row = one(readings_csv, batch=13.93, speed_of="stream")
    assert (row.batch, row.seconds) == (13.93, 1 / 40)
    assert "neither stream nor all" in reason(readings_csv, batch=8, speed_of="both")
    assert one(readings_csv).batch == 1


def test_times_that_hold_other_requests_prefill_are_not_used(readings_csv: Writer) -> None:
    cells = {"batch": 64, "speed_of": "stream", "median_itl_ms": 10}
    assert one(readings_csv, **cells, mean_tpot_ms=29).tokens_per_s == 40
    assert "differ by more than x3" in reason(readings_csv, **cells, mean_tpot_ms=31)


@pytest.mark.parametrize("note", ["speculative flags off as reported", "per user, without MTP", ""])
def test_plain_decoding_is_kept(readings_csv: Writer, note: str) -> None:
    assert one(readings_csv, note=note).tokens_per_s == 40


def test_names_of_one_model_share_a_key(readings_csv: Writer) -> None:
    names = ("Owner/Model-7B-Instruct-GGUF", "model-7b", "Model-7B-it", "other/MODEL-7B (TP8)")
    rows, _ = read(readings_csv(*({"model": name} for name in names)))
    assert {row.key for row in rows} == {"model-7b"}
    rows, _ = read(readings_csv({"model": "Llama-3-8B"}, {"model": "Llama-3.1-8B"}))
    assert len({row.key for row in rows}) == 2


def test_files_that_are_no_table(tmp_path: Path, readings_csv: Writer) -> None:
    path = tmp_path / "x.csv"
    with pytest.raises(ObservationError, match=r"x\.csv.*cannot be read"):
        read(path)
    path.write_text("system,device\na,b\n")
    with pytest.raises(ObservationError, match="line 1 has no column 'n_devices'"):
        read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ObservationError, match="cannot be read"):
        read(path)
    with pytest.raises(ObservationError, match=r"no usable row.*Line 2: batch is 4 and speed_of"):
        read(readings_csv({"batch": 4}))


def test_a_row_with_too_many_cells() -> None:
    with pytest.raises(ObservationError, match="line 2 has more cells"):
        table("a,b\n1,2,3\n", ("a",), "x.csv")
    with pytest.raises(ObservationError, match="twice"):
        table("a,a\n1,2\n", ("a",), "x.csv")


@pytest.mark.parametrize(
    ("name", "rows", "usable"),
    [
        ("throughput_datacentre_client.csv", 95, 95),
        ("throughput_concurrency.csv", 87, 76),
        ("throughput_tokens_per_pass.csv", 582, 582),
        ("throughput_context.csv", 225, 90),
    ],
)
def test_the_files_of_sweeps_are_whole(name: str, rows: int, usable: int) -> None:
    path = Path(__file__).parents[2] / "estimator" / "data" / name
    found, skipped = read(path)
    assert (len(found) + len(skipped), len(found)) == (rows, usable)
    assert read_packaged(name) == found


def test_the_packaged_readings_are_whole() -> None:
    rows, skipped = read()
    assert len(rows) + len(skipped) == 242
    assert len(rows) == 228
    assert len([row for row in rows if row.batch == 1]) == 193
    assert len({row.key for row in rows if row.batch == 1}) == 43
