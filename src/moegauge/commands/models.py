"""`moegauge models`: the shapes that ship with the package."""

from __future__ import annotations

import click

from moegauge import models
from moegauge.commands._output import json_option, print_json
from moegauge.units import human_bytes, human_count


@click.command("models", epilog="Example: moegauge models --json")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the shipped model shapes; with NAME, print that one as ModelShape JSON."""
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
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("model", "family"):
        table.add_column(title, no_wrap=True)
    for title in ("layers", "MoE", "total", "active", "bytes/token"):
        table.add_column(title, justify="right", no_wrap=True)
    for s in shapes:
        table.add_row(
            s.name,
            s.family,
            str(len(s.layers)),
            str(s.moe_layers),
            human_count(s.total_parameters),
            human_count(s.active_parameters),
            human_bytes(s.bytes_per_token),
        )
    Console().print(table)
