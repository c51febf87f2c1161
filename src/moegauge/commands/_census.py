"""Print a census as tables."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from moegauge.commands._output import printable
from moegauge.units import human_bytes, human_count

if TYPE_CHECKING:
    from rich.table import Table

    from moegauge.counting.census import Census

ROLE_TITLES = {
    "embedding": "embedding",
    "lm_head": "LM head",
    "attention": "attention",
    "dense_mlp": "dense MLP",
    "shared_expert": "shared experts",
    "router": "routers",
    "norm": "norms",
    "routed_expert": "routed experts",
    "mtp": "multi-token prediction",
    "vision": "vision",
    "audio": "audio",
    "lookup": "lookup tables",
    "buffer": "buffers",
    "quant_meta": "scales and packing data",
    "unclassified": "UNCLASSIFIED",
}


def print_census(census: Census, *, per_layer: bool) -> None:
    """The whole report on stdout."""
    from rich.console import Console

    document = census.to_json(per_layer=per_layer)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 120  # a file or a pipe: no terminal to wrap for
    for line in _headline(document):
        click.echo(line)
    for table in (
        _roles(document, tied=census.tied),
        _active(document, tied=census.tied),
        _formats(document),
        *([_layers(document)] if per_layer else []),
    ):
        click.echo()
        console.print(table)


def _headline(document: dict[str, Any]) -> list[str]:
    target = document["target"]
    model = f"{printable(document['family'])}, {document['layers']} layers, {document['moe_layers']} of them MoE"
    if document["experts"]:
        chosen = document["top_k"] if document["top_k"] is not None else "?"
        model += f", {document['experts']} experts, {chosen} per token"
    read = f"{human_bytes(target['header_bytes'])} of headers read"
    if target["kind"] == "hub":
        read += f" in {target['requests']} requests, commit {target['commit']}"
    stored = human_bytes(document["stored"]["bytes"])
    return [
        f"{printable(target['name'])}: {model}",
        f"{target['files']} files, {target['tensors']:,} tensors, {stored}; {read}",
    ]


def _table(*columns: str, words: int = 1) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, title in enumerate(columns):
        table.add_column(title, justify="left" if index < words else "right", no_wrap=True)
    return table


def _exact(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _about(value: int | None) -> str:
    return "" if value is None else human_count(value)


def _roles(document: dict[str, Any], *, tied: bool) -> Table:
    from moegauge.counting.roles import DECODER_ROLES, DENSE_ROLES, ROLES

    table = _table("role", "parameters", "about", "stored bytes")
    roles, parameters = document["roles"], document["parameters"]

    def line(title: str, row: dict[str, int]) -> None:
        table.add_row(title, _exact(row["parameters"]), _about(row["parameters"]), _exact(row["bytes"]))

    for role in (*DENSE_ROLES, "routed_expert"):
        if role in roles:
            note = " (also the LM head)" if role == "embedding" and tied else ""
            line(f"  {ROLE_TITLES[role]}{note}", roles[role])
    stored = {role: row["bytes"] for role, row in roles.items()}
    routed_bytes = stored.get("routed_expert", 0)
    dense_bytes = sum(stored.get(role, 0) for role in DENSE_ROLES)
    line("dense", {"parameters": parameters["dense"], "bytes": dense_bytes})
    line("routed", {"parameters": parameters["routed"], "bytes": routed_bytes})
    line("decoder", {"parameters": parameters["decoder"], "bytes": dense_bytes + routed_bytes})
    for role in (role for role in ROLES if role not in DECODER_ROLES):
        if role in roles:
            line(f"  {ROLE_TITLES[role]}", roles[role])
    line("all", {"parameters": parameters["total"], "bytes": document["stored"]["bytes"]})
    return table


def _active(document: dict[str, Any], *, tied: bool) -> Table:
    active, step = document["active"], document["bytes_per_token"]
    table = _table("one token uses", "parameters", "about", "bytes read")
    table.add_row("  dense", _exact(active["dense"]), _about(active["dense"]), _exact(step["dense"]))
    table.add_row("  routed", _exact(active["routed"]), _about(active["routed"]), _exact(step["routed"]))
    total = active["parameters"]
    table.add_row("active, with input embedding", _exact(total), _about(total), _exact(step["total"]), style="bold")
    rest = active["without_embedding"]
    label = "active, without (tied: the same)" if tied else "active, without input embedding"
    table.add_row(label, _exact(rest), _about(rest), "")
    table.add_row("stored elements, scales included", _exact(active["stored_elements"]), "", "")
    table.add_row("KV cache per token of context, bf16", "", "", _exact(step["kv_per_context_token"]))
    if step["kv_per_context_token_beyond_windows"] != step["kv_per_context_token"]:
        table.add_row("  beyond sliding windows", "", "", _exact(step["kv_per_context_token_beyond_windows"]))
    return table


def _formats(document: dict[str, Any]) -> Table:
    table = _table("format", "parameters", "bytes with scales", "decided by")
    table.columns[3].justify = "left"
    table.columns[3].no_wrap = False
    for name, row in document["formats"].items():
        rules = document["format_rules"].get(name, [""])
        more = f" (and {len(rules) - 1} more)" if len(rules) > 1 else ""
        table.add_row(name, _exact(row["parameters"]), _exact(row["bytes"]), printable(rules[0]) + more)
    return table


def _layers(document: dict[str, Any]) -> Table:
    """One row per run of equal layers."""
    table = _table("layers", "dense", "routed", "experts", "per token", "bytes")
    rows = document["per_layer"]
    stacks = {row["stack"] for row in rows}

    def alike(row: dict[str, Any]) -> tuple[Any, ...]:
        pools = tuple((p["experts"], p["top_k"]) for p in row["pools"])
        return row["stack"], row["dense"], row["routed"], row["bytes"], pools

    for (stack, dense, routed, size, pools), run in groupby(rows, alike):
        numbers = [row["layer"] for row in run]
        name = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
        table.add_row(
            name if len(stacks) == 1 else f"{printable(stack)} {name}",
            _exact(dense),
            _exact(routed),
            " + ".join(_exact(count) for count, _ in pools),
            " + ".join(_exact(top_k) for _, top_k in pools),
            _exact(size),
        )
    return table
