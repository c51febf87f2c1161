"""Many targets into one file: order, resuming, shards, failures, Parquet, and what two counts differ in."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from moegauge.cli import group
from moegauge.counting import difference, many
from moegauge.counting.errors import HubUnreachableError, RepoNotFoundError
from moegauge.counting.sources import release_layout
from moegauge.errors import MoegaugeError, OutputError, UsageError

TARGETS = [many.Target(f"org/m{i}") for i in range(20)]


class Counter:
    """A count that notes its calls and fails as told."""

    def __init__(self, **failures: Exception) -> None:
        self.calls: list[str] = []
        self.failures = failures
        self.lock = threading.Lock()

    def __call__(self, target: str, revision: str | None) -> dict[str, Any]:
        with self.lock:
            self.calls.append(target)
        failure = self.failures.get(target.rpartition("/")[2])
        if failure is not None:
            raise failure
        return {"schema": "moegauge.count/1", "parameters": {"total": len(target)}}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def names(out: Path) -> list[str]:
    return [line["target"] for line in lines(out)]


def test_list_is_read_once_each_in_order() -> None:
    text = ["org/b", "", "# comment", "  org/a@refs/pr/4  ", "org/b", "org/a"]
    assert many.read_targets(text) == [many.Target("org/b"), many.Target("org/a", "refs/pr/4"), many.Target("org/a")]


def test_shards_share_the_list_out() -> None:
    text = [f"org/m{i}" for i in range(10)]
    parts = [many.read_targets(text, f"{i}/3") for i in (1, 2, 3)]
    assert [len(part) for part in parts] == [4, 3, 3]
    assert sorted(t.name for part in parts for t in part) == text
    for wrong in ("0/3", "4/3", "1", "a/b", "1/0", "-1/3"):
        with pytest.raises(UsageError):
            many.read_targets(text, wrong)


@pytest.mark.parametrize("jobs", [1, 7])
def test_one_line_each_in_order_failures_too(tmp_path: Path, jobs: int) -> None:
    out = tmp_path / "counts.jsonl"
    missing = RepoNotFoundError("no such repo.", file="org/m3")
    fresh = list(many.run(TARGETS, out, Counter(m3=missing, m4=ZeroDivisionError("a\x1bb")), jobs=jobs))
    assert names(out) == [target.name for target in TARGETS]
    assert fresh == lines(out)
    assert (fresh[3]["error"], fresh[3]["count"]) == ("RepoNotFoundError", None)
    assert "org/m3" in fresh[3]["message"]
    assert (fresh[4]["error"], fresh[4]["message"]) == ("ZeroDivisionError", "unexpected: a\\x1bb")
    assert fresh[5]["count"]["parameters"] == {"total": 6}


def test_interrupted_run_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / "counts.jsonl"
    run = many.run(TARGETS, out, Counter(), jobs=1)
    for _ in range(5):
        next(run)
    run.close()
    with out.open("a") as stream:
        stream.write('{"target": "org/m5", "rev')  # a crash in the middle of a line
    counter = Counter()
    list(many.run(TARGETS, out, counter, jobs=1))
    assert names(out) == [target.name for target in TARGETS]
    assert counter.calls == names(out)[5:]
    counter = Counter()
    assert list(many.run(TARGETS, out, counter, jobs=2)) == []
    assert counter.calls == []


def test_changed_list_keeps_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "counts.jsonl"
    list(many.run(TARGETS[5:10], out, Counter(), jobs=2))
    counter = Counter()
    list(many.run(TARGETS[:12], out, counter, jobs=2))
    assert names(out) == [target.name for target in TARGETS[:12]]
    assert sorted(counter.calls) == sorted(t.name for t in [*TARGETS[:5], *TARGETS[10:12]])


def test_rewriting_is_resumed_too(tmp_path: Path) -> None:
    out = tmp_path / "counts.jsonl"
    list(many.run(TARGETS[10:], out, Counter(), jobs=1))
    run = many.run(TARGETS, out, Counter(), jobs=1)
    for _ in range(4):
        next(run)
    run.close()
    assert names(out) == [t.name for t in TARGETS[10:]]  # the old file stands until the new one is whole
    counter = Counter()
    list(many.run(TARGETS, out, counter, jobs=1))
    assert counter.calls == [t.name for t in TARGETS[4:10]]
    assert names(out) == [t.name for t in TARGETS]
    assert [path.name for path in tmp_path.iterdir()] == ["counts.jsonl"]


@pytest.mark.parametrize("first", [1, 2])
def test_shards_share_a_file(tmp_path: Path, first: int) -> None:
    out = tmp_path / "counts.jsonl"
    text = [target.name for target in TARGETS]
    for shard in (f"{first}/2", f"{3 - first}/2"):
        list(many.run(many.read_targets(text, shard), out, Counter(), jobs=2))
    assert sorted(names(out)) == sorted(text)
    counter = Counter()
    list(many.run(TARGETS, out, counter, jobs=2))
    assert (names(out), counter.calls) == (text, [])


def test_shorter_list_keeps_what_is_not_in_it(tmp_path: Path) -> None:
    out = tmp_path / "counts.jsonl"
    list(many.run(TARGETS, out, Counter(), jobs=2))
    before = out.read_bytes()
    for part in (TARGETS[:3], TARGETS[5:7]):
        assert list(many.run(part, out, Counter(), jobs=2)) == []
        assert out.read_bytes() == before
    list(many.run([TARGETS[9], TARGETS[2]], out, Counter(), jobs=2))  # another order of the two
    assert sorted(names(out)) == sorted(target.name for target in TARGETS)
    assert names(out)[-2:] == ["org/m9", "org/m2"]


@pytest.mark.parametrize("order", [TARGETS, TARGETS[::-1]], ids=["appended", "put together"])
def test_resumes_from_any_cut_byte(tmp_path: Path, order: list[many.Target]) -> None:
    """What a crash leaves of the file, or of its journal, is any beginning of it."""
    out, part = tmp_path / "counts.jsonl", tmp_path / "counts.jsonl.part"
    whole = {target.name for target in TARGETS[:4]}
    list(many.run(TARGETS[:2], out, Counter(), jobs=1))
    start = out.read_bytes()
    list(many.run(TARGETS[:4], out, Counter(), jobs=1))
    rest = out.read_bytes()[len(start) :]
    wanted = [target for target in order if target in TARGETS[:4]]
    for cut in range(len(rest) + 1):
        if order is TARGETS:
            out.write_bytes(start + rest[:cut])
        else:
            out.write_bytes(start)
            part.write_bytes(rest[:cut])
        counter = Counter()
        list(many.run(wanted, out, counter, jobs=1))
        assert names(out) == [target.name for target in wanted]
        there = rest[:cut].count(b"\n") + (cut in (len(rest) - 1, rest.index(b"\n")))
        assert len(counter.calls) == len(whole) - 2 - there
        assert not part.exists()


def test_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "counts.jsonl"
    list(many.run(TARGETS[:3], out, Counter(), jobs=1))
    out.write_bytes(out.read_bytes()[:-1])
    counter = Counter()
    list(many.run(TARGETS[:5], out, counter, jobs=1))
    assert counter.calls == ["org/m3", "org/m4"]
    assert names(out) == [target.name for target in TARGETS[:5]]


def test_hole_a_file_system_left_is_cut_off(tmp_path: Path) -> None:
    out = tmp_path / "counts.jsonl"
    list(many.run(TARGETS[:3], out, Counter(), jobs=1))
    for tail in (bytes(100), b'{"target":"org/m3"' + bytes(100)):
        out.write_bytes(out.read_bytes() + tail)
        list(many.run(TARGETS[:3], out, Counter(), jobs=1))
        list(many.run(TARGETS[:4], out, Counter(), jobs=1))
        assert names(out) == [target.name for target in TARGETS[:4]]


def test_second_process_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "counts.jsonl"
    first = many.run(TARGETS, out, Counter(), jobs=1)
    next(first)
    with pytest.raises(OutputError, match="another moegauge"):
        next(many.run(TARGETS, out, Counter(), jobs=1))
    list(first)
    assert names(out) == [target.name for target in TARGETS]
    assert list(many.run(TARGETS, out, Counter(), jobs=1)) == []


def test_slow_target_holds_up_nobody(tmp_path: Path) -> None:
    """One that takes its whole deadline costs a job, not the others their turn; what they brought outlives a stop."""
    out = tmp_path / "counts.jsonl"
    others = threading.Event()

    def slow(target: str, revision: str | None) -> dict[str, Any]:
        if target == "org/m0":
            assert others.wait(30)
        elif target == "org/m19":
            others.set()
        return {"total": 1}

    list(many.run(TARGETS, out, slow, jobs=2))
    assert names(out) == [target.name for target in TARGETS]
    out.unlink()
    others.clear()
    stopped = many.run(TARGETS, out, slow, jobs=2)
    next(stopped)
    stopped.close()
    assert names(out) == ["org/m0"]
    counter = Counter()
    list(many.run(TARGETS, out, counter, jobs=1))
    assert counter.calls == []
    assert names(out) == [target.name for target in TARGETS]


def test_failures_of_the_network_are_retried_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "counts.jsonl"
    gone = HubUnreachableError("no answer.", file="org/m2")
    never = RepoNotFoundError("no such repo.", file="org/m3")
    list(many.run(TARGETS[:5], out, Counter(m2=gone, m3=never), jobs=1))
    counter = Counter(m3=never)
    list(many.run(TARGETS[:5], out, counter, jobs=1, retry_failed=True))
    assert counter.calls == ["org/m2"]
    assert [line["error"] for line in lines(out)] == [None, None, None, "RepoNotFoundError", None]


LINE = '{"target":"org/a","revision":null,"error":null,"message":null,"count":{}}\n'
FOREIGN = ["precious data\n", '{"schema": 1}\n', "[]\n", "precious data", "[", "\n", "null\n", "1", "x" * 100_000]
FOREIGN += [LINE.replace('"org/a"', "5"), LINE.replace("{}", "5"), LINE.replace("{}", "null"), LINE[:-1] + "x\n"]
FOREIGN += [LINE.replace("null", "5"), LINE.encode("utf-16").decode("latin-1"), "[" * 100_000 + "\n"]


@pytest.mark.parametrize("text", FOREIGN, ids=lambda text: ascii(text)[:30])
def test_foreign_file_is_left_alone(tmp_path: Path, text: str) -> None:
    out = tmp_path / "counts.jsonl"
    out.write_text(text)
    with pytest.raises(UsageError, match="line 1"):
        list(many.run(TARGETS, out, Counter(), jobs=1))
    assert out.read_text() == text


def test_difference_of_documents() -> None:
    a = {"target": {"commit": "1"}, "warnings": [], "layers": 2, "roles": {"x": {"bytes": 1}}, "same": 0}
    b = {"target": {"commit": "2"}, "warnings": ["w"], "layers": 3, "roles": {"y": {"bytes": 1}}, "same": 0}
    assert difference.compare_documents(a, b) == [
        {"field": "layers", "a": 2, "b": 3},
        {"field": "roles.x.bytes", "a": 1, "b": None},
        {"field": "roles.y.bytes", "a": None, "b": 1},
    ]
    assert difference.compare_documents(a, a) == []


# The command.


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two small releases as folders."""
    place = tmp_path_factory.mktemp("checkpoints")
    for name in ("gpt-oss-20b", "mixtral-8x7b"):
        release_layout.write(place / name, release_layout.release(name)["config"])
    return str(place / "gpt-oss-20b"), str(place / "mixtral-8x7b")


def invoke(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(group, ["count", *arguments], input=stdin)


def test_command_counts_a_list(checkpoints: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "counts.jsonl"
    result = invoke("--from", "-", "--out", str(out), stdin="\n".join([*checkpoints, str(tmp_path / "nowhere")]))
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    found = lines(out)
    assert [line["target"] for line in found] == [*checkpoints, str(tmp_path / "nowhere")]
    assert found[0]["count"]["parameters"]["decoder"] == 20_914_757_184
    assert found[2]["error"] == "TargetNotFoundError"
    assert "3 targets" in result.stderr
    assert "1 failed with TargetNotFoundError" in result.stderr
    (row,) = [line for line in result.stderr.splitlines() if line.startswith(str(tmp_path / "nowhere"))]
    assert "TargetNotFoundError" in row
    assert "no such file or folder" in row


def test_command_says_failures_again_when_nothing_is_left_to_count(tmp_path: Path) -> None:
    arguments = ("--from", "-", "--out", str(tmp_path / "c.jsonl"))
    assert invoke(*arguments, stdin="./nowhere").exit_code == 1
    again = invoke(*arguments, "--json", stdin="./nowhere")
    assert again.exit_code == 1
    assert "0 counted now" in again.stderr
    document = json.loads(again.stdout)
    assert (document["targets"], document["counted_now"]) == (1, 0)
    assert [(line["target"], line["error"]) for line in document["failed"]] == [("./nowhere", "TargetNotFoundError")]
    assert invoke(*arguments, "--keep-going", stdin="./nowhere").exit_code == 0


def test_interrupted_command_says_how_to_go_on(checkpoints: tuple[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    from moegauge import counting

    whole = counting.count

    def interrupted(target: str, *arguments: Any, **options: Any) -> Any:
        if target == checkpoints[1]:
            raise KeyboardInterrupt
        return whole(target, *arguments, **options)

    monkeypatch.setattr(counting, "count", interrupted)
    out = tmp_path / "counts.jsonl"
    result = invoke("--from", "-", "--out", str(out), "--jobs", "1", stdin="\n".join(checkpoints))
    assert result.exit_code != 0
    assert "the same command goes on" in result.stderr
    assert names(out) == [checkpoints[0]]


def test_command_writes_parquet(checkpoints: tuple[str, str], tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow (the parquet extra) is not installed")
    (tmp_path / "list").write_text("\n".join([checkpoints[1], str(tmp_path / "nowhere")]))
    files = (
        "--from",
        str(tmp_path / "list"),
        "--out",
        str(tmp_path / "c.jsonl"),
        "--parquet",
        str(tmp_path / "c.parquet"),
    )
    assert invoke(*files, "--keep-going").exit_code == 0
    table = pq.read_table(tmp_path / "c.parquet").to_pydict()
    assert table["parameters.total"] == [46_702_792_704, None]
    assert table["error"] == [None, "TargetNotFoundError"]
    assert "routed_expert" in json.loads(table["roles"][0])


def test_parquet_is_refused_before_counting_when_it_cannot_be_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    out = tmp_path / "counts.jsonl"
    result = invoke("--from", "-", "--out", str(out), "--parquet", str(tmp_path / "c.parquet"), stdin="org/a\n")
    assert isinstance(result.exception, MoegaugeError)
    assert "moegauge[parquet]" in str(result.exception)
    assert not out.exists()


def test_command_shows_differences(checkpoints: tuple[str, str], tmp_path: Path) -> None:
    first, second = checkpoints
    document = tmp_path / "count.json"
    document.write_text(invoke(first, "--json").stdout)
    assert json.loads(invoke("--diff", first, str(document), "--json").stdout)["equal"] is True
    assert invoke("--diff", first, str(document)).stdout == "no difference\n"
    found = json.loads(invoke("--diff", str(document), second, "--json").stdout)
    by_field = {each["field"]: (each["a"], each["b"]) for each in found["differences"]}
    assert by_field["parameters.total"] == (20_914_757_184, 46_702_792_704)


def test_command_shows_differences_of_many(checkpoints: tuple[str, str], tmp_path: Path) -> None:
    for name, targets in (("a", checkpoints), ("b", checkpoints[:1])):
        invoke("--from", "-", "--out", str(tmp_path / f"{name}.jsonl"), stdin="\n".join(targets))
    result = invoke("--diff", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--json")
    assert json.loads(result.stdout)["differences"] == [
        {"target": checkpoints[1], "field": "present", "a": True, "b": False}
    ]


@pytest.mark.parametrize(
    "arguments",
    [(), ("a", "b"), ("--diff", "a"), ("--from", "-"), ("--from", "-", "--out", "x", "a"), ("--out", "x", "a")],
)
def test_command_refuses_a_wrong_number_of_targets(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert isinstance(result.exception, UsageError)
