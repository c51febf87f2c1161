"""`moegauge doctor`: whether this machine is fit to measure, each finding in one line with advice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from moegauge import machine, nvml
from moegauge.commands._output import json_option, print_json, print_table, say
from moegauge.commands._tables import machine_line

if TYPE_CHECKING:
    from moegauge.bench.run.doctor import Diagnosis
    from moegauge.kernels.backend import Backend


@click.command("doctor", epilog="Example: moegauge doctor --json")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto: cuda where there is one.")
@click.option("--threads", type=click.IntRange(1, 4096), help="CPU threads; default: every core.")
@json_option
def command(device: str, threads: int | None, as_json: bool) -> None:
    """Is this machine fit to measure: what else runs, clocks, memory, the GPU, and how steady the read roof is.

    Takes a few seconds and sets nothing. The exit code is 0 whatever is found; `fit` is false where something warns."""
    from moegauge.kernels.devices import get_backend

    device = machine.resolve_device(device)
    found = diagnose(get_backend(device, threads=threads), device)
    if as_json:
        print_json(found.to_json())
        return
    say(machine_line(machine.describe(device)))
    values = ["-" if one.value is None else str(one.value) for one in found.findings]
    rows = [[str(one.level), one.name, value, one.advice] for one, value in zip(found.findings, values, strict=True)]
    print_table(["", "what", "found", "advice"], rows, 4)
    warnings = sum(one.level == "warning" for one in found.findings)
    say("fit to measure" if found.fit else f"not fit to measure: {warnings} of these warn")


def diagnose(backend: Backend, device: str, *, short: bool = False) -> Diagnosis:
    """All findings about a device; in `short` from fewer slices of the roof."""
    from moegauge.bench.run import doctor

    gpu = nvml.first_gpu() if device == "cuda" else None
    return doctor.examine(
        backend,
        slices=doctor.SHORT if short else doctor.SLICES,
        gpu=gpu.describe() if gpu else None,
        gpu_state=gpu.state() if gpu else None,
    )
