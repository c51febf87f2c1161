"""Peers: what is compared, skip reasons, ratios, wrong answers, the record; torch and llama.cpp where they are."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest

from moegauge import cli, machine
from moegauge.bench.clock.pairs import Limits
from moegauge.bench.clock.roof import find_roof
from moegauge.bench.peers import fused, gguf_model, llama_cpp, ours, torch_cpu
from moegauge.bench.peers.linear import LinearProducts, PackedMatrix, judge
from moegauge.bench.peers.peer import Peer, not_installed, serves
from moegauge.bench.peers.point import Versus, time_ratios
from moegauge.bench.peers.registry import PEERS
from moegauge.bench.peers.work import decode_work, kernel_work
from moegauge.bench.plan.points import Point
from moegauge.bench.report.tables import markdown
from moegauge.bench.run.case import Settings
from moegauge.errors import DeviceError, NumericsError, UsageError
from moegauge.formats import FORMATS
from moegauge.kernels.numpy_backend import NumpyBackend
from moegauge.record import SCHEMA, from_json, pool, to_json
from moegauge.shape import ModelShape

ROOT = Path(__file__).resolve().parents[3]
QUICK = Limits(relative_half_width=9.0, min_samples=3, time_limit_s=0.5, warmup_s=0.0, sample_s=0.0)


def small(family: str = "gpt_oss", hidden: int = 128, inner: int = 64, count: int = 8, top_k: int = 2) -> ModelShape:
    """A small model of a family llama.cpp knows."""
    mixer = made_up.gqa(hidden, 4, 2, 32, window=16)
    layer = made_up.moe_layer(mixer, count, top_k, inner, hidden, format="mxfp4")
    return made_up.model([layer, layer], hidden, name="small", family=family, vocabulary=96)


def work_of(kernel: str, name: str = "int4", batch: int = 1, cache: int = 1 << 12) -> Any:
    return kernel_work(Point("small", name, batch), small().cast(name), kernel, cache)


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last-level cache that a made-up model outgrows."""
    monkeypatch.setattr("moegauge.kernels.numpy_backend.last_level_cache", lambda: 1 << 12)


# -- what is compared ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["product", "experts"])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_one_run_reads_past_the_cache_and_every_token_uses_k_experts(kernel: str, batch: int) -> None:
    work = work_of(kernel, batch=batch, cache=1 << 16)
    assert work.parameters / 2 >= 8 * (1 << 16)
    chosen = work.chosen()
    assert chosen.shape == (batch, 2)
    for e in range(work.experts):
        assert work.tokens_of(e) == [b for b in range(batch) if e in chosen[b]]
    if kernel == "experts":
        assert all(len(set(row)) == 2 for row in chosen)
        assert set(chosen.flat) == set(range(work.experts))


def test_a_step_cut_in_depth_says_so() -> None:
    work = decode_work(Point("small"), small(), layers=1)
    assert work.shape.name == "small, 1 layers"
    assert len(work.shape.layers) == 1
    assert work.parameters == work.shape.active_without_embedding
    assert decode_work(Point("small"), small(), layers=9).shape.name == "small"


def test_models_without_gated_experts_are_refused() -> None:
    dense = replace(small(), layers=tuple(replace(layer, experts=()) for layer in small().layers))
    with pytest.raises(UsageError, match="no routed experts"):
        kernel_work(Point("small"), dense, "product", 1 << 12)


@pytest.mark.parametrize("kernel", ["product", "experts"])
@pytest.mark.parametrize("batch", [1, 4])
def test_this_kit_runs_the_same_matrices(kernel: str, batch: int) -> None:
    work = work_of(kernel, batch=batch)
    backend = NumpyBackend("reference")
    mine = ours.prepare(work, backend, Settings())
    try:
        assert mine.check() < 1e-6
        mine.run()
        traffic = mine.traffic()
        fmt = FORMATS["int4"]
        one = fmt.bytes(work.rows, work.columns)
        if kernel == "product":
            assert traffic.total == work.experts * one
        else:
            read = round(traffic.distinct_experts * work.layers) * (2 * one + fmt.bytes(work.columns, work.rows))
            assert traffic.total == read + work.layers * 2 * work.columns  # and a norm's gain a layer
        counted = mine.parameters(traffic.distinct_experts)
        assert counted == pytest.approx(
            work.parameters if kernel == "product" else traffic.distinct_experts * work.parameters / work.experts
        )
    finally:
        mine.close()


# -- fake peers ---------------------------------------------------------------------------------------------------


@dataclass
class Done:
    """A peer's work, 2 ms of nothing: warming up ends when half a second has been worked."""

    bytes: int = 4000
    parameters: int = 8000
    launch_mode: str = "threads"
    kernels: int = 3
    errors: list[Any] = field(default_factory=lambda: [1e-3, 2e-3])
    closed: int = 0

    def run(self) -> None:
        time.sleep(0.002)

    def check(self) -> float:
        found = self.errors.pop(0)
        if isinstance(found, Exception):
            raise found
        return float(found)

    def close(self) -> None:
        self.closed += 1


@dataclass
class Fake:
    """A peer."""

    name: str = "fake"
    device: str = "cpu"
    kernels: frozenset[str] = frozenset({"product", "experts", "decode"})
    formats: dict[str, str] = field(default_factory=lambda: {"int4": "q4_x", "mxfp4": "q4_x"})
    version: str = "fake 1.2"
    reason: str | None = None
    made: Any = field(default_factory=Done)

    def absent(self) -> str | None:
        return self.reason

    def prepare(self, work: Any, threads: int) -> Any:
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


def versus(peers: list[Any], limits: Limits = QUICK) -> Versus:
    backend = NumpyBackend("reference")
    meter = find_roof(backend, rounds=1, size=1 << 16)
    return Versus(backend, meter, Settings(limits=limits), peers, rest_s=0.0)


def test_a_peer_gets_a_case_of_its_own_and_a_ratio_to_ours() -> None:
    done = Done()
    cases, skipped = versus([Fake(made=done)]).run(work_of("product"))
    mine, theirs = cases
    assert not skipped
    assert (mine.peer, mine.time_ratio, mine.backend) == (None, None, "reference")
    assert (theirs.backend, theirs.peer, theirs.stored, theirs.format) == ("fake", "fake 1.2", "q4_x", "int4")
    assert (theirs.bytes.total, theirs.parameters, theirs.kernels_per_step) == (4000, 8000, 3)
    assert theirs.max_relative_error == 2e-3  # the larger of the two checks
    assert len(theirs.samples_ms) == len(mine.samples_ms) == len(theirs.roof_samples_gb_per_s)
    assert theirs.gb_per_s == pytest.approx(4000 / (theirs.median_ms / 1e3) / 1e9)
    expected = np.median(
        [(a / (mine.parameters or 0)) / (b / 8000) for a, b in zip(mine.samples_ms, theirs.samples_ms, strict=True)]
    )
    assert theirs.time_ratio == pytest.approx(expected)
    low, high = theirs.time_ratio_interval or (0, 0)
    assert low <= expected <= high
    assert done.closed == 1


def test_ratios_are_for_the_same_number_of_weights() -> None:
    # Ours: 100 weights in 2 s; theirs: 50 in 4 s: 1/4 of the time for the same weights.
    assert time_ratios([2.0, 4.0], [100, 200], [4.0, 4.0], 50) == pytest.approx([0.25, 0.25])


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (NumericsError("an output is off by 0.5"), "off by 0.5"),
        (Done(errors=[NumericsError("an output is off by 0.6")]), "off by 0.6"),
        (Done(errors=[1e-3, NumericsError("later off by 0.7")]), "later off by 0.7"),
        (ValueError("no such launch\nsecond line"), "fake: ValueError: no such launch."),
    ],
)
def test_a_peer_that_fails_is_skipped_with_its_reason_and_has_no_time(made: Any, words: str) -> None:
    cases, skipped = versus([Fake(made=made), Fake(name="other")]).run(work_of("product"))
    assert [c.backend for c in cases] == ["reference", "other"]
    assert [(s.peer, s.point) for s in skipped] == [("fake", "small product int4 batch 1")]
    assert words in skipped[0].reason
    assert "second line" not in skipped[0].reason


def test_peers_without_a_kernel_for_the_work_are_not_asked() -> None:
    raises = Fake(made=RuntimeError("asked"))
    for peer in (replace(raises, kernels=frozenset({"decode"})), replace(raises, formats={"bf16": "bf16"})):
        assert not serves(peer, work_of("product"))
        assert versus([peer]).run(work_of("product"))[1] == []


def test_the_record_takes_peers_and_pools_leave_them_out(fakes: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    cases, _ = versus([Fake()]).run(work_of("product"))
    record = fakes.make_record(cases)
    again = from_json(to_json(record), "record")
    assert again.cases == cases
    jsonschema.validate(json.loads(to_json(record)), json.loads((ROOT / "results" / "schema.json").read_text()))
    assert [case.backend for _, case in pool([record], ["record"])] == ["reference"]
    assert [case.backend for case in record.own_cases] == ["reference"]
    mine, theirs = markdown(record).strip().splitlines()[-2:]
    assert mine.startswith("| small: product |")
    assert theirs.startswith("| small: product, fake |")


# -- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`moegauge bench peers` on a small model with fake peers; gives (exit code, stdout, stderr)."""
    shape = tmp_path / "small.json"
    shape.write_text(json.dumps(small().to_json()))
    backend = NumpyBackend("reference")
    backend.last_level_cache = 1 << 12
    monkeypatch.setattr("moegauge.kernels.devices.get_backend", lambda *_, **__: backend)
    monkeypatch.setattr(machine, "project", lambda: {"version": "0.1.0", "commit": "c" * 40, "dirty": False})
    monkeypatch.setattr(machine, "load_average", lambda: 0.0)
    monkeypatch.setattr(
        "moegauge.bench.clock.roof.PASS_BYTES", {"reference": 1 << 16}
    )  # milliseconds a sample otherwise

    def run(peers: list[Any], *arguments: str) -> Any:
        monkeypatch.setattr("moegauge.bench.peers.registry.PEERS", tuple(peers))
        words = ["bench", "peers", "--model", str(shape), "--device", "cpu", "--time-limit", "0.05", *arguments]
        monkeypatch.setattr("sys.argv", ["moegauge", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


def test_the_command_prints_every_program_and_names_the_absent(command: Any, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    absent = Fake(name="away", reason="away is not installed")
    code, shown, err = command(
        [Fake(), absent, Fake(name="gpu", device="cuda")], "--kind", "product", "--out", str(out)
    )
    assert code == 0, err
    assert "warning: away skipped: away is not installed" in err
    assert "fake" in shown
    assert "gpu" not in shown + err
    document = json.loads(out.read_text())
    assert document["schema"] == SCHEMA
    assert document["complete"] is True
    assert document["skipped"] == [{"peer": "away", "reason": "away is not installed", "point": ""}]
    assert [case["backend"] for case in document["cases"]] == ["reference", "fake"]


def test_a_finished_run_resumes_to_nothing(command: Any, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    words = ("--kind", "kernel", "--out", str(out))
    absent = Fake(name="away", reason="away is not installed")
    assert command([Fake(made=Done(errors=[1e-3] * 9)), absent], *words)[0] == 0
    before = json.loads(out.read_text())
    assert [c["kernel"] for c in before["cases"]] == ["product", "product", "experts", "experts"]
    # A peer that would now fail is not asked again.
    assert command([Fake(made=RuntimeError("asked again")), absent], *words)[0] == 0
    assert json.loads(out.read_text()) == before


def test_json_is_one_document(command: Any) -> None:
    _, out, _ = command([Fake()], "--kind", "decode", "--layers", "1", "--json")
    document = json.loads(out)
    assert [case["model"] for case in document["cases"]] == ["small, 1 layers"] * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--peer", "fak"), "unknown peer 'fak'"), (("--kind", "product", "--layers", "1"), "--layers")],
)
def test_bad_usage_is_named(command: Any, arguments: tuple[str, ...], words: str) -> None:
    code, out, err = command([Fake()], *arguments)
    assert (code, out) == (2, "")
    assert words in err


# -- the table ----------------------------------------------------------------------------------------------------


def test_every_peer_names_formats_and_devices_that_exist() -> None:
    names = [(peer.name, peer.device) for peer in PEERS]
    assert len(set(names)) == len(names)
    for peer in PEERS:
        assert peer.device in ("cpu", "cuda")
        assert peer.kernels <= {"product", "experts", "decode"}
        assert set(peer.formats) <= set(FORMATS)
        assert peer.version


def test_absence_is_a_reason_and_never_an_error() -> None:
    torch = pytest.importorskip("torch")
    for peer in PEERS:
        reason = peer.absent()
        assert reason is None or (reason and "\n" not in reason)
        if peer.device == "cuda" and not torch.cuda.is_available():
            assert reason, peer.name


def test_a_package_that_breaks_on_import_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_peer.py").write_text("raise OSError('libcuda.so is missing\\nmore')")
    (tmp_path / "hollow_peer.py").write_text("import no_such_dependency_of_it")
    monkeypatch.syspath_prepend(tmp_path)
    assert not_installed("broken_peer", "broken") == "broken does not import: libcuda.so is missing"
    assert "no_such_dependency_of_it" in (not_installed("hollow_peer", "hollow") or "")
    assert not_installed("no_such_peer_at_all", "peer") == "peer is not installed"
    assert not_installed("json", "json") is None


# -- torch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["product", "experts"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("peer", torch_cpu.PEERS, ids=lambda p: p.name)
def test_torch_answers_as_its_weights_say(peer: Peer, kernel: str, batch: int) -> None:
    if reason := peer.absent():
        pytest.skip(reason)
    work = work_of(kernel, next(iter(peer.formats)), batch)
    prepared = peer.prepare(work, 1)
    bits = {"bf16": 16, "int8": 8, "int4": 4}[next(iter(peer.formats.values()))]
    assert work.parameters * bits / 8 <= prepared.bytes <= work.parameters * (bits + 1.1) / 8
    prepared.run()
    assert 0 < prepared.check() < 0.02
    assert 0 < prepared.check() < 0.02
    prepared.close()


def test_torch_runs_beside_this_kit() -> None:
    pytest.importorskip("torch")
    cases, skipped = versus([p for p in torch_cpu.PEERS if not p.absent()]).run(work_of("experts", "int8", 2))
    assert not skipped
    assert [c.backend for c in cases] == ["reference", "torch-int8pack"]


def test_wrong_products_are_refused() -> None:
    """Right scales on the wrong rows, a transposed group, NaN: none passes."""
    torch = pytest.importorskip("torch")
    work = work_of("product", "bf16")
    weight = torch.randn(work.rows, work.columns) * 0.02
    right = weight.double().numpy()
    for product in (
        lambda x: x @ weight.roll(1, 0).t(),
        lambda x: x @ weight.t() * 1.05,
        lambda x: x @ weight.t() + np.nan,
    ):
        wrong = PackedMatrix((weight,), product, lambda: right)
        with pytest.raises(NumericsError, match="off by"):
            LinearProducts(work, "cpu", [wrong], torch.randn(1, work.columns)).check()
    fine = PackedMatrix((weight,), lambda x: x @ weight.t(), lambda: right)
    assert LinearProducts(work, "cpu", [fine], torch.randn(1, work.columns)).check() < 1e-5


def test_the_judge_measures_against_the_largest_output() -> None:
    assert judge(np.array([1.01, -2.0]), np.array([1.0, -2.0]), 0.01, "x") == pytest.approx(0.005)
    with pytest.raises(NumericsError):
        judge(np.array([1.05, -2.0]), np.array([1.0, -2.0]), 0.01, "x")


# -- fused experts, on the CPU ------------------------------------------------------------------------------------


def _plain(pool: Any, name: str, *, swapped: bool = False) -> Any:
    """A fused library's call written plainly, decoding the pool its own way."""
    torch = pytest.importorskip("torch")

    def decoded(weights: Any, scales: Any) -> Any:
        if name == "bf16":
            return weights.double()
        if name == "fp8":
            spread = scales.repeat_interleave(128, 1).repeat_interleave(128, 2)
            return weights.double() * spread[:, : weights.shape[1], : weights.shape[2]]
        low, high = weights.int() & 15, weights.int() >> 4
        codes = torch.stack((low, high), -1).flatten(2).double() - 8
        return codes * scales.double().repeat_interleave(32, 2)

    first, second = decoded(pool.gate_up, pool.gate_up_scale), decoded(pool.down, pool.down_scale)

    def call(x: Any, ids: Any, shares: Any) -> Any:
        out = torch.zeros(x.shape, dtype=torch.float64)
        for token, row in enumerate(ids.tolist()):
            for expert, share in zip(row, shares[token].tolist(), strict=True):
                gate, up = (first[expert] @ x[token].double()).chunk(2)
                if swapped:
                    gate, up = up, gate
                out[token] += share * (second[expert] @ (torch.nn.functional.silu(gate) * up))
        return out

    return call


@pytest.mark.parametrize("batch", [1, 3])
def test_grouped_products_give_the_experts_answer(batch: int) -> None:
    torch = pytest.importorskip("torch")
    if not hasattr(torch.nn.functional, "grouped_mm"):
        pytest.skip("this torch has no grouped_mm")
    from moegauge.bench.peers import torch_grouped

    work = work_of("experts", "fp8", batch)
    pool_ = fused.make_pool(work, device="cpu", name="bf16")

    def prepared(call: Any) -> Any:
        return fused.FusedExperts(work, call, pool_.expert_bytes, pool_.values, 0.02, device="cpu")

    right = prepared(torch_grouped.grouped(pool_, work.top_k))
    right.run()
    assert right.check() < 0.02
    assert right.check() < 0.02
    other = fused.make_pool(work, device="cpu", name="bf16")  # of other weights
    with pytest.raises(NumericsError):
        prepared(torch_grouped.grouped(other, work.top_k)).check()


@pytest.mark.parametrize("up_first", [False, True])
@pytest.mark.parametrize("name", ["bf16", "fp8", "int4"])
@pytest.mark.parametrize("batch", [1, 3])
def test_pools_stand_for_what_their_check_says(name: str, batch: int, up_first: bool) -> None:
    pytest.importorskip("torch")
    work = work_of("experts", name, batch)
    pool_ = fused.make_pool(work, up_first=up_first, device="cpu")
    assert pool_.gate_up.shape[0] == max(work.pool, work.layers * work.experts)
    one = FORMATS[name].bytes(2 * work.rows, work.columns) + FORMATS[name].bytes(work.columns, work.rows)
    assert pool_.expert_bytes == one

    def prepared(call: Any) -> Any:
        return fused.FusedExperts(work, call, pool_.expert_bytes, pool_.values, 0.02, device="cpu")

    right = prepared(_plain(pool_, name, swapped=up_first))
    right.run()
    assert right.bytes == one * work.layers * work.experts
    assert right.check() < 1e-5
    assert right.check() < 1e-5  # the last layer's experts
    with pytest.raises(NumericsError):
        prepared(_plain(pool_, name, swapped=not up_first)).check()


def test_inputs_of_fused_experts_survive_float8() -> None:
    torch = pytest.importorskip("torch")
    work = work_of("experts", "bf16", 3)
    x = fused.FusedExperts(work, lambda *_: None, 1, lambda _: (), 0.02, device="cpu").x.float()  # type: ignore[arg-type, return-value]
    blocks = x.reshape(3, -1, 128)
    scale = blocks.abs().amax(-1, keepdim=True) / 448
    assert torch.equal((blocks / scale).to(torch.float8_e4m3fn).float() * scale, blocks)


def test_a_product_of_its_own_input_type_gets_it_prepared() -> None:
    torch = pytest.importorskip("torch")
    work = work_of("product", "bf16")
    weight = torch.randn(work.rows, work.columns)
    half = PackedMatrix(
        (weight,), lambda x: x[0] @ weight.t() * x[1], lambda: weight.double().numpy(), lambda x: (x / 2, 2.0)
    )
    assert LinearProducts(work, "cpu", [half], torch.randn(1, work.columns)).check() < 1e-5


# -- llama.cpp ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(gguf_model.ARCHITECTURES))
@pytest.mark.parametrize("name", ["native", "int4", "int8", "mxfp4"])
def test_the_gguf_is_read_back_as_it_was_meant(family: str, name: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    shape = small(family).cast(name)
    written = gguf_model.write(tmp_path / "model.gguf", shape)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert [t.name for t in reader.tensors] == [t.name for t in written]
    for found, meant in zip(reader.tensors, written, strict=True):
        assert (found.tensor_type.name, found.n_bytes) == (meant.type, meant.bytes)
        assert tuple(found.shape) == tuple(reversed(meant.shape))
        values = gguf.quants.dequantize(found.data, found.tensor_type)
        assert np.isfinite(values).all()
        if meant.type != "F32":
            assert 0.005 < values.std() < 0.08, meant.name
    keys = {key: field.contents() for key, field in reader.fields.items()}
    architecture = gguf_model.ARCHITECTURES[family].name
    assert keys["general.architecture"] == architecture
    assert keys["tokenizer.ggml.model"] == "no_vocab"
    assert keys[f"{architecture}.expert_used_count"] == 2
    # Names are those gguf's own table gives the architecture.
    arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture)
    known = {gguf.TENSOR_NAMES[t] for t in gguf.MODEL_TENSORS[arch]}
    for tensor in written:
        stem = tensor.name.rpartition(".")[0]
        assert stem.replace("blk.0.", "blk.{bid}.").replace("blk.1.", "blk.{bid}.") in known, tensor.name


def test_a_token_reads_its_experts_and_one_row_of_the_table() -> None:
    by_name = {t.name: t for t in gguf_model.tensors(small())}
    assert by_name["token_embd.weight"].read == 128 * 2
    experts = by_name["blk.0.ffn_up_exps.weight"]
    assert experts.bytes == 8 * 64 * 128 // 32 * 17
    assert experts.read == experts.bytes * 2 // 8
    assert by_name["output.weight"].read == 96 * 128 * 2


def test_unknown_architectures_and_odd_rows_are_refused() -> None:
    with pytest.raises(DeviceError, match="deepseek_v3"):
        gguf_model.tensors(small("deepseek_v3"))
    with pytest.raises(DeviceError, match="multiple of 32"):
        gguf_model.tensors(small(inner=48))


@pytest.mark.parametrize("family", list(gguf_model.ARCHITECTURES))
def test_llama_cpp_decodes_a_small_model_beside_this_kit(family: str, tmp_path: Path, monkeypatch: Any) -> None:
    (peer,) = llama_cpp.PEERS
    if reason := peer.absent():
        pytest.skip(reason)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    work = decode_work(Point("small", "native"), small(family))
    cases, skipped = versus([peer]).run(work)
    assert not skipped
    assert [c.backend for c in cases] == ["reference", "llama.cpp"]
    assert cases[1].stored == "mxfp4"
    assert cases[1].bytes.total == sum(t.read for t in gguf_model.tensors(work.shape))
    assert list(tmp_path.iterdir()) == []  # the file is gone


def test_llama_cpp_refuses_batches_and_files_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    (peer,) = llama_cpp.PEERS
    with pytest.raises(DeviceError, match="batch 1"):
        peer.prepare(decode_work(Point("small", batch=2), small()), 1)
    pytest.importorskip("gguf")
    monkeypatch.setattr("moegauge.bench.peers.llama_cpp.available_bytes", lambda: 1 << 20)
    with pytest.raises(DeviceError, match="of memory free"):
        peer.prepare(decode_work(Point("small"), small()), 1)
