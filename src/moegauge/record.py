"""The measurement record (schema `moegauge.record/1`): what was run, where, on what, and every sample.

History of the schema (a reader reads every version it knows; a newer one is refused by name):
  1  first version. Since then only fields were added; `left_out` was a list of sentences up to 0.1.0 and is one of
     `LeftOut` now: the sentences of older records are read as such.

Only `schema`, `created`, `machine`, `cases` and the fields the contract of `moegauge bench` names are needed to read a
record; everything else has a default, so that a record written by other tools or by an older release still loads.
`results/schema.json` is `json_schema()` written out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from moegauge.errors import RecordError
from moegauge.limits import NAME_LIMIT_CHARACTERS, RECORD_CASES, RECORD_LIMIT_BYTES, RECORD_SAMPLES
from moegauge.regular import NotRegularError, read_file
from moegauge.text import is_text, shown

T = TypeVar("T")
SCHEMA = "moegauge.record/1"
_ADVICE = "Give a file written by `moegauge bench --out`."

_FEWER = "Give fewer records, or split them by model."

# What a number of a record can be: far beyond every measurement, and no arithmetic on it overflows.
Name = Annotated[str, Meta(max_length=NAME_LIMIT_CHARACTERS)]
Count = Annotated[int, Meta(ge=0, le=10**18)]
Ordinal = Annotated[int, Meta(ge=1, le=10**9)]
Positive = Annotated[float, Meta(gt=1e-12, le=1e18)]
Size = Annotated[float, Meta(ge=0.0, le=1e30)]
Signed = Annotated[float, Meta(ge=-1e18, le=1e18)]
Samples = Annotated[list[Positive], Meta(max_length=RECORD_SAMPLES)]


class Project(msgspec.Struct, kw_only=True, frozen=True):
    """Which moegauge: release, commit, and whether tracked files differed from it. None where unknown."""

    version: Name
    commit: Name | None = None
    dirty: bool | None = None


class Pattern(msgspec.Struct, kw_only=True, frozen=True):
    """One access pattern of the roof's sweep.

    Attributes:
        name: as in `Roof.patterns`.
        width: bytes one load of one lane brings.
        unroll: loads of each lane in flight.
        programs: programs per multiprocessor.
        warps: warps per program.
        gb_per_s: median GB/s (10^9).
    """

    name: Name
    width: Count
    unroll: Count
    programs: Count
    warps: Count
    gb_per_s: Size


class Floor(msgspec.Struct, kw_only=True, frozen=True):
    """What one empty kernel boundary costs: the time of a long chain less that of a short one, per operation.

    Attributes:
        name: how the boundary is crossed: `eager`, `graph`, `pdl`; on a CPU `operation` (one barrier of the thread
            pool) and `product` (the barriers of a product).
        us_per_kernel: median, microseconds.
        interval_us: 95 % bootstrap interval of the median.
        samples_us: every difference; noise may make one negative.
        lengths: operations of the short chain and of the long one.
    """

    name: Name
    us_per_kernel: Signed
    interval_us: tuple[Signed, Signed]
    samples_us: Annotated[list[Signed], Meta(max_length=RECORD_SAMPLES)]
    lengths: tuple[Count, Count]


class KernelProfile(msgspec.Struct, kw_only=True, frozen=True):
    """One distinct launch of a kernel case: what the compiler and the grid say without a profiler.

    Attributes:
        kernel: the function's name.
        launches: times a step launches it alike.
        grid, warps: programs of a launch by dimension, warps per program.
        registers, shared: per thread; bytes per program.
        resident: programs that fit the whole device at once, by warps, registers and shared memory.
        waves: programs / resident.
        tail: idle room at the end if work flows alike to all programs: empty places of the last wave over those of all
            waves; of a launch that shares its chunks out between resident programs, 1 - mean / longest share.
        instructions_per_weight: lane instructions per weight in the weight loop, from the machine code run; None for a
            kernel without one.
    """

    kernel: Name
    launches: Count
    grid: tuple[Count, ...]
    warps: Count
    registers: Count
    shared: Count
    resident: Count
    waves: Size
    tail: Signed
    instructions_per_weight: Size | None = None


class Profile(msgspec.Struct, kw_only=True, frozen=True):
    """What is left of a kernel case beside its bytes.

    Attributes:
        kernels: its distinct launches.
        programs: programs of one step.
        bytes_per_program: bytes of one step / programs.
        issue_share: instructions of the weight loops / those the device can issue in the measured time at the measured
            clock; None where the clock or the loop is unknown.
        sm_clock_mhz: that clock.
    """

    kernels: list[KernelProfile]
    programs: Count
    bytes_per_program: Size
    issue_share: Size | None = None
    sm_clock_mhz: Size | None = None


class Roof(msgspec.Struct, kw_only=True, frozen=True):
    """The read-only roof of this run.

    Attributes:
        gb_per_s: median of the samples of the best access pattern, GB/s (10^9).
        datasheet_gb_per_s: the vendor's figure, None where unknown.
        samples: GB/s of every sample of the best pattern.
        best_gb_per_s: the fastest of them.
        interval_gb_per_s: 95 % bootstrap interval of the median.
        pattern: the best access pattern's name.
        shape: the same in numbers, as `moegauge.kernels.backend.Stream.shape` has it.
        patterns: median GB/s of every pattern tried.
        bytes: bytes one sample reads.
        sweep: access patterns by width, unrolling, programs and warps, where a suite swept them.
    """

    gb_per_s: Positive
    datasheet_gb_per_s: Positive | None = None
    samples: Samples = []
    best_gb_per_s: Positive | None = None
    interval_gb_per_s: tuple[Size, Size] | None = None
    pattern: Name = ""
    shape: dict[Name, Count] = {}
    patterns: dict[Name, Size] = {}
    bytes: Count | None = None
    sweep: list[Pattern] = []


class InCache(msgspec.Struct, kw_only=True, frozen=True):
    """How fast cores multiply with weights of a format that lie in their own caches: what memory leaves of a product.

    Attributes:
        format: a row of `moegauge.formats.FORMATS`.
        isa: instruction set of the kernels.
        threads: cores at work at once.
        gb_per_s_per_core: GB/s (10^9) of weights and scales by one of them, one token; the median.
        interval_gb_per_s_per_core: its 95 % bootstrap interval.
        tile: tokens for which a weight is decoded once.
        tile_gb_per_s_per_core: as `gb_per_s_per_core`, of so many tokens at once.
    """

    format: str
    isa: str
    gb_per_s_per_core: float
    threads: int = 1
    interval_gb_per_s_per_core: tuple[float, float] | None = None
    tile: int = 1
    tile_gb_per_s_per_core: float | None = None


class AttentionInCache(msgspec.Struct, kw_only=True, frozen=True):
    """What attention costs over a KV cache that lies in the last-level cache.

    Attributes:
        kind, heads, kv_heads, head_dim, value_dim: as `moegauge.shape.Attention`.
        kv_format: of the cache.
        isa, threads: as `InCache`.
        ps_per_mac: picoseconds of one core per multiply-accumulate, softmax included; the median.
    """

    kind: str
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    kv_format: str
    isa: str
    threads: int
    ps_per_mac: float


class Caution(StrEnum):
    """What a reader should know before trusting a point; `Case.warnings` says it in words."""

    NOT_SETTLED = "not_settled"
    THROTTLED = "throttled"
    DISTURBED = "disturbed"
    CACHED = "cached"


class CaseBytes(msgspec.Struct, kw_only=True, frozen=True):
    """Bytes one step reads, counted from what is passed to the kernels; `weights` includes norms and biases."""

    weights: Count
    scales: Count = 0
    kv: Count = 0
    total: Count


class Case(msgspec.Struct, kw_only=True, frozen=True):
    """One measured point.

    Attributes:
        kind: `decode` (a whole step) or `kernel` (one kernel boundary, named by `kernel`).
        format: weight format of the run, `native` for the released one.
        formats: bytes of one step's matrices by format, its cache under `kv:` and its format, the most first.
        layers: layers of the model (kernel cases: how many times a step runs it).
        distinct_experts: distinct routed experts read per MoE layer, averaged over layers and samples.
        kernels_per_step: kernel boundaries of one step.
        samples_ms: milliseconds of one whole step, one entry per sample that counts, in order.
        roof_samples_gb_per_s: the roof measured beside each of `samples_ms`, same order.
        roof_fraction_samples: bytes / (time x roof beside it), same order; where steps are cut, of the step that was
            run in segments with the roof between them, each summed over its segments.
        roof_fraction: their median.
        throttled_ms: samples left out because the device was slowing itself down.
        disturbed_ms: samples left out because a worker thread had lost its core while they ran.
        round: the round of each of `samples_ms`: samples of one round, of all points of one block of a sweep, were
            taken in the same seconds. Rounds that do not count are missing.
        cautions: what `warnings` say, one for each, same order; empty in records that do not state it.
        median_ms, mad_ms, interval_ms: of `samples_ms`; the interval is a 95 % bootstrap interval of the median.
        steps_per_sample: steps one sample ran (its time is divided by this).
        settled: True when sampling stopped because the intervals were narrow, False at the time limit.
        max_relative_error: the larger of the numerical gate's errors before and after timing.
        formula_bytes: bytes per token as the published estimate counts them: active parameters as stored, the whole
            input embedding included, no KV, batch 1.
        macs, attention_macs: multiply-accumulates of one step, and those of them that are attention over the cache.
        format_macs: those of them with weights, by the weight's format.
        launch_mode: how the step was launched (`threads`, `eager`, `graph`, `pdl`); `rung` in the file.
        telemetry: clocks, power and temperature seen while sampling, where the device tells.
        peer: name and version of the other program that was timed, as `backend` names it; None is this kit itself.
        stored: what the peer stores `format` as, e.g. `q4_0`; empty for this kit.
        parameters: weights one step multiplies by: formats of unlike bytes compare by parameters per second.
        time_ratio: this kit's time over the peer's for the same weights, median of rounds in which both were timed;
            below 1 this kit is faster. `time_ratio_interval` is its 95 % bootstrap interval.
        profile: kernel cases on a GPU: grid, waves, registers and issue slots.
        predicted_ms, predicted_pessimistic_ms: `median_ms` as the queueing model had it before the run (`bench
            --predicted`), by nominal and by pessimistic latencies; None where it was not given.
    """

    kind: Name
    backend: Name
    model: Name
    format: Name
    batch: Ordinal
    context: Count
    layers: Count
    bytes: CaseBytes
    distinct_experts: Size
    kernels_per_step: Count
    samples_ms: Samples
    median_ms: Positive
    mad_ms: Size
    tokens_per_s: Positive
    gb_per_s: Size
    roof_fraction: Positive
    roof_fraction_samples: Samples
    max_relative_error: Size
    warnings: list[str] = []
    cautions: list[Caution] = []
    kernel: Name | None = None
    kv_format: Name = "bf16"
    routing: Name = "uniform"
    launch_mode: Name = msgspec.field(default="", name="rung")
    threads: Count | None = None
    seed: int = 0
    formula_bytes: Count | None = None
    macs: Count | None = None
    attention_macs: Count | None = None
    format_macs: dict[Name, Size] = {}
    formats: dict[Name, Count] = {}
    roof_samples_gb_per_s: Samples = []
    throttled_ms: Samples = []
    disturbed_ms: Samples = []
    round: list[Count] = []
    interval_ms: tuple[Size, Size] | None = None
    roof_fraction_interval: tuple[Size, Size] | None = None
    steps_per_sample: Ordinal = 1
    settled: bool | None = None
    arena_bytes: Count | None = None
    telemetry: dict[Name, list[Signed | str]] | None = None
    peer: Name | None = None
    stored: Name = ""
    parameters: Count | None = None
    time_ratio: Positive | None = None
    time_ratio_interval: tuple[Size, Size] | None = None
    profile: Profile | None = None
    predicted_ms: Positive | None = None
    predicted_pessimistic_ms: Positive | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes this point the same point in another record."""
        return (
            self.kind,
            self.backend,
            self.model,
            self.kernel,
            self.format,
            self.batch,
            self.context,
            self.kv_format,
            self.routing,
            self.launch_mode,
            self.threads,
        )

    @property
    def label(self) -> str:
        """`gpt-oss-20b mxfp4 batch 8 context 4096`, for messages and tables; defaults are left out."""
        parts = [self.model, *([self.kernel] if self.kernel else []), self.format]
        parts += [f"batch {self.batch}"] if self.batch != 1 else []
        parts += [f"context {self.context}"] if self.context else []
        return " ".join(parts)


class KernelVerdict(msgspec.Struct, kw_only=True, frozen=True):
    """Whether one kind of kernel gives right answers on this device, as judged before anything was timed.

    Attributes:
        kernel: the kind, or `whole step`: a program run as it is timed.
        model: the small step it was judged in, or the model of a point that failed.
        format, launch_mode: how.
        passed: every answer was within its bound, and whole runs gave what single operations gave.
        max_relative_error: of its answers; None where one was outside its bound or none came.
        detail: what was wrong.
    """

    kernel: Name
    model: Name
    format: Name
    launch_mode: Name
    passed: bool
    max_relative_error: Size | None = None
    detail: str = ""

    def __str__(self) -> str:
        """`experts up of smoke gqa, mxfp4, graph: passed, max error 1e-3`."""
        how = f"passed, max error {self.max_relative_error:.0e}" if self.passed else f"FAILED, {self.detail}"
        return f"{self.kernel} of {self.model}, {self.format}, {self.launch_mode}: {how}"


class SkippedPeer(msgspec.Struct, kw_only=True, frozen=True):
    """A peer that was not timed, and why: everywhere, or at one `point`."""

    peer: Name
    reason: str
    point: str = ""


class Reason(StrEnum):
    """Why something a suite plans is not in its record."""

    NO_TIME = "no_time"  # the budget was spent
    DEVICE_LOST = "device_lost"  # the device stopped answering earlier in the same process
    FAILED = "failed"  # an error, in `detail`
    BEGAN = "began"  # in work when the record was last written: the process was killed at it, or still is at it
    BEGAN_TWICE = "began_twice"  # as BEGAN, at its second try: it is not tried a third time
    NOT_ALONE = "not_alone"  # a kernel that reads too little to come from memory alone, in `detail`
    UNAVAILABLE = "unavailable"  # what this device or installation does not have, in `detail`


# What a reason says, before its detail; also how records up to 0.1.0 spelled it.
_WORDS = {
    Reason.NO_TIME: "no time left in the budget",
    Reason.DEVICE_LOST: "the device stopped answering",
    Reason.FAILED: "failed",
    Reason.BEGAN: "began and did not end",
    Reason.BEGAN_TWICE: "began twice and did not end",
    Reason.NOT_ALONE: "not timed alone",
    Reason.UNAVAILABLE: "",
}
# Another run of the same command may do better, and one of no time or a lost device has not even been tried.
RETRIED = frozenset({Reason.NO_TIME, Reason.DEVICE_LOST, Reason.FAILED, Reason.BEGAN})
UNTRIED = frozenset({Reason.NO_TIME, Reason.DEVICE_LOST})


class PointName(msgspec.Struct, kw_only=True, frozen=True):
    """A point of a plan by name; `model` as it was asked for."""

    model: Name
    format: Name
    batch: Ordinal = 1
    context: Count = 0
    kernel: Name | None = None

    def __str__(self) -> str:
        """`gpt-oss-20b mxfp4 batch 8 context 4096, experts up`."""
        parts = [self.model, self.format]
        parts += [f"batch {self.batch}"] if self.batch != 1 else []
        parts += [f"context {self.context}"] if self.context else []
        return " ".join(parts) + (f", {self.kernel}" if self.kernel else "")


class LeftOut(msgspec.Struct, kw_only=True, frozen=True):
    """Something a suite plans that is not in its record, and why; `str()` is the sentence for people.

    Attributes:
        stage: the suite's stage, e.g. `whole steps`.
        reason: why.
        point: which point; None where it is none of the plan's.
        what: what it is where there is no point: a roof pattern, a kind of boundary, `all` of the stage.
        launch_mode: how it was to be launched, in a stage that compares launch modes.
        detail: the error or the lack in words.
    """

    stage: Name
    reason: Reason
    point: PointName | None = None
    what: str = ""
    launch_mode: Name = ""
    detail: str = ""

    def __str__(self) -> str:
        """`whole steps: gpt-oss-20b native: failed: the error`."""
        stage = f"{self.stage} ({self.launch_mode})" if self.launch_mode else self.stage
        words = _WORDS[self.reason]
        if self.reason is Reason.NOT_ALONE:
            why = f"{words} ({self.detail})"
        else:
            why = ": ".join(filter(None, (words, self.detail)))
        return ": ".join(filter(None, (stage, str(self.point) if self.point else self.what, why)))


_OLD_PLACE = re.compile(r"(\S+) (\S+?)(?: batch (\d+))?(?: context (\d+))?(?:, (.+))?")


def _old_left_out(text: str) -> LeftOut:
    """The sentence of a record of 0.1.0: `stage: point: why`, the stage `ladder` followed by its launch mode."""
    stage, _, rest = text.partition(": ")
    mode = ""
    if stage.startswith("ladder"):
        stage, mode = "launch modes", stage.removeprefix("ladder").strip()
    what, _, why = rest.partition(": ")
    reason = next((r for r, words in _WORDS.items() if words and why.startswith(words)), Reason.UNAVAILABLE)
    detail = why.removeprefix(_WORDS[reason]).removeprefix(": ")
    if reason is Reason.NOT_ALONE:
        detail = detail.removeprefix(" (").removesuffix(")")
    found = _OLD_PLACE.fullmatch(what) if stage not in ("roof sweep", "floors") else None
    point = None
    if found:
        model, name, batch, context, kernel = found.groups()
        point = PointName(model=model, format=name, batch=int(batch or 1), context=int(context or 0), kernel=kernel)
    return LeftOut(stage=stage, reason=reason, point=point, what="" if point else what, launch_mode=mode, detail=detail)


class RecordedProcessor(msgspec.Struct, kw_only=True, frozen=True):
    """What is read of `machine.cpu`."""

    model: Name | None = None
    microarchitecture: Name | None = None
    cores: Count | None = None
    features: list[Name] = []


class RecordedGpu(msgspec.Struct, kw_only=True, frozen=True):
    """What is read of `machine.gpu`; every other field of it is shown as it is."""

    name: Name | None = None
    driver: Name | None = None


class RecordedMachine(msgspec.Struct, kw_only=True, frozen=True):
    """What is read of `Record.machine`, as `moegauge.machine.describe` writes it; it may hold more."""

    id: Name | None = None
    device: Name | None = None
    os: Name | None = None
    cpu: RecordedProcessor | Name | None = None
    gpu: RecordedGpu | Name | None = None
    memory_bytes: Count | None = None
    last_level_cache_bytes: Count | None = None
    datasheet_gb_per_s: Positive | None = None


class Record(msgspec.Struct, kw_only=True):
    """One run: provenance, roof, points, peers left out.

    `complete` is False until the last planned point is in; `load_average` is the system's when the run began (of the
    last minute). `floors` are the costs of an empty kernel boundary; `verdicts` say which kernels were right;
    `left_out` is what a suite plans and this run has not measured, with the reasons. `in_cache` and
    `attention_in_cache` are what products and attention cost where memory costs nothing; empty up to 0.1.0.
    """

    schema: Name
    created: Name
    machine: dict[Name, Any]
    cases: list[Case]
    project: Project = Project(version="")
    software: dict[Name, str | float | None] = {}
    argv: list[str] = []
    roof: Roof | None = None
    suite: Name | None = None
    load_average: Size | None = None
    planned: Count | None = None
    complete: bool = True
    floors: list[Floor] = []
    verdicts: list[KernelVerdict] = []
    left_out: list[LeftOut] = []
    skipped: list[SkippedPeer] = []
    in_cache: list[InCache] = []
    attention_in_cache: list[AttentionInCache] = []

    @property
    def own_cases(self) -> list[Case]:
        """The points this kit's own kernels ran."""
        return [case for case in self.cases if case.peer is None]

    @property
    def machine_id(self) -> str:
        """The machine's slug, e.g. `amd-epyc-zen3-2c`."""
        return str(self.machine.get("id") or "unknown")

    @property
    def machine_key(self) -> tuple[Any, ...]:
        """What must be equal for two records to be pooled: id, device, processor, cores and GPU."""
        cpu, gpu = (self.machine.get(name) for name in ("cpu", "gpu"))
        cpu = cpu if isinstance(cpu, dict) else {"model": cpu}
        gpu = gpu if isinstance(gpu, dict) else {"name": gpu}
        if self.machine.get("device") == "cpu":
            gpu = {}
        return self.machine_id, self.machine.get("device"), cpu.get("model"), cpu.get("cores"), gpu.get("name")

    def trusts(self, launch_mode: str) -> bool:
        """Whether a launch mode was judged on this device and never found wrong."""
        seen = [one.passed for one in self.verdicts if one.launch_mode == launch_mode]
        return bool(seen) and all(seen)

    def roof_gb_per_s(self, case: Case) -> float | None:
        """Median roof beside a case, else the record's roof."""
        beside = case.roof_samples_gb_per_s
        if beside:
            return sorted(beside)[len(beside) // 2]
        return self.roof.gb_per_s if self.roof else None


def now() -> str:
    """UTC, to the second, as records write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def public_argv(argv: list[str]) -> list[str]:
    """Arguments as a record keeps them: no folder names outside the current one, so no home and no user."""
    return [_public(word) for word in argv]


def _public(word: str) -> str:
    """One argument; the path in `--out=PATH` and `trace:PATH` is looked at too."""
    head, equals, tail = word.rpartition("=") if word.startswith("--") else word.rpartition(":")
    path = Path(tail)
    if path.is_absolute() or tail.startswith("~") or ".." in path.parts:
        tail = path.name
    return f"{head}{equals}{tail}"


def to_json(record: Record) -> str:
    """The file's text: indented, one trailing newline.

    Raises:
        RecordError: a number is NaN or infinite; the message names the field.
    """
    document = msgspec.to_builtins(record)
    if problem := _first_unfit(document, "record"):
        raise RecordError(f"{problem}, so no record is written.", advice="Report this as a bug.")
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _first_unfit(value: Any, path: str) -> str | None:
    """Where a document holds what no record can: NaN, infinity, half a character."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path} is not a finite number"
    if isinstance(value, str):
        return None if is_text(value) else f"{path} holds half a surrogate pair"
    if isinstance(value, dict):
        if bad := next((key for key in value if not is_text(key)), None):
            return f"{path} has a field '{shown(bad)}', which holds half a surrogate pair"
        children: Iterable[tuple[str, Any]] = ((f"{path}.{key}", child) for key, child in value.items())
    elif isinstance(value, list | tuple):
        children = ((f"{path}[{i}]", child) for i, child in enumerate(value))
    else:
        return None
    return next((found for name, child in children if (found := _first_unfit(child, name))), None)


def from_json(text: str | bytes, where: str) -> Record:
    """Read and check a record.

    Args:
        text: the file's content.
        where: its name, for messages.

    Raises:
        RecordError: not JSON, another schema, a field missing or of the wrong type, samples that disagree in number,
            or a number that cannot be a measurement.
    """
    try:
        # json, not msgspec, first: it is the one that lets us refuse NaN and say what kind of file this is.
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{where}: not JSON ({error}).", advice="Give a file written by `moegauge bench --out`."
        ) from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        if isinstance(schema, str) and schema.startswith("moegauge.record/"):
            raise RecordError(
                f"{where}: schema '{schema}' is newer than this moegauge reads.", advice="Update moegauge."
            )
        kind = f"a '{schema}' document" if isinstance(schema, str) else "no record"
        raise RecordError(f"{where}: {kind}, not '{SCHEMA}'.", advice=_ADVICE)
    if problem := _first_unfit(document, "record"):
        raise RecordError(f"{where}: {problem}.", advice=_ADVICE)
    if isinstance(old := document.get("left_out"), list):
        document["left_out"] = [msgspec.to_builtins(_old_left_out(one)) if isinstance(one, str) else one for one in old]
    cases = document.get("cases")
    if isinstance(cases, list) and len(cases) > RECORD_CASES:
        raise RecordError(f"{where}: {len(cases):,} cases, more than {RECORD_CASES:,}.", advice=_FEWER)
    record = _typed(document, Record, "$", where)
    _typed(record.machine, RecordedMachine, "$.machine", where)
    for index, case in enumerate(record.cases):
        problem = _problem(case)
        if problem:
            raise RecordError(f"{where}: cases[{index}].{problem}.", advice="The file was edited; measure again.")
    return record


def _typed(value: Any, kind: type[T], place: str, where: str) -> T:
    """`value` as `kind`; `place` is where it lies in the document.

    Raises:
        RecordError: a field is missing, of another type or out of range; the message names it.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        problem = str(error).replace("`$", f"`{place}")
        problem = problem.replace("Expected `float` > 1e-12", "a number that is not above 0, or next to nothing")
        raise RecordError(f"{where}: {problem}.", advice="The file was edited or cut; measure again.") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no measurement")


def _problem(case: Case) -> str | None:
    if not case.samples_ms:
        return "samples_ms is empty"
    for name, beside in (
        ("roof_fraction_samples", case.roof_fraction_samples),
        ("roof_samples_gb_per_s", case.roof_samples_gb_per_s or case.samples_ms),
    ):
        if len(beside) != len(case.samples_ms):
            return f"{name} has {len(beside)} entries for {len(case.samples_ms)} samples"
    if case.kind == "decode" and not case.bytes.total:
        return "bytes.total is 0, and a whole step reads something"
    for name, values in (case.telemetry or {}).items():
        if any(isinstance(value, str) != (name == "reasons") for value in values):
            return f"telemetry.{shown(name)} holds {'what is no text' if name == 'reasons' else 'text among numbers'}"
    return None


def load(path: Path) -> Record:
    """Read a record file.

    Raises:
        RecordError: the file is missing, larger than 100 MB, or is not a record.
    """
    try:
        text = read_file(path, RECORD_LIMIT_BYTES)
    except NotRegularError:
        raise RecordError(f"{path}: not a regular file.", advice="Check the path.") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise RecordError(f"{path}: cannot be read ({reason}).", advice="Check the path.") from None
    return from_json(text, str(path))


def pool(records: list[Record], names: list[str]) -> list[tuple[Record, Case]]:
    """This kit's points of several records of one machine; of a point measured twice the later record's.

    Raises:
        RecordError: the records come from unlike machines, or hold no point.
    """
    first = records[0]
    for record, name in zip(records[1:], names[1:], strict=True):
        if record.machine_key != first.machine_key:
            raise RecordError(
                f"{name} was measured on '{record.machine_id}' {record.machine_key[2:]}, {names[0]} on "
                f"'{first.machine_id}' {first.machine_key[2:]}; unlike machines are never pooled.",
                advice="Compare them with --against, or give records of one machine.",
            )
    if (cases := sum(len(record.cases) for record in records)) > RECORD_CASES:
        raise RecordError(f"{', '.join(names[:3])}...: {cases:,} cases, more than {RECORD_CASES:,}.", advice=_FEWER)
    latest_last = sorted(records, key=lambda r: r.created)
    points = {case.key: (record, case) for record in latest_last for case in record.own_cases}
    if not points:
        raise RecordError(f"{', '.join(names)}: no measured point.", advice="Run `moegauge bench decode --out FILE`.")
    return list(points.values())


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a record, as results/schema.json holds it."""
    (record, machine), parts = msgspec.json.schema_components((Record, RecordedMachine), ref_template="#/$defs/{name}")
    parts["Record"]["properties"]["machine"] = machine
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "moegauge measurement record, version 1",
        **record,
        "$defs": parts,
    }
