"""`moegauge env`: what machine and software this is, as records name it."""

from __future__ import annotations

from typing import Any

import click

from moegauge import machine
from moegauge.commands._output import json_option, print_json, say
from moegauge.commands._tables import machine_line
from moegauge.units import human_bytes


@click.command("env", epilog="Example: moegauge env --json")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option("--id", "only_id", is_flag=True, help="Print the machine's id alone: its folder under results/.")
@json_option
def command(device: str, only_id: bool, as_json: bool) -> None:
    """What machine and software this is, as records name it. No host or user names."""
    description = machine.describe(machine.resolve_device(device))
    if only_id:
        say(description["id"])
        return
    document: dict[str, Any] = {
        "schema": "moegauge.env/1",
        "machine": description,
        "software": machine.software(),
        "project": machine.project(),
    }
    if as_json:
        print_json(document)
        return
    say(f"machine   {machine_line(description)}  [{description['id']}]")
    say(f"cache     {human_bytes(machine.last_level_cache_bytes(description))} last level")
    if description["device"] == "cpu":
        say(f"vectors   {' '.join(description['cpu']['features']) or 'none known'}")
    say(f"system    {description['os']}")
    for name, version in document["software"].items():
        say(f"{name:<9} {version or 'not installed'}")
    commit = document["project"]["commit"]
    if commit:
        say(f"commit    {commit}{' with changes' if document['project']['dirty'] else ''}")
