"""Classify tensor names into roles (attention, router, routed expert, norm, ...).

A name's numbers are removed first, so 91,991 names become some dozens of templates and each template is classified
once.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from moegauge.counting.families import RULES

# Roles of parameters every token of the text decoder uses.
DENSE_ROLES = ("embedding", "lm_head", "attention", "dense_mlp", "shared_expert", "router", "norm", "other")
ROLES = (
    *DENSE_ROLES,
    "routed_expert",
    "mtp",
    "vision",
    "audio",
    "lookup",
    "buffer",
    "quant_meta",
    "duplicate",
    "unclassified",
)
DECODER_ROLES = frozenset((*DENSE_ROLES, "routed_expert"))

# A whole component that is a number, also spelt `expert_12` (Switch, NLLB).
_NUMBER = re.compile(r"\.(?:expert_)?[0-9]+(?=\.|$)")
_EXPERT = re.compile(r"experts\.(?:expert_)?[0-9]+(?=[.\n]|$)")
_COMPILED = tuple((rule.role, re.compile(rule.pattern)) for rule in RULES)
# Wrappers a trainer leaves in names: torch.compile, FSDP, DDP, activation checkpointing, PEFT.
_WRAPPERS = re.compile(
    r"(?:^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|module|base_layer)(?=\.|$)"
)
# Longer than any real name; bounds the time a hostile one can take to match.
LONGEST_MODULE = 400
# The component before the number that counts layers.
_LAYERS = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer|decoder_layer|meta_mlp|mtp_layers|mtp)\.#(?=\.|$)")


def without_experts(names: list[str]) -> list[str]:
    """`names` with the numbers of experts replaced by `#`, all others kept: `layers.3.mlp.experts.#.up_proj.weight`."""
    found = _EXPERT.sub("experts.#", "\n".join(names)).split("\n")
    if len(found) != len(names):  # a name holds a newline, or there are none
        return [_EXPERT.sub("experts.#", name) for name in names]
    return found


def template_of(name: str) -> str:
    """`name` with every whole-number component replaced by `#`."""
    return _NUMBER.sub(".#", name)


@lru_cache(maxsize=16_384)
def role_of(module: str) -> str:
    """The role of a module's template, e.g. `model.layers.#.mlp.gate` -> `router`; `unclassified` when no row of
    `families.RULES` matches. Layers of multi-token prediction are told apart by their number, not here."""
    if len(module) > LONGEST_MODULE:
        return "unclassified"
    module = _WRAPPERS.sub("", module).removeprefix(".")
    for role, pattern in _COMPILED:
        if pattern.fullmatch(module):
            return role
    return "unclassified"


class LayerPlace(NamedTuple):
    """Where a template holds its layer number.

    Attributes:
        start: characters before the number; -1 when there is none.
        stack: what the layers belong to, e.g. `model.layers`.
    """

    start: int
    stack: str


@lru_cache(maxsize=65_536)
def layer_place(template: str) -> LayerPlace:
    """The layer number's place in names of this template. Only the first number can be one: a name's characters
    before it are the template's."""
    found = _LAYERS.search(template)
    if found is None or template.index("#") != found.end() - 1:
        return LayerPlace(-1, "")
    return LayerPlace(found.end() - 1, template[: found.end() - 2])
