"""A suite of stages on a made-up device: order, budget, resume, launch modes, floors, what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from moegauge import cli, machine, models
from moegauge.bench.clock import boundaries
from moegauge.bench.plan import gpu_suite, suites
from moegauge.bench.plan.budget import Clock
from moegauge.bench.plan.gpu_suite import Stage
from moegauge.bench.plan.points import Row
from moegauge.bench.step import build as step_module
from moegauge.errors import NumericsError
from moegauge.kernels import devices
from moegauge.record import load

ROOT = Path(__file__).resolve().parents[3]
SMALL = (
    Stage("roof sweep", "sweep", "roof"),
    Stage("floors", "floors", "floors"),
    Stage("whole steps", "decode", "steps", (Row(("gpt-oss-20b", "qwen3-30b-a3b")),)),
    Stage("kernels", "kernel", "kernels", (Row(("gpt-oss-20b",)),)),
    Stage("launch modes", "launch modes", "launch modes", (Row(("gpt-oss-20b",)),)),
    Stage("batch curve", "decode", "batches", (Row(("gpt-oss-20b",), ("fp8",), (2, 4)),)),
    Stage("peers", "peers", "peers"),
)
POINTS = [
    ("gpt-oss-20b", "native", 1, None, "pdl"),
    ("qwen3-30b-a3b", "native", 1, None, "pdl"),
    ("gpt-oss-20b", "native", 1, "experts up", "pdl"),
    ("gpt-oss-20b", "native", 1, "experts down", "pdl"),
    ("gpt-oss-20b", "native", 1, None, "eager"),
    ("gpt-oss-20b", "native", 1, None, "graph"),
    ("gpt-oss-20b", "fp8", 2, None, "pdl"),
    ("gpt-oss-20b", "fp8", 4, None, "pdl"),
]
FLOORS_US = {"eager": 9.0, "graph": 3.0, "pdl": 1.5}


@pytest.fixture
def gpu(fakes: Any) -> Any:
    """A backend with launch modes, chains of a known cost per kernel, and a sweep whose best stream is no usual one."""

    class Gpu(fakes.FakeBackend):
        name = "triton"
        launch_mode = "pdl"
        launch_modes = ("eager", "graph", "pdl")
        chains = launch_modes
        last_level_cache = 1000

        def on(self, launch_mode: str) -> Any:
            other = Gpu(self.bandwidth)
            other.clock, other.launch_mode = self.clock, launch_mode
            return other

        def chain(self, name: str, length: int) -> Any:
            return lambda: self.spend(1e-4 + length * FLOORS_US[name] * 1e-6)

        def sweep(self, size: int) -> Any:
            found = []
            for width, rate in ((4, 0.5), (16, 1.25)):
                stream = fakes.FakeStream(self, f"swept {width}", size, rate * self.bandwidth)
                stream.shape = {"width": width, "unroll": 4, "programs": 2, "warps": 8}
                found.append(stream)
            return found

    return Gpu(20e9)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: Any, fakes: Any, gpu: Any, tmp_path: Path) -> Any:
    suite = suites.Suite(tuple(r for s in SMALL for r in s.rows), 1.0, "small", SMALL, budget_s=1e9, gate_rows=2)
    monkeypatch.setitem(suites.SUITES, "gpu", suite)
    monkeypatch.setattr(devices, "get_backend", lambda name, threads=None, launch_mode="": gpu)
    monkeypatch.setattr(machine, "project", lambda: {"version": "0.1.0", "commit": "c" * 40, "dirty": False})
    monkeypatch.setattr(machine, "load_average", lambda: 0.0)
    monkeypatch.chdir(tmp_path)
    built: list[Any] = []

    def build(shape: Any, backend: Any, *, batch: int, **options: Any) -> Any:
        cast = next(name for name in ("native", "fp8") if models.load(shape.name).cast(name) == shape)
        built.append((shape.name, cast, batch, backend.launch_mode, options["gate_rows"]))
        go.before(len(built))
        return fakes.FakeStep(backend, shape.bytes_per_token * batch, floor=1e-6 * FLOORS_US[backend.launch_mode])

    def go(*more: str, out: str = "r.json") -> Any:
        argv = ["bench", "--suite", "gpu", "--device", "cpu", "--out", out, *more]
        monkeypatch.setattr("sys.argv", ["moegauge", *argv])
        built.clear()
        code: Any = 0
        try:
            cli.main(argv)
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code or 0, load(tmp_path / out), list(built), captured.err

    go.before = lambda _: None  # type: ignore[attr-defined]
    monkeypatch.setattr(step_module, "build_step", build)
    return go


def told(record: Any) -> list[str]:
    return [str(one) for one in record.left_out]


def keys(record: Any) -> Any:
    return [(c.model, c.format, c.batch, c.kernel, c.launch_mode) for c in record.cases]


def test_stages_run_in_order_and_the_record_obeys_the_schema(run: Any, tmp_path: Path) -> None:
    code, record, built, err = run()
    assert code == 0, err
    assert keys(record) == POINTS
    assert record.complete
    assert {entry[-1] for entry in built} == {2}  # the suite's own number of gate rows
    assert told(record) in ([], ["peers: all: no peer of this device is installed"])  # torch may be one
    document = json.loads((tmp_path / "r.json").read_text())
    jsonschema.validate(document, json.loads((ROOT / "results" / "schema.json").read_text()))


def test_the_roof_is_the_best_of_the_sweep_and_the_table_keeps_all(run: Any) -> None:
    _, record, _, _ = run()
    assert record.roof.pattern == "swept 16"
    assert record.roof.gb_per_s == pytest.approx(25.0)
    assert [(p.width, p.unroll, p.programs, p.warps) for p in record.roof.sweep] == [(4, 4, 2, 8), (16, 4, 2, 8)]
    assert [p.gb_per_s for p in record.roof.sweep] == pytest.approx([10.0, 25.0])
    assert record.cases[0].roof_samples_gb_per_s[0] == pytest.approx(25.0)


def test_a_sweep_after_the_usual_patterns_is_made_all_the_same(
    run: Any, gpu: Any, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def streams(size: int) -> Any:
        one = fakes.FakeStream(gpu, "usual", size, gpu.bandwidth)
        one.shape = {"width": 8, "unroll": 4, "programs": 2, "warps": 8}
        return [one]

    gpu.streams = streams
    stages = (Stage("roof", "roof", "roof"), *SMALL[2:3], SMALL[0])
    suite = suites.Suite(tuple(r for s in stages for r in s.rows), 1.0, "x", stages, budget_s=1e9, gate_rows=2)
    monkeypatch.setitem(suites.SUITES, "gpu", suite)
    _, record, _, _ = run()
    assert record.roof.pattern == "usual"  # the points stood beside this one
    assert {p.width for p in record.roof.sweep} == {4, 8, 16}


def test_floors_are_the_slope_of_two_chains(run: Any) -> None:
    _, record, _, _ = run()
    assert {f.name: f.us_per_kernel for f in record.floors} == pytest.approx(FLOORS_US)
    assert all(len(f.samples_us) == boundaries.ROUNDS for f in record.floors)


def test_a_spent_budget_leaves_points_out_and_the_same_command_goes_on(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(Clock.__init__, "__defaults__", (lambda: now[0],))
    run.before = lambda _: now.__setitem__(0, now[0] + 10.0)  # every point costs ten seconds
    code, record, _, _ = run("--budget", "25")
    assert code == 0
    assert keys(record) == POINTS[:4]  # 10, 20 (mean 10: the kernels stage starts at 20 < 25)
    assert not record.complete
    assert "launch modes (eager): gpt-oss-20b native: no time left in the budget" in told(record)
    assert "batch curve: gpt-oss-20b fp8 batch 4: no time left in the budget" in told(record)
    _, record, built, _ = run("--budget", "1000")
    assert keys(record) == POINTS
    assert record.complete
    assert [b[:4] for b in built if b[3] == "eager"] == [("gpt-oss-20b", "native", 1, "eager")]
    assert ("qwen3-30b-a3b", "native", 1, "pdl", 2) not in built  # measured in the first part


def test_a_kill_in_the_middle_of_a_stage_keeps_what_was_measured(run: Any) -> None:
    def stop(count: int) -> None:
        if count == 2:
            raise KeyboardInterrupt

    run.before = stop
    code, record, _, _ = run()
    assert code == 130
    assert keys(record) == POINTS[:1]
    assert len(record.floors) == 3
    assert record.roof.sweep
    run.before = lambda _: None
    code, record, _, _ = run()
    assert code == 0
    assert keys(record) == POINTS
    assert len(record.floors) == 3


def test_a_lost_device_ends_the_run_and_keeps_the_record(run: Any, gpu: Any) -> None:
    def lose(count: int) -> None:
        if count == 2:
            gpu.synchronize = lambda: (_ for _ in ()).throw(RuntimeError("CUDA error: unspecified launch failure"))
            raise RuntimeError("CUDA error: unspecified launch failure")

    run.before = lose
    code, record, built, err = run()
    assert code == 1
    assert "CUDA error" in err
    assert keys(record) == POINTS[:1]
    assert "batch curve: gpt-oss-20b fp8 batch 4: the device stopped answering" in told(record)
    assert not record.complete
    assert len([b for b in built if b[3] == "pdl"]) == 2


def test_what_failed_is_tried_last_and_what_lost_its_process_twice_no_more(run: Any, tmp_path: Path) -> None:
    def wrong(count: int) -> None:
        if count == 1:
            raise NumericsError("gpt-oss-20b: wrong.")

    run.before = wrong
    code, record, _, err = run()
    assert code == 1
    assert sorted(map(str, keys(record))) == sorted(map(str, POINTS))  # the comparison of launch modes has measured it
    assert told(record)[0] == "whole steps: gpt-oss-20b native: failed: gpt-oss-20b: wrong."
    assert "NumericsError: gpt-oss-20b: wrong." in err

    def note(*texts: str) -> None:
        document = json.loads((tmp_path / "r.json").read_text())
        document["cases"], document["left_out"] = [], list(texts)
        (tmp_path / "r.json").write_text(json.dumps(document))

    run.before = lambda _: None
    note("whole steps: gpt-oss-20b native: began and did not end", "ladder graph: other native: began and did not end")
    code, record, _, _ = run()
    assert code == 0
    assert {key[-1] for key in keys(record)[-3:]} == {"pdl", "eager", "graph"}
    assert {key[0] for key in keys(record)[-3:]} == {"gpt-oss-20b"}
    assert sorted(map(str, keys(record))) == sorted(map(str, POINTS))
    twice = "whole steps: gpt-oss-20b native: began twice and did not end"
    note(twice, "ladder graph: other native: began twice and did not end")
    code, record, _, _ = run()
    found = keys(record)
    assert twice in told(record)
    assert not [key for key in found if key[0] == "gpt-oss-20b" and key[1] == "native" and key[3] is None]


def test_what_is_in_work_stands_in_the_record_on_disk(run: Any, tmp_path: Path) -> None:
    seen = []

    def look(count: int) -> None:
        seen.append(told(load(tmp_path / "r.json"))[-1])

    run.before = look
    _, record, _, _ = run()
    assert seen[0] == "whole steps: gpt-oss-20b native: began and did not end"
    assert not [text for text in told(record) if "did not end" in text]


def test_a_roof_pattern_that_does_not_compile_is_left_out_of_the_roof(run: Any, gpu: Any) -> None:
    class CompilationError(Exception):
        """As Triton's: no RuntimeError."""

    real = type(gpu).sweep

    def sweep(self: Any, size: int) -> Any:
        found = real(self, size)

        def refuse() -> None:
            raise CompilationError("at 3:4: no")

        found[0].run = refuse
        return found

    gpu.sweep = sweep.__get__(gpu)
    code, record, _, _ = run()
    assert code == 0
    assert record.roof.pattern == "swept 16"
    assert "roof sweep: swept 4: failed: CompilationError: at 3:4: no" in told(record)


def test_narrowing_options_narrow_every_stage(run: Any) -> None:
    _, record, _, _ = run("--model", "qwen3-30b-a3b")
    assert keys(record) == [("qwen3-30b-a3b", "native", 1, None, "pdl")]


def test_a_backend_without_chains_or_launch_modes_says_so(run: Any, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(gpu), "chains", ())
    monkeypatch.setattr(type(gpu), "launch_modes", ("pdl",))
    _, record, _, _ = run()
    assert "floors: all: the triton backend cannot run empty operations" in told(record)
    assert "launch modes: all: the triton backend launches in one way" in told(record)
    assert record.floors == []


def test_a_dry_run_prints_every_stage_and_measures_nothing(capsys: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "--suite", "gpu", "--dry-run"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert [line.split("  ")[0] for line in out.splitlines()[1:-1]] == [s.name for s in gpu_suite.GPU]
    assert "Estimates, nothing was measured." in out


def test_the_gpu_suite_fits_its_budget_by_estimate_and_leads_with_the_released_models() -> None:
    from moegauge.bench.plan.budget import estimates

    for name, most in (("gpu-first", 100), ("gpu", 480)):
        suite = suites.get_suite(name)
        shapes = {p.model: models.load(p.model) for stage in suite.stages for p in stage.points}
        total = sum(seconds for _, _, seconds in estimates(suite.stages, shapes))
        assert suite.budget_s is not None
        assert total < suite.budget_s <= most
    steps = next(s for s in gpu_suite.GPU if s.name == "whole steps").points
    assert {(p.model, p.format) for p in steps[:4]} == {
        ("deepseek-v3", "native"),
        ("kimi-k2-thinking", "native"),
        ("glm-4.7", "fp8"),
        ("gpt-oss-120b", "native"),
    }


def test_the_mean_of_a_stage_says_whether_another_point_fits() -> None:
    now = [0.0]
    clock = Clock(10.0, lambda: now[0])
    seen, left = [], []
    for item in clock.within("s", [1, 2, 3, 4], left.append, lambda p: p == 1):  # type: ignore[list-item,arg-type]
        seen.append(item)
        now[0] += 4.0
    assert (seen, left) == ([2, 3], [4])  # a third of four seconds would end at twelve
    assert clock.room_for("another stage")
