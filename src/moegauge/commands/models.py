"""`moegauge models`: the shapes that ship with the package."""

from __future__ import annotations

from pathlib import Path

import click

from moegauge import models
from moegauge.commands._output import json_option, print_json, print_table
from moegauge.errors import UsageError
from moegauge.units import human_bytes, human_count


def write_layout(name: str | None, folder: Path) -> None:
    """Lay out the headers of a released checkpoint in a new folder; the data are holes and take no disk."""
    if name is None:
        raise UsageError(
            "--layout needs a model NAME.", advice="Example: moegauge models gpt-oss-20b --layout gpt-oss-20b"
        )
    if folder.exists():
        raise UsageError(f"{folder}: already exists, nothing written.", advice="Name a folder that does not exist.")
    from moegauge.counting.sources import release_layout

    release = release_layout.release(name.lower())
    release_layout.write(folder, release["config"], release["shards"])
    click.echo(f"{folder}: headers of {release['repo']} as released; the weights are holes in sparse files.", err=True)


@click.command(
    "models",
    epilog="Example: moegauge models deepseek-v3 --layout deepseek-v3 && moegauge count deepseek-v3",
)
@click.argument("name", required=False)
@click.option(
    "--layout",
    "folder",
    type=click.Path(path_type=Path),
    help="Write the release's headers as a sparse checkpoint in a new FOLDER, to try `count` offline.",
)
@json_option
def command(name: str | None, folder: Path | None, as_json: bool) -> None:
    """List the shipped model shapes; with NAME, print that one as ModelShape JSON."""
    if folder is not None:
        write_layout(name, folder)
        return
    if name:
        print_json(models.load(name).to_json())
        return
    shapes = [models.load(n) for n in models.names()]
    if as_json:
        print_json(
            {
                "schema": "moegauge.models/1",
                "models": [
                    {
                        "name": s.name,
                        "family": s.family,
                        "layers": len(s.layers),
                        "moe_layers": s.moe_layers,
                        "parameters": s.total_parameters,
                        "active": s.active_parameters,
                        "bytes_per_token": s.bytes_per_token,
                        "source": s.source,
                    }
                    for s in shapes
                ],
            }
        )
        return
    print_table(
        ("model", "family", "layers", "MoE", "total", "active", "bytes/token"),
        [
            (
                s.name,
                s.family,
                str(len(s.layers)),
                str(s.moe_layers),
                human_count(s.total_parameters),
                human_count(s.active_parameters),
                human_bytes(s.bytes_per_token),
            )
            for s in shapes
        ],
        2,
    )
