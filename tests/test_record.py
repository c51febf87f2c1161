"""Records: what is written, what is read back, what is refused, and that a file is never lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from moegauge import record as records
from moegauge.errors import RecordError
from moegauge.outfile import write as write_text
from moegauge.record import Case, CaseBytes, Project, Record, Roof
from moegauge.recordfile import RecordFile, same_run

ROOT = Path(__file__).resolve().parent.parent
# Exactly the fields the command contract names, as another tool might write them.
MINIMAL = {
    "schema": "moegauge.record/1",
    "created": "2026-01-02T03:04:05Z",
    "project": {"version": "0.1.0", "commit": None, "dirty": None},
    "machine": {"id": "other"},
    "software": {},
    "argv": [],
    "roof": {"gb_per_s": 20, "datasheet_gb_per_s": None, "samples": [20, 20.5]},
    "cases": [
        {
            "kind": "decode",
            "backend": "cpu",
            "model": "gpt-oss-20b",
            "format": "mxfp4",
            "batch": 1,
            "context": 0,
            "layers": 24,
            "bytes": {"weights": 1900, "scales": 100, "kv": 0, "total": 2000},
            "distinct_experts": 4,
            "kernels_per_step": 170,
            "samples_ms": [10, 11, 12],
            "median_ms": 11,
            "mad_ms": 1,
            "tokens_per_s": 90.9,
            "gb_per_s": 18.2,
            "roof_fraction": 0.9,
            "roof_fraction_samples": [0.9, 0.91, 0.89],
            "max_relative_error": 1e-6,
            "warnings": [],
        }
    ],
}


def case(model: str = "a", **changes: Any) -> Case:
    fields = {**MINIMAL["cases"][0], "model": model}  # type: ignore[index]
    return Case(**{**fields, "bytes": CaseBytes(weights=10, total=10), **changes})


def record(cases: list[Case] | None = None, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "schema": records.SCHEMA,
        "created": "2026-01-02T03:04:05Z",
        "machine": {"id": "m", "device": "cpu", "cpu": {"model": "M", "cores": 2}},
        "project": Project(version="0.1.0", commit="abc", dirty=False),
        "argv": ["moegauge", "bench", "decode", "--out", "x.json"],
        "roof": Roof(gb_per_s=20.0),
        "cases": cases if cases is not None else [case()],
    }
    return Record(**{**fields, **changes})


def changed(**fields: Any) -> str:
    document = json.loads(json.dumps(MINIMAL))
    for path, value in fields.items():
        holder = document
        *parents, last = path.split("__")
        for name in parents:
            holder = holder[int(name)] if name.isdigit() else holder[name]
        if value is None and last not in ("project",):
            del holder[last]
        else:
            holder[last] = value
    return json.dumps(document)


def test_the_contract_alone_is_a_record() -> None:
    found = records.from_json(json.dumps(MINIMAL), "x")
    assert found.cases[0].tokens_per_s == 90.9
    assert found.roof_gb_per_s(found.cases[0]) == 20


def test_every_field_of_the_contract_is_written() -> None:
    document = json.loads(records.to_json(record()))
    assert set(MINIMAL) <= set(document)
    assert set(MINIMAL["cases"][0]) <= set(document["cases"][0])  # type: ignore[index]
    assert set(MINIMAL["roof"]) <= set(document["roof"])  # type: ignore[arg-type]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = record([case(roof_samples_gb_per_s=[1.0, 2.0, 3.0], telemetry={"power_w": [1, 2]})])
    path = tmp_path / "r.json"
    write_text(path, records.to_json(written))
    assert records.load(path) == written


# As `moegauge` 0.1.0 wrote them, and what is left out in the words of today.
OLD = (
    ("whole steps: gpt-oss-20b native: failed: TritonError: PTXAS: no.", ("whole steps", "", "failed")),
    ("whole steps: gpt-oss-20b fp8 batch 4 context 1024: began and did not end", ("whole steps", "", "began")),
    ("ladder graph: moe native: began twice and did not end", ("launch modes", "graph", "began_twice")),
    ("batch curve: a.json fp8 batch 4: no time left in the budget", ("batch curve", "", "no_time")),
    ("peers: moe bf16: the device stopped answering", ("peers", "", "device_lost")),
    ("kernels: moe native, experts up: not timed alone (one step reads 5 kB.)", ("kernels", "", "not_alone")),
    ("floors: all: the cpu backend cannot run empty operations", ("floors", "", "unavailable")),
    ("roof sweep: 4 x 8 warps, 2 loads of 4 B: failed: E: no", ("roof sweep", "", "failed")),
)


@pytest.mark.parametrize(("text", "parts"), OLD)
def test_a_sentence_of_an_older_record_is_read_as_what_it_meant(text: str, parts: tuple[str, str, str]) -> None:
    (one,) = records.from_json(changed(left_out=[text]), "r").left_out
    assert (one.stage, one.launch_mode, one.reason) == parts
    assert str(one) == text.replace("ladder graph", "launch modes (graph)")
    again = records.from_json(records.to_json(record(left_out=[one])), "r")
    assert again.left_out == [one]


def test_a_point_left_out_is_named_by_its_fields(tmp_path: Path) -> None:
    (one,) = records.from_json(changed(left_out=[OLD[1][0]]), "r").left_out
    assert one.point == records.PointName(model="gpt-oss-20b", format="fp8", batch=4, context=1024)
    (one,) = records.from_json(changed(left_out=[OLD[5][0]]), "r").left_out
    assert one.point == records.PointName(model="moe", format="native", kernel="experts up")
    with pytest.raises(RecordError, match="left_out"):
        records.from_json(changed(left_out=[{"stage": "peers", "reason": "tired"}]), "r")


def test_the_committed_schema_is_the_code_s_and_says_what_the_code_says() -> None:
    schema = json.loads((ROOT / "results" / "schema.json").read_text())
    assert schema == records.json_schema(), "run: moegauge report --schema > results/schema.json"
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    validator.validate(MINIMAL)
    validator.validate(json.loads(records.to_json(record())))
    for broken in (changed(cases__0__median_ms="11"), changed(cases__0__bytes__total=None), changed(machine=None)):
        assert not validator.is_valid(json.loads(broken))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no record"),
        ('{"schema": "moegauge.count/1"}', "a 'moegauge.count/1' document"),
        ('{"schema": "moegauge.record/2"}', "moegauge.record/2"),
        (changed(cases__0__samples_ms=[]), r"cases\[0\].samples_ms is empty"),
        (changed(cases__0__samples_ms=[1.0]), "roof_fraction_samples has 3 entries for 1 samples"),
        (changed(cases__0__samples_ms=[1, -1, 2]), "not above 0"),
        (changed(cases__0__median_ms="x"), r"\$\.cases\[0\]\.median_ms"),
        (changed(cases__0__model=None), "missing required field `model`"),
        (changed(cases__0__tokens_per_s=0), "not above 0"),
        (changed().replace("90.9", "NaN"), "NaN is no measurement"),
        (changed().replace("90.9", "1e999"), r"tokens_per_s is not a finite number"),
    ],
)
def test_what_is_no_record_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(RecordError, match=message) as caught:
        records.from_json(text, "file.json")
    assert str(caught.value).startswith("file.json: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"nope\.json: cannot be read"):
        records.load(tmp_path / "nope.json")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_file_is_not_read_for_ever() -> None:
    with pytest.raises(RecordError, match="not a regular file"):
        records.load(Path("/dev/full"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_never_written(bad: float) -> None:
    with pytest.raises(RecordError, match=r"record\.cases\[0\]\.mad_ms is not a finite number"):
        records.to_json(record([case(mad_ms=bad)]))


def test_no_home_and_no_user_in_argv() -> None:
    given = [
        "--out",
        "/home/jane/run/x.json",
        "--export-csv=/home/jane/y.csv",
        "~/a",
        "trace:/home/j/t",
        "../b/c",
        "org/name",
    ]
    kept = ["--out", "x.json", "--export-csv=y.csv", "a", "trace:t", "c", "org/name"]
    assert records.public_argv(given) == kept


class TestPool:
    def test_points_of_one_machine_are_pooled_and_the_later_one_wins(self) -> None:
        first = record([case("a", median_ms=1.0), case("b")])
        second = record([case("a", median_ms=2.0)], created="2027-01-01T00:00:00Z")
        pooled = {c.model: c.median_ms for _, c in records.pool([second, first], ["2", "1"])}
        assert pooled == {"a": 2.0, "b": 11}

    @pytest.mark.parametrize(
        "machine",
        [
            {"id": "other", "device": "cpu", "cpu": {"model": "M", "cores": 2}},
            {"id": "m", "device": "cpu", "cpu": {"model": "N", "cores": 2}},
            {"id": "m", "device": "cpu", "cpu": {"model": "M", "cores": 4}},
            {"id": "m", "device": "cuda", "cpu": {"model": "M", "cores": 2}, "gpu": {"name": "G"}},
        ],
    )
    def test_unlike_machines_are_refused(self, machine: dict[str, Any]) -> None:
        with pytest.raises(RecordError, match=r"two was measured on .* never pooled"):
            records.pool([record(), record(machine=machine)], ["one", "two"])

    def test_nothing_measured_is_refused(self) -> None:
        with pytest.raises(RecordError, match="no measured point"):
            records.pool([record([])], ["one"])


class TestRecordFile:
    def test_every_point_is_on_disk_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "r.json"
        with RecordFile.open(path, record([], complete=False)) as file:
            assert records.load(path).cases == []
            file.add(case("a"))
            assert [c.model for c in records.load(path).cases] == ["a"]
        assert sorted(p.name for p in path.parent.iterdir()) == ["r.json"]

    def test_the_same_run_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        path = tmp_path / "r.json"
        with RecordFile.open(path, record([])) as file:
            file.add(case("a"))
        later = record([], created="2027-01-01T00:00:00Z", argv=["moegauge", "bench", "decode", "--json", "--out", "y"])
        with RecordFile.open(path, later) as file:
            assert [c.model for c in file.record.cases] == ["a"]
            file.add(case("b"))
        assert [c.model for c in records.load(path).cases] == ["a", "b"]

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"argv": ["moegauge", "bench", "roof"]}, "arguments"),
            ({"machine": {"id": "n"}}, "machine"),
            ({"project": Project(version="0.1.0", commit="def")}, "commit"),
        ],
    )
    def test_another_run_s_file_is_left_alone(self, tmp_path: Path, changes: dict[str, Any], named: str) -> None:
        path = tmp_path / "r.json"
        with RecordFile.open(path, record()):
            pass
        before = path.read_bytes()
        with pytest.raises(RecordError, match=f"another run .{named}"):
            RecordFile.open(path, record([], **changes))
        assert path.read_bytes() == before

    def test_a_file_that_is_no_record_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "r.json"
        path.write_text("my thesis")
        with pytest.raises(RecordError, match="not JSON"):
            RecordFile.open(path, record())
        assert path.read_text() == "my thesis"

    def test_a_second_process_on_the_same_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "r.json"
        script = (
            "import sys; from pathlib import Path; from moegauge.record import Record, SCHEMA;"
            "from moegauge.recordfile import RecordFile;"
            "RecordFile.open(Path(sys.argv[1]), Record(schema=SCHEMA, created='', machine={}, cases=[]))"
        )
        with RecordFile.open(path, record()):
            done = subprocess.run(
                [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
            )
        assert done.returncode == 1
        assert "another moegauge is writing it now" in done.stderr

    def test_a_full_disk_leaves_the_earlier_points(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "r.json"
        with RecordFile.open(path, record([])) as file:
            file.add(case("a"))
            before = path.read_bytes()

            def full(_: int) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(os, "fsync", full)
            with pytest.raises(RecordError, match=r"r\.json: cannot be written \(No space left on device\)"):
                file.add(case("b"))
        assert path.read_bytes() == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json"]

    def test_a_folder_that_cannot_be_is_refused_before_measuring(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(RecordError, match="cannot be written"):
            RecordFile.open(tmp_path / "file" / "r.json", record())


def test_output_options_do_not_make_another_run() -> None:
    assert same_run(["bench", "--json", "--out", "a", "--batch", "1", "--out=b"]) == ["bench", "--batch", "1"]


def test_a_peer_stands_in_a_table_beside_this_kit_at_the_same_point() -> None:
    from moegauge.bench.report.tables import peers_markdown

    own, other = case("a", roof_fraction=0.91), case("b", roof_fraction=0.2)
    peer = msgspec.structs.replace(
        own, backend="llama.cpp", peer="1.0", stored="q4_0", roof_fraction=0.66, time_ratio=0.72,
        time_ratio_interval=(0.71, 0.73),
    )  # fmt: skip
    assert peers_markdown([record([own, other])]) == ""
    (row,) = peers_markdown([record([other, own, peer])]).splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "a"
    assert cells[4:] == ["llama.cpp q4_0", "91 %", "66 %", "0.72", "0.71 to 0.73"]
