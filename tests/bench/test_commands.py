"""`bench`, `compare`, `report`, `validate` and `env` as a user types them, on a made-up device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import made_up
import pytest

from moegauge import cli, machine, models
from moegauge.bench.step import build as step_module
from moegauge.errors import DeviceError, NumericsError
from moegauge.kernels import devices
from moegauge.record import load

ROOT = Path(__file__).resolve().parents[2]
MODELS = "gpt-oss-20b,gpt-oss-120b,qwen3-30b-a3b"


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fakes: Any, tmp_path: Path
) -> Callable[..., Any]:
    """Runs a command line; gives (exit code, stdout, stderr). `run.build` may be replaced by another step builder."""
    device = fakes.FakeBackend(bandwidth=20e9)
    monkeypatch.setattr(devices, "get_backend", lambda name, threads=None, launch_mode="": device)
    monkeypatch.setattr(machine, "project", lambda: {"version": "0.1.0", "commit": "c" * 40, "dirty": False})
    monkeypatch.setattr(machine, "load_average", lambda: 0.0)
    monkeypatch.chdir(tmp_path)

    def lawful(shape: Any, backend: Any, *, batch: int, context: int, **options: Any) -> Any:
        kv = 2 * batch * shape.cache_elements(context)
        return fakes.FakeStep(backend, shape.bytes_per_token * batch + kv, kernels=7 * len(shape.layers), floor=1e-5)

    def go(*argv: str) -> Any:
        monkeypatch.setattr("sys.argv", ["moegauge", *argv])
        monkeypatch.setattr(step_module, "build_step", go.build, raising=False)  # type: ignore[attr-defined]
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main(list(argv))
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code or 0, out, err

    go.build = lawful  # type: ignore[attr-defined]
    go.lawful = lawful  # type: ignore[attr-defined]
    return go


def test_bench_roof_prints_one_record(run: Any) -> None:
    code, out, err = run("bench", "roof", "--device", "cpu", "--json")
    document = json.loads(out)
    assert code == 0
    assert err == ""
    assert document["schema"] == "moegauge.record/1"
    assert document["roof"]["gb_per_s"] == pytest.approx(20.0)
    assert document["cases"] == []
    assert document["argv"] == ["moegauge", "bench", "roof", "--device", "cpu", "--json"]


def test_bench_decode_prints_a_record_that_obeys_the_schema(run: Any) -> None:
    code, out, _ = run("bench", "decode", "--model", MODELS, "--format", "native,fp8", "--batch", "1,8", "--json")
    document = json.loads(out)
    jsonschema.validate(document, json.loads((ROOT / "results" / "schema.json").read_text()))
    assert code == 0
    assert document["complete"]
    assert len(document["cases"]) == 12
    case = next(c for c in document["cases"] if (c["model"], c["format"], c["batch"]) == ("gpt-oss-20b", "native", 1))
    shape = models.load("gpt-oss-20b")
    assert case["bytes"]["total"] == shape.bytes_per_token
    assert case["median_ms"] == pytest.approx(1e3 * (shape.bytes_per_token / 20e9 + 7 * 24 * 1e-5))
    assert case["roof_fraction"] == pytest.approx(shape.bytes_per_token / 20e6 / case["median_ms"])


def test_without_out_nothing_is_written_and_the_user_is_told(run: Any, tmp_path: Path) -> None:
    code, out, err = run("bench", "decode", "--model", "gpt-oss-20b")
    assert code == 0
    assert "gpt-oss-20b" in out
    assert "give --out FILE" in err
    assert list(tmp_path.iterdir()) == []


def test_exports(run: Any, tmp_path: Path) -> None:
    code, _, _ = run("bench", "decode", "--model", MODELS, "--export-csv", "a.csv", "--export-markdown", "a.md")
    assert code == 0
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 4
    assert (tmp_path / "a.md").read_text().count("| gpt-oss-") == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "gpt-oss-20"], "unknown model 'gpt-oss-20'. Did you mean 'gpt-oss-20b'?"),
        (["--format", "mxpf4"], "unknown format 'mxpf4'. Did you mean 'mxfp4'?"),
        (["--format", "f32"], "no kernel for format 'f32'"),
        (["--suite", "quik"], "unknown suite 'quik'. Did you mean 'quick'?"),
        (["--suite", "quick", "--batch", "9"], "has no point"),
        (["--batch", "65"], "--batch '65' is no whole number from 1 to 64"),
        (["--context", "-1"], "--context"),
        (["--model", ","], "--model is empty"),
        (["--routing", "zapf"], "unknown routing 'zapf'"),
        (["--rung", "pdl", "--device", "cpu"], "--launch is for GPUs"),
        (["--model", "absent.json"], "absent.json: no such file"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_written(
    run: Any, tmp_path: Path, argv: list[str], message: str
) -> None:
    code, out, err = run("bench", "decode", *argv, "--out", "r.json")
    assert (code, out) == (1 if argv[1].endswith(".json") else 2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_bench_without_a_subcommand_is_decode(run: Any) -> None:
    code, out, _ = run("bench", "--model", "gpt-oss-20b", "--format", "fp8", "--json")
    assert code == 0
    assert [(c["kind"], c["format"]) for c in json.loads(out)["cases"]] == [("decode", "fp8")]


def test_a_model_of_the_user_s_own(run: Any, tmp_path: Path, fakes: Any) -> None:
    made_up.tiny("mine").save(tmp_path / "mine.json")
    code, out, _ = run("bench", "decode", "--model", "mine.json", "--json")
    assert code == 0
    assert json.loads(out)["cases"][0]["model"] == "mine"


def test_ctrl_c_leaves_a_valid_record_and_the_same_command_finishes_it(run: Any, tmp_path: Path) -> None:
    argv = ["bench", "decode", "--model", MODELS, "--format", "fp8", "--out", "r.json"]

    def interrupted(shape: Any, *args: Any, **options: Any) -> Any:
        if shape.name == "qwen3-30b-a3b":
            raise KeyboardInterrupt
        return run.lawful(shape, *args, **options)

    run.build = interrupted
    code, _, err = run(*argv)
    assert code == 130
    assert "Stopped after 2 of 3 points; r.json is valid. Resume: moegauge bench decode" in err
    stopped = load(tmp_path / "r.json")
    assert not stopped.complete
    assert [c.model for c in stopped.cases] == ["gpt-oss-20b", "gpt-oss-120b"]

    built = []

    def counting(shape: Any, *args: Any, **options: Any) -> Any:
        built.append(shape.name)
        return run.lawful(shape, *args, **options)

    run.build = counting
    code, _, _ = run(*argv)
    assert code == 0
    assert built == ["qwen3-30b-a3b"]
    finished = load(tmp_path / "r.json")
    assert finished.complete
    assert finished.cases[:2] == stopped.cases
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json"]


def test_another_run_s_record_is_not_overwritten(run: Any, tmp_path: Path) -> None:
    run("bench", "decode", "--model", "gpt-oss-20b", "--out", "r.json")
    before = (tmp_path / "r.json").read_bytes()
    code, _, err = run("bench", "decode", "--model", "gpt-oss-120b", "--out", "r.json")
    assert code == 1
    assert "exists and is of another run" in err
    assert (tmp_path / "r.json").read_bytes() == before


def test_a_point_that_does_not_fit_costs_only_itself(run: Any, tmp_path: Path) -> None:
    def small(shape: Any, *args: Any, **options: Any) -> Any:
        if shape.name == "gpt-oss-120b":
            raise DeviceError("the arena needs 9 GB, 1 GB is free.", advice="Lower --arena.")
        return run.lawful(shape, *args, **options)

    run.build = small
    code, _, err = run("bench", "decode", "--model", MODELS, "--out", "r.json")
    assert code == 1
    assert "gpt-oss-120b native: the arena needs 9 GB" in err
    assert err.splitlines()[-1].startswith("moegauge: 1 of 3 points gave no time.")
    assert [c.model for c in load(tmp_path / "r.json").cases] == ["gpt-oss-20b", "qwen3-30b-a3b"]
    code, _, err = run("bench", "decode", "--model", "gpt-oss-120b")
    assert (code, err) == (1, "moegauge: the arena needs 9 GB, 1 GB is free. Lower --arena.\n")


def test_compare_and_report_of_a_record(run: Any, tmp_path: Path) -> None:
    run("bench", "decode", "--model", MODELS, "--format", "native,fp8", "--out", "r.json")
    code, out, _ = run("compare", "r.json", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["leave_one_model_out"]["n"] == 6
    assert document["leave_one_model_out"]["max_abs_error"] < 0.02
    assert document["simple_formula"]["n"] == 6
    code, out, _ = run("compare", "r.json")
    assert code == 0
    assert "leaving the model out" in out
    code, out, _ = run("compare", "r.json", "--against", "r.json", "--json")
    assert json.loads(out)["against"]["counts"] == {"same": 6, "faster": 0, "slower": 0, "undecided": 0}
    assert run("report", "r.json", "--out", "page.html")[0] == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert run("report", "r.json", "--out", "page.html")[0] == 0  # its own page may be made again
    (tmp_path / "mine.html").write_text("mine")
    code, _, _ = run("report", "r.json", "--out", "mine.html")
    assert (code, (tmp_path / "mine.html").read_text()) == (2, "mine")
    code, out, _ = run("report", "r.json", "--markdown")
    assert out.startswith("| model |")


def test_unlike_machines_are_refused(run: Any, tmp_path: Path) -> None:
    run("bench", "decode", "--model", MODELS, "--out", "a.json")
    document = json.loads((tmp_path / "a.json").read_text())
    document["machine"]["cpu"]["model"] = "Another"
    (tmp_path / "b.json").write_text(json.dumps(document))
    code, _, err = run("compare", "a.json", "b.json")
    assert code == 1
    assert "never pooled" in err
    code, _, err = run("compare", "a.json", "--against", "b.json")
    assert code == 0
    assert "unlike machines" in err


def test_validate_runs_the_whole_way_whatever_the_error(run: Any, tmp_path: Path) -> None:
    def lawless(shape: Any, backend: Any, **options: Any) -> Any:
        step = run.lawful(shape, backend, **options)
        step.floor = {"gpt-oss-20b": 1e-2, "qwen3-30b-a3b": 1e-6}.get(shape.name, 1e-4)
        return step

    run.build = lawless
    code, out, _ = run("validate", "--quick", "--device", "cpu", "--out", "here")
    assert code == 0
    assert "20,914,757,184" in out
    for step in ("count", "measure", "predict", "compare", "report"):
        assert f"== {step}:" in out
    assert str(Path("here") / "report.html") in out
    assert (tmp_path / "here" / "report.html").is_file()
    assert len({c.model for c in load(tmp_path / "here" / "record.json").cases}) >= 3


def test_validate_as_json_is_one_document(run: Any, tmp_path: Path) -> None:
    code, out, _ = run("validate", "--quick", "--device", "cpu", "--out", "here", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["count"]["decoder"] == 20_914_757_184
    assert document["compare"]["leave_one_model_out"]["n"] == 5
    assert (tmp_path / document["report"]).is_file()
    assert set(document["predict"]) == {"glm-4.7", "kimi-k2", "qwen3-235b-a22b"}


def test_a_miscount_fails_the_main_job(run: Any, fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from moegauge.bench.plan import validation

    counted = validation.count_release()
    assert validation.miscount(counted) == []
    wrong = validation.CountedRelease(
        **{**{f: getattr(counted, f) for f in counted.__slots__}, "shape": made_up.tiny()}
    )
    assert "counted" in str(validation.miscount(wrong)[0])
    monkeypatch.setattr(validation, "count_release", lambda: wrong)
    code, _, err = run("validate", "--quick", "--device", "cpu", "--out", "here")
    assert code == 1
    assert "its shipped shape says 20,914,757,184" in err


def test_validate_with_a_wrong_kernel_reports_and_fails(run: Any, tmp_path: Path) -> None:
    def wrong(shape: Any, backend: Any, **options: Any) -> Any:
        if shape.name == "gpt-oss-120b":
            raise NumericsError("layer 3: experts up: error 0.5, bound 0.01.")
        return run.lawful(shape, backend, **options)

    run.build = wrong
    code, _, err = run("validate", "--quick", "--device", "cpu", "--out", "here")
    assert code == 1
    assert err.splitlines()[-1] == "moegauge: layer 3: experts up: error 0.5, bound 0.01."
    assert (tmp_path / "here" / "report.html").is_file()


def test_a_busy_machine_is_said_so(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "load_average", lambda: 99.0)
    code, out, err = run("bench", "roof", "--device", "cpu", "--json")
    assert code == 0
    assert "the machine is busy (load 99.0 on " in err
    assert json.loads(out)["load_average"] == 99.0


def test_kernels_alone(run: Any) -> None:
    code, out, _ = run("bench", "kernels", "--model", "gpt-oss-20b", "--json")
    cases = json.loads(out)["cases"]
    assert code == 0
    assert [(c["kind"], c["kernel"]) for c in cases] == [("kernel", "experts up"), ("kernel", "experts down")]


def test_alike_warnings_are_one_line(run: Any) -> None:
    def noisy(shape: Any, backend: Any, **options: Any) -> Any:
        step = run.lawful(shape, backend, **options)
        times = iter([0.1, 0.5] * 10_000)
        step.run = lambda: backend.spend(next(times))
        return step

    run.build = noisy
    code, _, err = run("bench", "decode", "--model", MODELS, "--time-limit", "0.2")
    assert code == 0
    assert err.count("not settled") == 2  # the count, and the first in full
    assert err.startswith("warning: 3 of 3 points not settled; first gpt-oss-20b native: not settled")


def test_env(run: Any) -> None:
    code, out, _ = run("env", "--device", "cpu", "--json")
    document = json.loads(out)
    assert code == 0
    assert set(document) == {"schema", "machine", "software", "project"}
    assert document["machine"]["id"] in run("env", "--device", "cpu")[1]
