"""Records of strangers: every field with every strange value, read by every command that reads records."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moegauge import cli, limits, record

ROOT = Path(__file__).resolve().parent.parent.parent
STRANGE: list[Any] = [
    *(None, [], {}, "x", "", "1", "=1+1", "\ud800", "\x1b[31m\n", True, [1], [None], [[1]], {"a": 1}, {"reasons": 5}),
    *(-1, 0, 1e308, -1e308, 1e-320, 1e18, 1e-11, 2**63, 10**18, 10**400, [1e308], ["a", 1], "a" * 2000),
]


def good() -> dict[str, Any]:
    """A committed record, cut down, with one of everything a record may hold."""
    source = ROOT / "results" / "amd-epyc-zen5-2c" / "2026-11-28-quick-4da788ce71.json"
    document: dict[str, Any] = json.loads(source.read_text())
    document["cases"] = document["cases"][:3]
    for case in document["cases"]:
        for name in ("samples_ms", "roof_samples_gb_per_s", "roof_fraction_samples"):
            case[name] = case[name][:6]
    document["cases"][0]["telemetry"] = {"sm_clock_mhz": [1, 2], "reasons": ["a"]}
    empty = {"name": "a", "us_per_kernel": 1.0, "interval_us": [0.5, 2], "samples_us": [1.0], "lengths": [1, 2]}
    verdict = {"kernel": "k", "model": "m", "format": "f", "launch_mode": "l", "passed": False}
    document.update(floors=[empty], left_out=[{"stage": "s", "reason": "failed", "detail": "d"}], verdicts=[verdict])
    document["skipped"] = [{"peer": "p", "reason": "r"}]
    document["machine"]["gpu"] = {"name": "G", "driver": "1"}
    return document


GOOD = good()


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field, however deep; of lists the first two entries."""
    if here:
        yield here
    named = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in named:
        yield from places(inner, (*here, key))


def changed(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    holder: Any = document
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return document


READERS = (
    ("compare", "RECORD"), ("compare", "RECORD", "--json"), ("compare", "RECORD", "GOOD"),
    ("compare", "GOOD", "--against", "RECORD"), ("compare", "RECORD", "--against", "GOOD"),
    ("report", "RECORD", "--out", "page.html"), ("report", "RECORD", "--markdown"),
    ("predict", "gpt-oss-20b", "--record", "RECORD", "--json"),
)  # fmt: skip


def read(
    words: tuple[str, ...], document: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command that is given the document."""
    for name, content in (("RECORD", document), ("GOOD", GOOD)):
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    page = folder / "page.html"
    page.unlink(missing_ok=True)
    with pytest.raises(SystemExit) as stop:
        cli.main([str(folder / word) if word in ("RECORD", "GOOD", "page.html") else word for word in words])
    seen = capsys.readouterr()
    assert page.exists() == (stop.value.code == 0 and "page.html" in words)
    return int(str(stop.value.code)), seen.out, seen.err


def refused_or_read(words: tuple[str, ...], document: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    code, out, err = read(words, document, folder, capsys)
    assert code in (0, 1), err
    if code:
        assert out == ""
        (line,) = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert line.startswith("moegauge: ")
        assert "unexpected" not in line
    return code == 1


@pytest.mark.parametrize("seed", range(4))
def test_every_field_with_a_strange_value(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    everywhere = list(places(GOOD))
    for _ in range(40):
        place, value = rng.choice(everywhere), rng.choice(STRANGE)
        refused_or_read(rng.choice(READERS), changed(place, value), tmp_path, capsys)


FIRST = ("cases", 0)
# What crashed a command once, or would: the place, the value, and what the one line names.
KINDS = (
    (("machine", "memory_bytes"), [1], "$.machine.memory_bytes"),
    (("machine", "cpu", "features"), [1], "$.machine.cpu.features[0]"),
    (("machine", "cpu"), 5, "$.machine.cpu"),
    ((*FIRST, "telemetry"), {"reasons": 5}, "$.cases[0].telemetry"),
    ((*FIRST, "telemetry"), {"reasons": [5]}, "cases[0].telemetry.reasons"),
    ((*FIRST, "telemetry"), {"power_w": ["a"]}, "cases[0].telemetry.power_w"),
    ((*FIRST, "tokens_per_s"), 1e308, "$.cases[0].tokens_per_s"),
    ((*FIRST, "median_ms"), 1e-320, "$.cases[0].median_ms"),
    ((*FIRST, "samples_ms", 1), 1e-320, "$.cases[0].samples_ms[1]"),
    ((*FIRST, "roof_fraction"), 0, "$.cases[0].roof_fraction"),
    ((*FIRST, "bytes", "total"), 10**400, "$.cases[0].bytes.total"),
    ((*FIRST, "gb_per_s"), 10**400, "$.cases[0].gb_per_s"),
    ((*FIRST, "samples_ms", 0), "\ud800", "record.cases[0].samples_ms[0] holds half a surrogate pair"),
    ((*FIRST, "model"), "\ud800", "record.cases[0].model holds half a surrogate pair"),
    ((*FIRST, "model"), "a" * 2000, "$.cases[0].model"),
    ((*FIRST, "formats"), {"bf16": -1}, "$.cases[0].formats"),
    (("roof", "samples"), [0.0], "$.roof.samples[0]"),
    (("software",), {"a": []}, "$.software"),
)


@pytest.mark.parametrize(("place", "value", "named"), KINDS, ids=[f"{k[0][-1]}={str(k[1])[:20]}" for k in KINDS])
def test_what_no_record_holds_is_refused_by_file_and_field(
    place: tuple[Any, ...], value: Any, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (READERS[0], READERS[4], READERS[5], READERS[7]):
        code, _, err = read(words, changed(place, value), tmp_path, capsys)
        assert code == 1
        assert err.startswith(f"moegauge: {tmp_path / 'RECORD'}: ")
        assert named in err
        assert err.count("\n") == 1


def test_a_field_of_a_later_release_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = copy.deepcopy(GOOD)
    later = {"disturbed_ms": [1.0, 2.0], "round": [0, 1, 2, 3, 4, 5], "tomorrow": {"a": [1, "x", None]}}
    for case in document["cases"]:
        case.update(later)
    document.update(in_cache=[{"format": "bf16", "isa": "avx2", "gb_per_s_per_core": 90.0}], tomorrow="\u202e")
    document["machine"]["tomorrow"] = [1]
    document["machine"]["cpu"]["tomorrow"] = {"a": 1}
    for words in READERS:
        assert read(words, document, tmp_path, capsys)[0] == 0, words


def test_digits_without_end_and_depth_without_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps(GOOD)
    for broken in (text.replace('"batch": 1', '"batch": ' + "1" * 100_000, 1), "[" * 100_000, '{"schema":' * 100_000):
        assert refused_or_read(READERS[0], broken, tmp_path, capsys)


def test_more_cases_than_anybody_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RECORD_CASES", 4)
    document = {**GOOD, "cases": GOOD["cases"] * 2}
    for words in READERS:
        code, _, err = read(words, document, tmp_path, capsys)
        assert (code, "6 cases, more than 4" in err) == (1, True), err
    code, _, err = read(READERS[2], GOOD, tmp_path, capsys)
    assert (code, "6 cases, more than 4" in err) == (1, True), err


def test_a_file_larger_than_any_record(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with path.open("wb") as file:
        file.truncate(limits.RECORD_LIMIT_BYTES + 1)
    with pytest.raises(record.RecordError, match=r"r\.json: cannot be read \(has 100,000,001 bytes"):
        record.load(path)
