"""`moegauge count`: what a checkpoint holds, from its headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moegauge.commands._output import json_option, print_json, say, warn
from moegauge.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from moegauge.counting.census import Census
    from moegauge.counting.families import Rule

SHOWN_NAMES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """How targets are counted, by the options of the command; called with (target, revision) it gives the document.

    It is pickled where targets are counted on a cluster.
    """

    weights: str
    top_k: int | None
    thorough: bool
    deadline_s: float | None
    strict: bool
    allow_unclassified: bool
    per_layer: bool
    rules: Sequence[Rule]

    def census(self, target: str, revision: str | None) -> Census:
        """Count a target; what the options do not allow is an error."""
        from moegauge.counting import count
        from moegauge.models.catalogue import repo_of

        repo = repo_of(target)
        if repo is not None:
            say(f"{target}: counting {repo}", err=True)
        census = count(
            repo or target, revision, weights=self.weights, top_k=self.top_k, thorough=self.thorough,
            deadline_s=self.deadline_s, rules=self.rules,
        )  # fmt: skip
        if self.strict:
            _refuse_inferred(census)
        if not self.allow_unclassified:
            _refuse_unclassified(census)
        return census

    def __call__(self, target: str, revision: str | None) -> dict[str, Any]:
        return self.census(target, revision).to_json(per_layer=self.per_layer)


@click.command("count", epilog="Example: moegauge count openai/gpt-oss-20b --json")
@click.argument("targets", nargs=-1, metavar="[TARGET]")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a Hub repo.")
@click.option("--weights", metavar="NAME", default="", help="Index or file to count where several lie side by side.")
@click.option("--layers", "per_layer", is_flag=True, help="One row per layer as well.")
@click.option("--top-k", type=click.IntRange(1), metavar="K", help="Experts a token uses, where no config says.")
@click.option(
    "--rules",
    "rules_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML: roles of names the shipped rules do not know.",
)
@click.option("--strict", is_flag=True, help="Fail on names no rule knows, even where structure tells what they are.")
@click.option("--allow-unclassified", is_flag=True, help="Count tensors in doubt apart instead of failing.")
@click.option(
    "--shape", "shape_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the ModelShape JSON here."
)
@click.option("--thorough", is_flag=True, help="Read every header of a Hub repo by ranges, byte for byte.")
@click.option("--diff", "diff", is_flag=True, help="Compare two TARGETs, .json counts, or .jsonl results.")
@click.option("--from", "source", metavar="FILE|-", help="Count every target of a list, one per line.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="With --from: the JSONL file; resumed.")
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="With --from: at a time.")
@click.option(
    "--engine", metavar="ADDRESS", default="", help="With --from: count on this Dask cluster, tcp://HOST:PORT."
)
@click.option("--shard", metavar="I/N", default="1/1", help="With --from: the I-th of every N targets.")
@click.option("--retry-failed", is_flag=True, help="With --from: count the failures of the network again.")
@click.option(
    "--parquet",
    "parquet_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --from: also a Parquet table.",
)
@click.option("--keep-going", is_flag=True, help="With --from: exit 0 even where targets failed.")
@click.option(
    "--deadline",
    "deadline_s",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="What the requests about one Hub repo may take together.  [default: 60 times HF_HUB_DOWNLOAD_TIMEOUT]",
)
@json_option
def command(
    targets: tuple[str, ...],
    *,
    revision: str | None,
    weights: str,
    per_layer: bool,
    top_k: int | None,
    rules_file: Path | None,
    strict: bool,
    allow_unclassified: bool,
    shape_file: Path | None,
    thorough: bool,
    diff: bool,
    source: str | None,
    out: Path | None,
    jobs: int,
    engine: str,
    shard: str,
    retry_failed: bool,
    parquet_file: Path | None,
    keep_going: bool,
    deadline_s: float | None,
    as_json: bool,
) -> None:
    """Count dense and routed parameters of TARGET exactly: a folder, a .safetensors or .gguf file, a repo on the Hub
    (org/name, its page's address, hf://org/name@revision), or a name of `moegauge models`, which stands for its repo.

    Only headers are read, never weights.
    """
    if shape_file is not None and shape_file.exists():
        raise UsageError(f"{shape_file}: already exists.", advice="Name a new file for --shape.")
    _check_targets(targets, diff=diff, source=source, out=out)
    if shape_file is not None and (diff or source is not None):
        raise UsageError("--shape goes with one TARGET.", advice="Leave it out, or count that one alone.")

    rules: Sequence[Rule] = ()
    if rules_file is not None:
        from moegauge.counting.rules import read_rules

        rules = read_rules(rules_file)

    how = Counting(
        weights=weights, top_k=top_k, thorough=thorough, deadline_s=deadline_s, strict=strict,
        allow_unclassified=allow_unclassified, per_layer=per_layer, rules=rules,
    )  # fmt: skip
    if source is not None and out is not None:
        from moegauge.commands._count_many import count_many

        count_many(
            source,
            out,
            how,
            jobs=jobs,
            shard=shard,
            parquet_file=parquet_file,
            retry_failed=retry_failed,
            keep_going=keep_going,
            engine=engine,
            as_json=as_json,
        )
        return
    if diff:
        from moegauge.commands._count_many import print_difference

        print_difference(targets[0], targets[1], how, as_json=as_json)
        return
    census = how.census(targets[0], revision)
    if shape_file is not None:
        census.model_shape().save(shape_file)
        warn_written(shape_file)
    for warning in census.warnings:
        warn(warning)
    if as_json:
        print_json(census.to_json(per_layer=per_layer))
        return
    from moegauge.commands._census import print_census

    print_census(census, per_layer=per_layer)


def _check_targets(targets: tuple[str, ...], *, diff: bool, source: str | None, out: Path | None) -> None:
    """One TARGET; two with --diff; none with --from."""
    wanted = 2 if diff else 0 if source is not None else 1
    if source is not None and (diff or out is None):
        raise UsageError("--from needs --out FILE, and goes with no --diff.", advice="For example: --out counts.jsonl")
    if out is not None and source is None:
        raise UsageError("--out goes with --from.", advice="For one target: --json > FILE")
    if len(targets) != wanted:
        need = ("no TARGET with --from", "one TARGET", "two TARGETs with --diff")[wanted]
        raise UsageError(f"{len(targets)} targets given, {need} expected.", advice="See: moegauge count --help")


def warn_written(path: Path) -> None:
    """One line on stderr: stdout stays the data."""
    say(f"wrote {path}", err=True)


def _refuse_inferred(census: Census) -> None:
    """Fail when a role follows from structure alone: --strict asks for rules."""
    if census.inferred:
        raise CheckpointError(
            f"{census.checkpoint.name}: names no rule knows, placed by structure: {_some(census.inferred)}.",
            advice="Say what they are in a file of --rules, or count without --strict.",
        )


def _refuse_unclassified(census: Census) -> None:
    """Fail when it is in doubt whether tensors are experts: counting them dense might be silently wrong."""
    names = census.unclassified()
    if not names:
        return
    tensors = sum(g.tensors for g in census.groups if g.role == "unclassified")
    advice = "Say what they are in a file of --rules, or give --allow-unclassified to count them apart."
    if not census.configured:
        advice = "Without a config.json structure cannot tell: put it beside the weights. " + advice
    if census.checkpoint.may_be_part:
        advice = "What tells their packing may lie in another shard: count the folder, or give --allow-unclassified."
    raise CheckpointError(
        f"{census.checkpoint.name}: {tensors:,} tensors whose name or packing no rule knows: {_some(names)}.",
        advice=advice,
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:SHOWN_NAMES])
    return f"{shown} and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else shown
