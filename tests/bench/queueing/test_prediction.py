"""Predictions of a suite from made-up machine code: bytes, points, the document and its schema, bad options."""

import json
from dataclasses import asdict
from pathlib import Path

import jsonschema
import msgspec
import pytest
from click.testing import CliRunner

from moegauge import models
from moegauge.bench.plan.points import Point
from moegauge.bench.plan.suites import get_suite
from moegauge.bench.queueing import prediction
from moegauge.bench.queueing.latencies import latencies
from moegauge.bench.queueing.step import Code, CodeBook, lay_out
from moegauge.cli import group
from moegauge.estimator.traffic import step_traffic
from moegauge.record import Project

pytest.importorskip("triton")

WAY = {"head": 400, "head_loads": 1, "waits_first": False, "wait_cycles": 0, "tail": 200, "finish": 800,
       "finish_loads": 3, "finish_all": 4, "late_vectors": 1, "arrives": 1, "again": 300, "again_loads": 1,
       "whole": 600, "whole_loads": 2, "onward": 250}  # fmt: skip
CODE = Code(registers=128, shared=1024, way=WAY, loop=400, pipes={"issue": 180, "alu": 80, "tensor": 8})


class MadeUp(CodeBook):
    """One code for every kernel; nothing is compiled."""

    def __init__(self) -> None:
        self.asked = []

    def read(self, launches, target, dependent):
        found = list(launches)
        self.asked += [(launch.kernel.fn.__name__, target, dependent) for launch in found]
        return [CODE] * len(found)


@pytest.mark.parametrize("name", ["gpt-oss-120b", "kimi-k2-thinking"])
@pytest.mark.parametrize("batch", [1, 8])
def test_a_step_reads_the_bytes_the_estimator_counts(name, batch):
    shape = models.load(name)
    laid = lay_out(shape, MadeUp(), "H200", 132, batch=batch, context=1024, dependent=True)
    counted = step_traffic(shape, batch=batch, context=1024)
    assert sum(one.bytes for one in laid) == pytest.approx(counted.total_bytes, rel=2e-3)
    for one in laid:
        assert one.work.bytes == pytest.approx(one.bytes, rel=0.02, abs=1)


def predict(device="H200"):
    suite, book = get_suite("gpu"), MadeUp()
    keep = [Point("gpt-oss-120b"), Point("deepseek-v3", "int4")]
    found = prediction.predict_suite(
        "gpu", suite.stages, Project(version="1"), devices=[device], keep=keep.__contains__, book=book
    )  # fmt: skip
    return found, book


def test_every_point_and_kind_is_predicted_in_both_columns():
    found, book = predict()
    steps = [one for one in found.points if one.kind == "decode"]
    modes = {(one.stage, one.model, one.launch_mode) for one in steps}
    assert {("launch modes", "gpt-oss-120b", "graph"), ("launch modes", "gpt-oss-120b", "pdl")} <= modes
    assert ("first steps", "gpt-oss-120b", "graph") in modes
    for one in found.points:
        assert one.pessimistic_us > one.nominal_us > 0
        assert 0 <= one.pessimistic_share <= one.nominal_share < 1
    graph, pdl = (next(o for o in steps if o.model == "gpt-oss-120b" and o.launch_mode == m) for m in ("graph", "pdl"))
    assert graph.nominal_us > pdl.nominal_us
    assert pdl.tokens_per_s == pytest.approx(1e6 / pdl.nominal_us, rel=1e-3)
    kinds = {one.kernel for one in found.points if one.kind == "kernel" and one.format == "int4"}
    assert {"experts up", "experts down", prediction.EXPERTS, "logits"} <= kinds
    assert {target for _, target, _ in book.asked} == {90}
    assert {target for _, target, _ in predict("B200")[1].asked} == {100}


def test_a_faster_device_is_predicted_faster_where_bytes_decide():
    laid = lay_out(models.load("deepseek-v3"), MadeUp(), "H200", 132, batch=1, context=0, dependent=True)
    h100, h200 = (prediction.predict_launches(laid, latencies(name), "pdl") for name in ("H100", "H200"))
    assert 1.2 < h100 / h200 < 4800 / 3350


def test_the_document_keeps_its_schema_and_the_latencies_it_used():
    data = msgspec.to_builtins(predict()[0])
    jsonschema.validate(json.loads(json.dumps(data)), prediction.json_schema())
    assert data["latencies"]["H200"]["nominal"]["dram"] == latencies("H200").dram
    heads, rows = prediction.table_rows(msgspec.convert(data, prediction.SuitePrediction))
    assert all(len(row) == len(heads) for row in rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--suite", "quick"], "no suite of a GPU"),
        (["--suite", "gpu", "--device", "tpu"], "no latencies of it"),
        (["--suite", "gpu", "--model", "gpt-oss-20b", "--batch", "3"], "no point that could be predicted"),
        (["--suite", "gpu", "--export-csv", "a.csv"], "are of records"),
    ],
)
def test_bad_options_are_one_line(words, said):
    done = CliRunner().invoke(group, ["bench", "--predict", *words], standalone_mode=False)
    assert said in str(done.exception)


RESULTS = Path(__file__).resolve().parents[3] / "results"


def test_the_committed_predictions_hold_their_schema_and_the_table_of_latencies():
    schema = json.loads((RESULTS / "prediction_schema.json").read_text())
    assert schema == prediction.json_schema(), "write prediction.json_schema() to results/prediction_schema.json"
    for path in sorted(RESULTS.glob("predicted/gpu/*.json")):
        data = json.loads(path.read_text())
        jsonschema.validate(data, schema)
        assert data["latencies"]["H200"]["nominal"] == asdict(latencies("H200")), path
