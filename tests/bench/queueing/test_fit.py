"""Fitting latencies: a made-up run whose latencies are known gives them back; predictions travel into records."""

import json
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest

from moegauge.bench.judge.gpu_model import judge_model
from moegauge.bench.queueing import fit as fitting
from moegauge.bench.queueing.fit import FITTED, Measured, fit_latencies
from moegauge.bench.queueing.latencies import latencies
from moegauge.bench.queueing.multiprocessor import PieceCost, Workload
from moegauge.bench.queueing.prediction import predict_launches
from moegauge.bench.queueing.prediction_file import Predicted, SuitePrediction, of_device, with_prediction
from moegauge.bench.queueing.step import Laid
from moegauge.errors import RecordError
from moegauge.record import Project

START = latencies("H200")
# What the made-up device has: moved as far as the table's pessimistic column, either way.
TRUE = replace(START, dram=650.0, release=450.0, stall_factor=1.75, fence=560.0, edge=1200.0)


def step(heavy: float, chunks: int, alone: float, programs: int = 2112) -> list[Laid]:
    """Launches of several kinds: one that streams, one that counts in among few, one that only waits."""
    common = {"warps": 1, "resident": 16, "arrives": 1, "head": 400, "tail": 200, "finish": 800, "finish_loads": 3}
    pipes = (("issue", alone / 2.2), ("alu", alone / 5))
    streams = Workload(kernel="a", programs=programs, chunks=chunks, run=57, whole=False, chunk_bytes=heavy,
                       chunk=PieceCost(alone=alone, pipes=pipes), **common)  # fmt: skip
    small = Workload(kernel="b", programs=180, chunks=360, run=45, whole=False, chunk_bytes=2048.0,
                     chunk=PieceCost(alone=200), waits_first=True, wait=300, head_loads=2, **common)  # fmt: skip
    waits = Workload(kernel="c", programs=8, warps=4, resident=4, head=900, head_loads=3)
    works = [streams, small, waits, streams]
    return [Laid(work.kernel, work.bytes, work) for work in works]


def made_up(at) -> list[Measured]:
    found = []
    for model, heavy, chunks, alone in (("a", 2048, 5000, 300), ("b", 2176, 14000, 410), ("c", 2100, 9000, 640)):
        laid = step(heavy, chunks, alone)
        for mode in ("pdl", "graph"):
            parts = [laid, laid[:1], laid[1:2], laid[2:3]]
            found += [Measured(model, mode, tuple(p), predict_launches(p, at, mode)) for p in parts]
    return found


def test_a_run_of_known_latencies_gives_them_back():
    found = fit_latencies(made_up(TRUE), START)
    for name in ("dram", "release", "stall_factor", "fence", "edge"):
        true, fitted, table = (getattr(at, name) for at in (TRUE, found.after, START))
        assert fitted == pytest.approx(true, rel=0.08), name
        assert abs(fitted - true) < abs(table - true) / 2
    assert found.error_before > 0.05
    assert found.error_after is not None
    assert found.error_after < 0.02
    assert set(found.to_json()["latencies"]) == set(FITTED)


def test_what_was_right_stays_where_it_is():
    found = fit_latencies(made_up(START), START)
    assert found.error_before == pytest.approx(0.0, abs=1e-9)
    for name in FITTED:
        assert getattr(found.after, name) == pytest.approx(getattr(START, name), rel=1e-6)


def document(path):
    common = {"stage": "s", "kind": "decode", "model": "m", "format": "native", "batch": 1, "context": 0,
              "launches": 9, "bytes": 1e9, "nominal_share": 0.5, "pessimistic_share": 0.4}  # fmt: skip
    points = [
        Predicted(device=device, launch_mode=mode, nominal_us=us, pessimistic_us=1.2 * us, **common)
        for device, mode, us in (("H200", "pdl", 1000.0), ("H200", "graph", 1100.0), ("B200", "pdl", 700.0))
    ]
    whole = SuitePrediction(
        created="c", project=Project(version="1"), suite="gpu", compiler="t", latencies={}, points=points
    )
    path.write_bytes(msgspec.json.encode(whole))
    return path


def test_predictions_go_beside_the_cases_they_are_of(tmp_path, make_case):
    points = of_device(document(tmp_path / "p.json"), "NVIDIA H200")
    assert len(points) == 2
    case = make_case(model="m", format="native", launch_mode="graph", median_ms=1.15)
    beside = with_prediction(case, points)
    assert (beside.predicted_ms, beside.predicted_pessimistic_ms) == (pytest.approx(1.1), pytest.approx(1.32))
    assert with_prediction(make_case(model="m", format="fp8", launch_mode="graph"), points).predicted_ms is None
    judged = judge_model([(None, beside)])
    assert judged.to_json()["median_abs_error"] == pytest.approx(1.15 / 1.1 - 1, rel=0.1)
    assert judged.between == 1
    assert "between nominal and pessimistic" in judged.lines()[0]
    assert judge_model([(None, case)]) is None


def test_files_that_are_none_and_devices_that_are_not_there_are_one_line(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"schema": "moegauge.record/1"}))
    with pytest.raises(RecordError, match="no prediction of a suite"):
        of_device(bad, "NVIDIA H200")
    with pytest.raises(RecordError, match="predicts nothing for 'NVIDIA A100'"):
        of_device(document(tmp_path / "p.json"), "NVIDIA A100")
    with pytest.raises(RecordError, match="cannot be read"):
        of_device(tmp_path / "none.json", "NVIDIA H200")


@pytest.fixture
def make_case():
    from moegauge.record import Case, CaseBytes

    def make(**changes):
        plain = {"kind": "decode", "backend": "triton", "model": "m", "format": "native", "batch": 1, "context": 0,
                 "layers": 1, "bytes": CaseBytes(weights=1, total=1), "distinct_experts": 0.0, "kernels_per_step": 1,
                 "samples_ms": [1.0], "median_ms": 1.0, "mad_ms": 0.0, "tokens_per_s": 1.0, "gb_per_s": 1.0,
                 "roof_fraction": 1.0, "roof_fraction_samples": [1.0], "max_relative_error": 0.0}  # fmt: skip
        return Case(**{**plain, **changes})

    return make


def test_too_few_points_to_fit_to_are_refused(make_case):
    made = SimpleNamespace(machine={"gpu": {"name": "NVIDIA H200"}}, machine_id="nvidia-h200", roof=None)
    one = msgspec.structs.replace(make_case(), predicted_ms=1.0, predicted_pessimistic_ms=1.2)
    with pytest.raises(RecordError, match="fewest to fit to"):
        judge_model([(made, one)], fit=True)
    assert fitting.device_of(made) == "H200"


def test_a_run_takes_predictions_for_its_own_device_only(tmp_path):
    """`bench --predicted FILE` reads the file before anything is measured."""
    from click.testing import CliRunner

    from moegauge.cli import group

    words = [
        "bench",
        "decode",
        "--device",
        "cpu",
        "--model",
        "gpt-oss-20b",
        "--predicted",
        str(document(tmp_path / "p.json")),
    ]
    done = CliRunner().invoke(group, words, standalone_mode=False)
    assert isinstance(done.exception, RecordError)
    assert "predicts nothing for" in str(done.exception)
