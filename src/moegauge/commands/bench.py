"""`moegauge bench`: measure the read roof, single kernels or whole decode steps on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from moegauge.commands import _run
from moegauge.commands._output import json_option, print_json, print_table, say
from moegauge.errors import UsageError
from moegauge.formats import FORMATS
from moegauge.record import Record

if TYPE_CHECKING:
    from moegauge.bench.run.session import Session

_EPILOG = """Examples:

\b
  moegauge bench roof
  moegauge bench decode --model gpt-oss-20b,glm-4.7 --format native,fp8
  moegauge bench decode --suite standard --out results/standard.json
  moegauge bench --suite gpu --device cuda --out results/gpu.json
  moegauge bench --suite gpu --predict

Without --out nothing is stored: the table (or with --json the record) goes to stdout. With --out the record is written
after every point; the same command takes up where it was stopped."""


_NOISE = click.option(
    "--noise",
    type=click.FloatRange(0.01),
    default=1.0,
    show_default=True,
    help="Stop when the median's 95 % interval is this many per cent to each side.",
)
_PEERS_EPILOG = """Examples:

\b
  moegauge bench peers --model gpt-oss-20b --format bf16,int8,int4 --batch 1,8
  moegauge bench peers --kind decode --model gpt-oss-20b
  moegauge bench peers --kind decode --model qwen3-30b-a3b --format int4 --layers 24

The time of this kit over that of a peer is for the same number of weights; below 1 this kit is faster."""
FILE = click.Path(dir_okay=False, path_type=Path)
_FORMATS = f"native, {', '.join(FORMATS)}; comma-separated."


def _shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of roof, kernels and decode."""
    for option in reversed(
        (
            click.option(
                "--device", default="auto", show_default=True, help="cpu, cuda, or auto: cuda where there is one."
            ),
            click.option("--threads", type=click.IntRange(1, 4096), help="CPU threads; default: every core."),
            click.option(
                "--launch",
                "--rung",  # its name up to 0.1.0
                "launch_mode",
                default="",
                help="GPU: how steps are launched, eager, graph or pdl; default: graph.",
            ),
            click.option("--out", type=FILE, help="Write the record to this file."),
            click.option("--export-csv", type=FILE, help="One row per point."),
            click.option("--export-markdown", type=FILE, help="A Markdown table."),
            json_option,
        )
    ):
        function = option(function)
    return function


def _points(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that choose points and limits."""
    for option in reversed(
        (
            click.option("--model", "models", help="Names, ModelShape files, folders or Hub repos; comma-separated."),
            click.option("--format", "formats", help=_FORMATS),
            click.option("--batch", "batches", help="Sequences decoded together, 1 to 64; comma-separated."),
            click.option("--context", "contexts", help="Tokens already cached, 0 to 128k; comma-separated."),
            click.option("--suite", help="quick, standard, full or gpu; the options above narrow it."),
            click.option("--kv-format", type=click.Choice(["bf16", "fp8"]), default="bf16", show_default=True),
            click.option("--routing", default="uniform", show_default=True, help="Which experts tokens choose."),
            click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
            click.option("--arena-bytes", type=click.IntRange(1), help="Memory for weights; default: 1 GiB at least."),
            click.option("--time-limit", type=click.FloatRange(0.01), help="Seconds of sampling per point."),
            click.option(
                "--budget", "budget_s", type=click.FloatRange(1.0), help="Seconds for a suite of stages (gpu)."
            ),
            click.option(
                "--continue",
                "continue_from",
                type=FILE,
                help="Begin --out with what still holds of this record: roof and floors, of one commit all.",
            ),
            click.option("--predicted", type=FILE, help="Put predicted times of this --predict file into the record."),
            click.option(
                "--dry-run", is_flag=True, help="Print a suite's stages and estimated seconds; measure nothing."
            ),
            click.option("--min-samples", type=click.IntRange(3), default=10, show_default=True),
            _NOISE,
        )
    ):
        function = option(function)
    return function


class DecodeByDefault(click.Group):
    """A group that runs `decode` when it is given options without a subcommand."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("--") and args[0] not in ctx.help_option_names:
            args = ["decode", *args]
        return super().parse_args(ctx, args)


@click.group("bench", cls=DecodeByDefault, epilog=_EPILOG)
def command() -> None:
    """Measure the read roof, single kernels or whole decode steps here, and what others do with the same shapes.

    The emulated step reads the model's true bytes in true order from random weights; it is not inference.

    Options without a subcommand, as in `moegauge bench --suite quick`, are those of `decode`."""


@command.command("roof", epilog="Example: moegauge bench roof --json")
@_shared
def roof(as_json: bool, **options: Any) -> None:
    """How fast this device reads memory: the best read-only stream of several access patterns."""
    _measure("roof", as_json, options)


@command.command("decode", epilog=_EPILOG)
@_points
@_shared
@click.option("--predict", is_flag=True, help="GPU suites: predict every point for H100, H200 and B200; no device.")
def decode(as_json: bool, dry_run: bool, predict: bool, **options: Any) -> None:
    """Whole decode steps: every layer of a model at its true bytes, timed beside the roof."""
    if predict:
        from moegauge.commands._predict_suite import predict_suite

        predict_suite(as_json, options)
        return
    if dry_run:
        _schedule(options)
        return
    _measure("decode", as_json, options)


@command.command("kernels", epilog="Example: moegauge bench kernels --model deepseek-v3 --format fp8,mxfp4")
@_points
@_shared
def kernels(as_json: bool, dry_run: bool, **options: Any) -> None:
    """Each kind of kernel of a step alone, all layers of it: where the time of a step goes."""
    if dry_run:
        raise UsageError("--dry-run is for whole suites.", advice="Use it with `moegauge bench --suite gpu`.")
    _measure("kernel", as_json, options)


@command.command("peers", epilog=_PEERS_EPILOG)
@click.option("--model", "models", help="Names, ModelShape files, folders or Hub repos; comma-separated.")
@click.option("--format", "formats", help=_FORMATS)
@click.option("--batch", "batches", help="Sequences decoded together, 1 to 64; comma-separated.")
@click.option(
    "--kind",
    type=click.Choice(["kernel", "product", "experts", "decode"]),
    default="kernel",
    show_default=True,
    help="product: single matrices; experts: whole expert layers; kernel: both; decode: whole steps.",
)
@click.option("--layers", type=click.IntRange(1), help="Whole steps of the first so many layers only.")
@click.option("--peer", "peers", help="Names of peers to time; default: every one.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--arena-bytes", type=click.IntRange(1), help="Memory for weights; default: 1 GiB at least.")
@click.option("--time-limit", type=click.FloatRange(0.01), help="Seconds of sampling per program and point.")
@click.option("--min-samples", type=click.IntRange(3), default=10, show_default=True)
@_NOISE
@_shared
def peers(as_json: bool, kind: str, **options: Any) -> None:
    """What a user would pick instead, on the same shapes in the same run: PyTorch's products, llama.cpp, fused experts.

    Each peer packs its own weights in the nearest format it has and is checked before it is timed. Peers that are not
    installed are named with the reason."""
    from moegauge.bench.peers.session import PeerOptions, PeerSession
    from moegauge.commands._peers import show_peers

    files = _run.take_exports(options)
    session = PeerSession(PeerOptions(kind=kind, **options), _run.argv(), _run.tell())
    with _run.resumable(session, _run.argv()):
        record = session.measure()
    _print(session, record, as_json, show_peers, files)


def _schedule(options: dict[str, Any]) -> None:
    """Print the stages of a suite; no device is touched."""
    from moegauge.bench.plan.suites import get_suite
    from moegauge.bench.run.staged_run import schedule

    suite = get_suite(options["suite"]) if options["suite"] else None
    if suite is None or not suite.stages:
        raise UsageError("--dry-run is for suites of stages.", advice="Use it with --suite gpu.")
    rows = schedule(suite)
    print_table(["stage", "points", "estimate s", "sum s", "what"], rows)
    budget = options["budget_s"] or suite.budget_s
    say(f"Estimates, nothing was measured. Budget {budget:g} s; what does not fit waits for the same command.")


def _measure(kind: str, as_json: bool, options: dict[str, Any]) -> None:
    """Measure, then print the record or its table; nothing is printed where every point failed."""
    from moegauge.bench.run.session import Options, Session
    from moegauge.bench.run.staged_run import measure
    from moegauge.commands._tables import show_record

    files = _run.take_exports(options)
    session = Session(Options(kind=kind, **options), _run.argv(), _run.tell())
    with _run.resumable(session, _run.argv()):
        record = measure(session)
    _print(session, record, as_json, show_record, files)


def _print(
    session: Session,
    record: Record,
    as_json: bool,
    show: Callable[[Record], None],
    files: tuple[Path | None, Path | None],
) -> None:
    if record.cases or session.options.kind == "roof":
        if as_json:
            print_json(msgspec.to_builtins(record))
        else:
            show(record)
            _run.say_where(session.options.out)
    # After the data are out: a table that cannot be written costs nothing measured.
    _run.export(record, *files)
    _run.raise_failures(session)
