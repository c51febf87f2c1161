"""The JSON document of `moegauge count --json`."""

from __future__ import annotations

from typing import Any

from moegauge.counting.counts import Counts
from moegauge.counting.mixers import kv_bytes_per_token
from moegauge.counting.roles import DENSE_ROLES

SCHEMA = "moegauge.count/1"


def document(census: Counts, *, per_layer: bool = False) -> dict[str, Any]:
    """The document; fields whose value the headers and config do not give are null."""
    checkpoint, groups = census.checkpoint, census.groups
    routed_bytes = census.routed_bytes
    kv, kv_far = kv_bytes_per_token(census)
    out: dict[str, Any] = {
        "schema": SCHEMA,
        "target": {
            "kind": checkpoint.kind,
            "name": checkpoint.name,
            "commit": checkpoint.commit,
            "files": len(checkpoint.headers),
            "tensors": checkpoint.tensors,
            "header_bytes": checkpoint.header_bytes,
            "requests": checkpoint.requests,
        },
        "family": census.facts.family or "unknown",
        "layers": census.layers,
        "moe_layers": census.moe_layers,
        "experts": census.common("count"),
        "top_k": census.common("top_k"),
        "parameters": {
            "total": census.total,
            "decoder": census.decoder,
            "dense": census.dense,
            "routed": census.routed,
            **{role: census.parameters(role) for role in ("mtp", "vision", "audio", "lookup", "unclassified")},
        },
        "active": {
            "parameters": census.active,
            "dense": census.dense,
            "routed": census.active_routed,
            "without_embedding": census.active_without_embedding,
            "stored_elements": census.active_stored_elements,
        },
        "bytes_per_token": {
            "dense": census.dense_bytes,
            "routed": routed_bytes,
            "total": None if routed_bytes is None else census.dense_bytes + routed_bytes,
            "kv_per_context_token": kv,
            "kv_per_context_token_beyond_windows": kv_far,
        },
        "stored": {
            "elements": sum(g.elements for g in groups),
            "bytes": sum(g.bytes for g in groups),
            "quant_meta_elements": sum(g.elements for g in groups if g.role == "quant_meta"),
            "buffer_elements": sum(g.elements for g in groups if g.role == "buffer"),
        },
        "formats": census.by_format(),
        "format_rules": format_rules(census),
        "roles": census.by_role(),
        "unclassified": census.unclassified(),
        "inferred": census.inferred,
        "warnings": census.warnings,
    }
    if per_layer:
        out["per_layer"] = layer_rows(census)
    return out


def format_rules(census: Counts) -> dict[str, list[str]]:
    """For each format, what decided it: dtypes, siblings, config fields."""
    found: dict[str, set[str]] = {}
    for group in census.groups:
        if group.logical is not None and group.rule:
            found.setdefault(group.format, set()).add(group.rule)
    return {name: sorted(rules) for name, rules in sorted(found.items())}


def layer_rows(census: Counts) -> list[dict[str, Any]]:
    """One row per decoder layer and stack: its parameters by kind, its experts, its bytes."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for group in census.groups:
        if group.layer < 0 or group.owner not in (*DENSE_ROLES, "routed_expert"):
            continue
        row = rows.setdefault(
            (group.stack, group.layer),
            {"stack": group.stack, "layer": group.layer, "dense": 0, "routed": 0, "bytes": 0, "pools": []},
        )
        row["routed" if group.owner == "routed_expert" else "dense"] += group.parameters
        row["bytes"] += group.bytes
    for pool in census.pools:
        row = rows[(pool.groups[0].stack, pool.layer)]
        row["pools"].append(
            {"name": pool.name, "experts": pool.count, "top_k": pool.top_k, "parameters": pool.parameters}
        )
    return [rows[key] for key in sorted(rows)]
