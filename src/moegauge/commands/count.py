"""`moegauge count`: what a checkpoint holds, from its headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moegauge.commands._output import json_option, print_json, printable, warn
from moegauge.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from moegauge.counting.census import Census

SHOWN_NAMES = 5


@click.command("count", epilog="Example: moegauge count openai/gpt-oss-20b --json")
@click.argument("target")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a Hub repo.")
@click.option("--weights", metavar="NAME", default="", help="Index or file to count where several lie side by side.")
@click.option("--layers", "per_layer", is_flag=True, help="One row per layer as well.")
@click.option("--top-k", type=click.IntRange(1), metavar="K", help="Experts a token uses, where no config says.")
@click.option("--allow-unclassified", is_flag=True, help="Count names no rule knows apart instead of failing.")
@click.option(
    "--shape", "shape_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the ModelShape JSON here."
)
@json_option
def command(
    target: str,
    *,
    revision: str | None,
    weights: str,
    per_layer: bool,
    top_k: int | None,
    allow_unclassified: bool,
    shape_file: Path | None,
    as_json: bool,
) -> None:
    """Count dense and routed parameters of TARGET exactly: a folder, a .safetensors file, or org/name on the Hub.

    Only headers are read, never weights.
    """
    if shape_file is not None and shape_file.exists():
        raise UsageError(f"{shape_file}: already exists.", advice="Name a new file for --shape.")
    from moegauge.counting import count

    census = count(target, revision, weights=weights, top_k=top_k)
    if not allow_unclassified:
        _refuse_unclassified(census)
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


def warn_written(path: Path) -> None:
    """One line on stderr: stdout stays the data."""
    click.echo(f"wrote {printable(str(path))}", err=True)


def _refuse_unclassified(census: Census) -> None:
    """Fail when names are unknown: they might be experts, and counting them dense would be silently wrong."""
    names = census.unclassified()
    if not names:
        return
    shown = ", ".join(f"'{printable(name)}'" for name in names[:SHOWN_NAMES])
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    tensors = sum(g.tensors for g in census.groups if g.role == "unclassified")
    raise CheckpointError(
        f"{census.checkpoint.name}: {tensors:,} tensors whose name or packing no rule knows: {shown}{more}.",
        advice="Add a row to counting/families.py, or give --allow-unclassified to count them apart.",
    )
