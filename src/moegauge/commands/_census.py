"""Print a census as tables."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from moegauge.commands._output import print_table, say
from moegauge.units import human_bytes, human_count

if TYPE_CHECKING:
    from moegauge.counting.census import Census

ROLE_TITLES = {
    "embedding": "embedding",
    "lm_head": "LM head",
    "attention": "attention",
    "dense_mlp": "dense MLP",
    "shared_expert": "shared experts",
    "router": "routers",
    "norm": "norms",
    "other": "other, placed by structure",
    "routed_expert": "routed experts",
    "mtp": "multi-token prediction",
    "vision": "vision",
    "audio": "audio",
    "lookup": "lookup tables",
    "buffer": "buffers",
    "quant_meta": "scales and packing data",
    "duplicate": "experts stored a second time",
    "unclassified": "UNCLASSIFIED",
}


def print_census(census: Census, *, per_layer: bool) -> None:
    """The whole report on stdout."""
    document = census.to_json(per_layer=per_layer)
    for line in _headline(document):
        say(line)
    say()
    _print_roles(document, tied=census.tied)
    say()
    _print_active(document, tied=census.tied)
    say()
    _print_formats(document)
    if per_layer:
        say()
        _print_layers(document)


def _headline(document: dict[str, Any]) -> list[str]:
    target = document["target"]
    model = f"{document['family']}, {document['layers']} layers, {document['moe_layers']} of them MoE"
    if document["experts"]:
        chosen = document["top_k"] if document["top_k"] is not None else "?"
        model += f", {document['experts']} experts, {chosen} per token"
    read = f"{human_bytes(target['header_bytes'])} of headers read"
    if target["kind"] == "hub":
        read += f" in {target['requests']} requests, commit {target['commit']}"
    stored = human_bytes(document["stored"]["bytes"])
    return [
        f"{target['name']}: {model}",
        f"{target['files']} files, {target['tensors']:,} tensors, {stored}; {read}",
    ]


def _exact(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _about(value: int | None) -> str:
    return "" if value is None else human_count(value)


def _print_roles(document: dict[str, Any], *, tied: bool) -> None:
    from moegauge.counting.roles import DECODER_ROLES, DENSE_ROLES, ROLES

    rows: list[tuple[str, ...]] = []
    roles, parameters = document["roles"], document["parameters"]

    def line(title: str, row: dict[str, int]) -> None:
        rows.append((title, _exact(row["parameters"]), _about(row["parameters"]), _exact(row["bytes"])))

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
    print_table(("role", "parameters", "about", "stored bytes"), rows)


def _print_active(document: dict[str, Any], *, tied: bool) -> None:
    active, step = document["active"], document["bytes_per_token"]
    rest = "active, without (tied: the same)" if tied else "active, without input embedding"
    rows = [
        *(
            (f"  {name}", _exact(active[name]), _about(active[name]), _exact(step[name]))
            for name in ("dense", "routed")
        ),
        (
            "active, with input embedding",
            *(_exact(active["parameters"]), _about(active["parameters"]), _exact(step["total"])),
        ),
        (rest, _exact(active["without_embedding"]), _about(active["without_embedding"]), ""),
        ("stored elements, scales included", _exact(active["stored_elements"]), "", ""),
        ("KV cache per token of context, bf16", "", "", _exact(step["kv_per_context_token"])),
    ]
    if step["kv_per_context_token_beyond_windows"] != step["kv_per_context_token"]:
        rows.append(("  beyond sliding windows", "", "", _exact(step["kv_per_context_token_beyond_windows"])))
    print_table(("one token uses", "parameters", "about", "bytes read"), rows)


def _print_formats(document: dict[str, Any]) -> None:
    rows = []
    for name, row in document["formats"].items():
        rules = document["format_rules"].get(name, [""])
        more = f" (and {len(rules) - 1} more)" if len(rules) > 1 else ""
        rows.append((name, _exact(row["parameters"]), _exact(row["bytes"]), rules[0] + more))
    print_table(("format", "parameters", "bytes with scales", "decided by"), rows, note=True)


def _print_layers(document: dict[str, Any]) -> None:
    """One row per run of equal layers."""
    layers = document["per_layer"]
    stacks = {row["stack"] for row in layers}

    def alike(row: dict[str, Any]) -> tuple[Any, ...]:
        pools = tuple((p["experts"], p["top_k"]) for p in row["pools"])
        return row["stack"], row["dense"], row["routed"], row["bytes"], pools

    rows = []
    for (stack, dense, routed, size, pools), run in groupby(layers, alike):
        numbers = [row["layer"] for row in run]
        name = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
        rows.append(
            (
                name if len(stacks) == 1 else f"{stack} {name}",
                _exact(dense),
                _exact(routed),
                " + ".join(_exact(count) for count, _ in pools),
                " + ".join(_exact(top_k) for _, top_k in pools),
                _exact(size),
            )
        )
    print_table(("layers", "dense", "routed", "experts", "per token", "bytes"), rows)
