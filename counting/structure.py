"""Which tensors are routed experts, told from numbering, shapes and the config's expert counts: names are not asked.

Routed experts are numbered copies of equal shape under a layer, as many as the config names, or stacks whose first
dimension is that number; what every token uses is the rest. This places the names no rule knows, and overrules a rule
that takes a stack of experts for a dense MLP. Where the split cannot be told (no config, copies of a number the config
does not name) a name stays `unclassified`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import NamedTuple

from moegauge.counting.config import Facts
from moegauge.counting.families import HEAD_WORDS, WORDS
from moegauge.counting.group import NO_LAYER, Group
from moegauge.counting.packings import PLAIN, Shape
from moegauge.counting.roles import DENSE_ROLES, LayerPlace, layer_place, template_of
from moegauge.limits import MOST_NUMBERS

Module = list[Group]
# Fewer copies than this are halves, branches and heads; as many or more might be experts no config names.
FEWEST_EXPERTS = 4
UNKNOWN = -1
# A word that is numbered itself, as in `expert_7`.
_WORDED_NUMBER = re.compile(r"\.([A-Za-z_]*[A-Za-z])_?([0-9]{1,5})(?=\.|$)")
# A component that says it holds experts, shared ones apart.
_EXPERTS = re.compile(r"\.(?!share)(?:[a-z_]*_)?experts?(?=[._]|$)")
# Never weights, whatever they are called; a packer's words are 32-bit or bytes.
_INDEX_DTYPES = frozenset(("I64", "U64", "BOOL"))


class Numbering(NamedTuple):
    """What numbers in names mean, where no rule knows the words before them.

    Attributes:
        stacks: what stands before a layer's number, e.g. `model.stages`.
        words: words whose own number counts experts, e.g. `ffn` of `ffn_0`, `ffn_1`.
    """

    stacks: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def template(self, name: str) -> str:
        """`name` with every number replaced by `#`."""
        return template_of(_worded(self.words).sub(".#", name) if self.words else name)

    def place(self, template: str) -> LayerPlace:
        """Where names of this template hold their layer's number."""
        for stack in self.stacks:
            if template.startswith(f"{stack}.#"):
                return LayerPlace(len(stack) + 1, stack)
        return layer_place(template)


@lru_cache(maxsize=64)
def _worded(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"\.(?:{'|'.join(map(re.escape, words))})_?[0-9]+(?=\.|$)")


def find_numbering(tensors: Collection[tuple[str, str, Shape]], facts: Facts) -> Numbering:
    """The stacks of layers and the numbered words among names no rule knows.

    Args:
        tensors: (name, dtype, shape) of every tensor.
        facts: the config's layers and expert counts.
    """
    seen: dict[str, set[int]] = {}
    for name, _, _ in tensors:
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdecimal()), 0)
        if 0 < at < len(parts) - 1 and len(parts[at]) < 6:
            seen.setdefault(".".join(parts[:at]), set()).add(int(parts[at]))
    if facts.layers is not None:
        wanted = set(range(min(facts.layers, MOST_NUMBERS)))
        stacks = [stack for stack, numbers in seen.items() if wanted <= numbers]
    else:
        longest = max((len(numbers) for numbers in seen.values()), default=0)
        stacks = [stack for stack, numbers in seen.items() if len(numbers) == longest > 1]
    stacks += [stack for stack in _shared_experts(tensors, facts) if stack not in stacks]
    unknown = tuple(stack for stack in stacks if layer_place(f"{stack}.#.x").start < 0)
    return Numbering(unknown, _expert_words(tensors, facts))


def _shared_experts(tensors: Iterable[tuple[str, str, Shape]], facts: Facts) -> list[str]:
    """What stands before the first number of names with two, where the second counts as many experts as the config
    names: experts that several layers share, so numbered on their own."""
    copies: dict[tuple[str, str], set[int]] = {}
    for name, _, _ in tensors:
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdecimal() and len(part) < 6]
        if len(numbers) == 2 and numbers[0] > 0:
            first, second = numbers
            key = (
                ".".join(parts[:first]),
                ".".join([*parts[:first], *parts[first + 1 : second], *parts[second + 1 :]]),
            )
            copies.setdefault(key, set()).add(int(parts[second]))
    wanted = [set(range(min(count, MOST_NUMBERS))) for count in facts.expert_counts]
    return list(dict.fromkeys(stack for (stack, _), numbers in copies.items() if numbers in wanted))


def _expert_words(tensors: Iterable[tuple[str, str, Shape]], facts: Facts) -> tuple[str, ...]:
    """Words numbered from 0 to one less than the experts of a layer, each time over tensors of equal shape."""
    wanted = [set(range(min(count, MOST_NUMBERS))) for count in facts.expert_counts]
    if not wanted:
        return ()
    found: dict[str, dict[tuple[str, str, Shape], set[int]]] = {}
    for name, dtype, shape in tensors:
        for match in _WORDED_NUMBER.finditer(name):
            rest = name[: match.start()] + name[match.end() :]
            found.setdefault(match[1], {}).setdefault((rest, dtype, shape), set()).add(int(match[2]))
    return tuple(word for word, copies in found.items() if all(numbers in wanted for numbers in copies.values()))


class _Copies(NamedTuple):
    """A module that exists many times in one layer.

    Attributes:
        groups: its tensors.
        container: what stands before the expert's number, or the module that holds the stack.
        number: numbered copies, or the stack's first dimension; UNKNOWN for what is packed flat.
    """

    groups: Module
    container: str
    number: int


def place(modules: list[Module], facts: Facts) -> list[str]:
    """Give every group no rule knows a role, but for those whose side of the split is in doubt.

    Args:
        modules: the tensors of each module in each layer.
        facts: what the config says.

    Returns:
        The templates placed, sorted.
    """
    if not any(_is_open(group) for module in modules for group in module):
        return []
    before = {id(group) for module in modules for group in module if group.role == "unclassified"}
    _drop_indices(modules)
    doubtful = _place_experts(modules, facts)
    rest = [
        m for m in modules if m[0].owner == "unclassified" and id(m) not in doubtful and _weight(m).format != "unknown"
    ]
    _Rest(modules, facts).place(rest)
    placed = {g.template for module in modules for g in module if id(g) in before and g.role != "unclassified"}
    return sorted(placed)


def _is_open(group: Group) -> bool:
    """True for what structure may decide: an unknown name, or copies or a stack under a dense MLP's name."""
    return group.owner == "unclassified" or (
        group.owner == "dense_mlp" and (group.tensors > 1 or len(group.logical or ()) > 2)
    )


def _weight(module: Module) -> Group:
    """The tensor of a module that holds its weights."""
    return max(module, key=lambda group: group.parameters)


def _become(module: Module, role: str, pool: str = "") -> None:
    for group in module:
        group.owner, group.pool = role, pool
        if group.role not in ("quant_meta", "buffer"):
            group.role = role


def _drop_indices(modules: list[Module]) -> None:
    """Integers no packer makes are tables of indices: buffers."""
    for module in modules:
        for group in module:
            if group.role == "unclassified" and group.format == "unknown" and group.dtype in _INDEX_DTYPES:
                group.role = group.owner = group.format = "buffer"
                group.rule, group.logical = "integers no packing explains", None


def _place_experts(modules: list[Module], facts: Facts) -> set[int]:
    """Make the routed experts among unknown names and dense MLPs routed. Returns the ids of the modules in doubt."""
    tensors: dict[tuple[str, int, str], int] = {}
    for module in modules:
        for group in module:
            key = (group.module, group.layer, group.leaf)
            tensors[key] = tensors.get(key, 0) + group.tensors
    candidates: dict[tuple[str, int], list[_Copies]] = {}
    for module in modules:
        weight = _weight(module)
        beside_decoder = any(words.search(f"{weight.stack}.") for _, words in WORDS)
        if weight.owner not in ("unclassified", "dense_mlp") or weight.layer == NO_LAYER or beside_decoder:
            continue
        if weight.format != "unknown":
            copies = _copies(module, weight, tensors[(weight.module, weight.layer, weight.leaf)])
            if copies is not None:
                candidates.setdefault((weight.stack, weight.layer), []).append(copies)
    for place, siblings in _siblings(modules, facts).items():
        candidates.setdefault(place, []).extend(siblings)
    candidates = _in_decoder(candidates, modules, facts)
    named = {(module[0].stack, module[0].layer) for module in modules if module[0].owner == "routed_expert"}
    leftover: list[_Copies] = []
    for (stack, layer), found in candidates.items():
        wanted = {facts.of_layer("experts", layer), *facts.expert_counts} - {None, 0, 1}
        alike = [copies for copies in found if copies.number in wanted and not _may_be_heads(copies, facts, named)]
        if (stack, layer) in named:  # a rule knows this layer's experts: a dense MLP is what it is called
            alike = [copies for copies in alike if copies.groups[0].owner == "unclassified"]
        experts = [one for one in alike if any(len(_weight(o.groups).shape) > 1 for o in alike if _beside(o, one))]
        pools = _pools(experts)
        for copies in experts:
            role = "mtp" if facts.is_appended(stack, layer) else "routed_expert"
            _become(copies.groups, role, pools[copies.container])
        known = bool(experts) or (stack, layer) in named
        leftover += [
            copies
            for copies in found
            if copies.groups[0].owner == "unclassified"
            and not 0 <= copies.number < FEWEST_EXPERTS
            and (not known or _may_be_more_experts(copies))
        ]
    _join_biases(modules)
    routed = any(module[0].owner == "routed_expert" for module in modules)
    doubtful = {id(copies.groups) for copies in leftover}
    if facts.expert_counts and not routed and not leftover and not _place_rows(modules, facts):
        doubtful = {id(module) for module in modules if _may_be_all_experts(module, facts)}
    return doubtful | _called_experts(modules)


def _may_be_more_experts(copies: _Copies) -> bool:
    """True for numbered matrices, of whatever number, in a layer whose experts are known: GroveMoE has experts that
    several routed ones share. A stack there is one matrix a head."""
    weight = _weight(copies.groups)
    return ".#" in weight.module[len(weight.stack) + 2 :] and len(weight.shape) > 1


def _called_experts(modules: list[Module]) -> set[int]:
    """The ids of matrices called experts in a layer that has a router but none counted: a dense part has no router."""
    words: dict[tuple[str, int], set[str]] = {}
    for module in modules:
        place = (module[0].stack, module[0].layer)
        called = module[0].module[len(module[0].stack) + 2 :]
        words.setdefault(place, set()).update({module[0].owner} | {"router"} & set(re.split(r"[._]", called)))
    return {
        id(module)
        for module in modules
        if module[0].owner == "unclassified" and module[0].layer != NO_LAYER and len(_weight(module).shape) > 1
        if not any(tower.search(f"{module[0].stack}.") for _, tower in WORDS)
        if _EXPERTS.search(module[0].module)
        if "router" in (held := words[(module[0].stack, module[0].layer)]) and "routed_expert" not in held
    }


def _may_be_all_experts(module: Module, facts: Facts) -> bool:
    """True for an unknown matrix of a layer larger than a router, where the promised experts are nowhere else."""
    weight = _weight(module)
    routed = weight.owner == "unclassified" and weight.layer != NO_LAYER and weight.format != "unknown"
    size = min(facts.expert_counts) * (facts.hidden or 1)
    return routed and len(weight.logical or ()) > 1 and weight.parameters > weight.tensors * size


def _in_decoder(
    candidates: dict[tuple[str, int], list[_Copies]], modules: list[Module], facts: Facts
) -> dict[tuple[str, int], list[_Copies]]:
    """The candidates in the text decoder, where towers may have experts too: its stack stands nearest
    to the tables of the vocabulary, by the prefix they share. All of them where that tells nothing."""
    if not facts.modalities or len({stack for stack, _ in candidates}) < 2:
        return candidates
    tables = [m[0].module.split(".") for m in modules if _is_table(_weight(m), facts, exact=True)]
    scores = {}
    for stack in {stack for stack, _ in candidates}:
        depths = [_shared(stack.split("."), table) for table in tables]
        scores[stack] = (max(depths, default=0), sum(depths))
    best = max(scores.values())
    return {place: found for place, found in candidates.items() if scores[place[0]] == best}


def _shared(one: list[str], other: list[str]) -> int:
    """Components two dotted names begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _is_table(group: Group, facts: Facts, *, exact: bool = False) -> bool:
    """A matrix [vocabulary, hidden], either way round, outside every layer; the vocabulary may be padded."""
    if group.layer != NO_LAYER or len(group.logical or ()) != 2 or not facts.vocabulary or not facts.hidden:
        return False
    width, rows = sorted(group.logical or ())
    padding = 0 if exact else max(1024, facts.vocabulary // 8)
    return facts.hidden in (width, rows) and facts.vocabulary <= rows <= facts.vocabulary + padding


def _copies(module: Module, weight: Group, tensors: int) -> _Copies | None:
    """How often a module exists in its layer; None when once."""
    below = weight.module[len(weight.stack) + 2 :]  # after the layer's number
    if ".#" in below:
        return _Copies(module, weight.module[: weight.module.rindex(".#")], tensors)
    logical, container = weight.logical or (), weight.module.rpartition(".")[0]
    if len(logical) >= 3 and min(logical) > 1:
        return _Copies(module, container, logical[0])
    if len(logical) == 1 and len(module) > 1 and weight.format not in PLAIN.values():
        return _Copies(module, container, UNKNOWN)  # packed flat: it may be a stack
    return None


def _beside(one: _Copies, other: _Copies) -> bool:
    """Two modules of the same experts: norms and biases go with matrices."""
    return one.container == other.container or one.container.rpartition(".")[0] == other.container.rpartition(".")[0]


def _siblings(modules: list[Module], facts: Facts) -> dict[tuple[str, int], list[_Copies]]:
    """Experts told apart by words, not numbers: as many children of one parent as the config names, alike in every
    tensor, with two matrices or more each (four equal projections of attention have one)."""
    children: dict[tuple[str, int, str], dict[str, list[tuple[str, Module]]]] = {}
    for module in modules:
        weight = _weight(module)
        if weight.owner == "unclassified" and weight.layer != NO_LAYER and weight.format != "unknown":
            parts = weight.template[len(weight.stack) + 3 :].split(".")
            for at in range(1, len(parts) - 1):
                key = (weight.stack, weight.layer, ".".join(parts[:at]))
                rest = ".".join(parts[at + 1 :])
                children.setdefault(key, {}).setdefault(parts[at], []).append((rest, module))
    found: dict[tuple[str, int], list[_Copies]] = {}
    for (stack, layer, parent), by_name in children.items():
        alike: dict[tuple[tuple[str, str, Shape], ...], list[Module]] = {}
        copies: Counter[tuple[tuple[str, str, Shape], ...]] = Counter()
        for tensors in by_name.values():
            signature = tuple(sorted((rest, g.dtype, g.shape) for rest, module in tensors for g in (_weight(module),)))
            copies[signature] += 1
            alike.setdefault(signature, []).extend(module for _, module in tensors)
        for signature, number in copies.items():
            if number in facts.expert_counts and sum(len(shape) > 1 for _, _, shape in signature) > 1:
                container = f"{stack}.#.{parent}"
                found.setdefault((stack, layer), []).extend(_Copies(m, container, number) for m in alike[signature])
    return found


def _may_be_heads(copies: _Copies, facts: Facts, named: set[tuple[str, int]]) -> bool:
    """True for a stack that may as well be one matrix a head (MLX's absorbed attention): as many as heads, and the
    layer's experts are known, or no side of it is the hidden size."""
    weight = _weight(copies.groups)
    stacked = len(weight.logical or ()) > 2 and ".#" not in weight.module[len(weight.stack) + 2 :]
    if not stacked or copies.number not in (facts.heads, facts.kv_heads):
        return False
    return (weight.stack, weight.layer) in named or facts.hidden not in (weight.logical or ())[1:]


def _pools(experts: list[_Copies]) -> dict[str, str]:
    """Container -> the pool it is or is part of: one that holds several modules is a pool; stacks that stand alone in
    theirs (`experts.fc1.weight`) are one pool together."""
    held = Counter(copies.container for copies in experts)
    alone = _common([container for container, modules in held.items() if modules == 1])
    return {container: container if modules > 1 else alone for container, modules in held.items()}


def _common(containers: list[str]) -> str:
    """The longest dotted prefix of all."""
    if not containers:
        return ""
    columns = zip(*(container.split(".") for container in containers), strict=False)
    parts = []
    for column in columns:
        if len(set(column)) > 1:
            break
        parts.append(column[0])
    return ".".join(parts)


def _join_biases(modules: list[Module]) -> None:
    """A matrix [experts, width] beside a stack [experts, ..., width, ...] of the same parent is the experts' bias; one
    that stands elsewhere is the router."""
    stacks: dict[tuple[str, int, str], list[Group]] = {}
    for module in modules:
        weight = _weight(module)
        if weight.owner == "routed_expert" and len(weight.logical or ()) == 3:
            for name in {weight.template.rpartition(".")[0], weight.module.rpartition(".")[0]}:
                stacks.setdefault((weight.stack, weight.layer, name), []).append(weight)
    for module in modules:
        group = _weight(module)
        shape = group.logical or ()
        if group.owner != "unclassified" or len(shape) != 2:
            continue
        for stack in stacks.get((group.stack, group.layer, group.template.rpartition(".")[0]), ()):
            if stack.logical and shape[0] == stack.logical[0] and shape[1] in stack.logical[1:]:
                _become(module, "routed_expert", stack.pool)
                break


def _place_rows(modules: list[Module], facts: Facts) -> bool:
    """Experts stacked on the rows of a matrix (DBRX): as many rows as experts times a width the config names, two or
    more such matrices in a layer. Returns whether there are any."""
    rows = {count * width for count in facts.expert_counts for width in facts.widths}
    found: dict[tuple[str, int], list[Module]] = {}
    for module in modules:
        weight = _weight(module)
        fits = len(weight.logical or ()) == 2 and weight.tensors == 1 and (weight.logical or (0,))[0] in rows
        if fits and weight.layer != NO_LAYER and weight.owner in ("unclassified", "dense_mlp"):
            found.setdefault((weight.stack, weight.layer), []).append(module)
    for stacked in found.values():
        if len(stacked) > 1:
            pool = _common([_weight(module).module.rpartition(".")[0] for module in stacked])
            for module in stacked:
                _become(module, "routed_expert", pool)
    return any(len(stacked) > 1 for stacked in found.values())


class _Rest:
    """Roles of what no token may skip, where no rule knows the name: towers, drafters and tables by general words and
    by where they stand, all else `other`."""

    def __init__(self, modules: list[Module], facts: Facts) -> None:
        decoder = (*DENSE_ROLES, "routed_expert")
        self.facts = facts
        self.stacks = {m[0].stack for m in modules if m[0].layer != NO_LAYER and m[0].owner in decoder}
        if not self.stacks:  # no name is known: the decoder's stack is the one that holds the experts, or the largest
            sizes: dict[str, int] = {}
            for module in modules:
                if module[0].layer != NO_LAYER:
                    sizes[module[0].stack] = sizes.get(module[0].stack, 0) + _weight(module).parameters
            self.stacks = {max(sizes, key=lambda stack: sizes[stack])} if sizes else set()
        self.tables = {role: any(m[0].owner == role for m in modules) for role in ("embedding", "lm_head")}
        self.towers: dict[str, str] = {}

    def place(self, modules: list[Module]) -> None:
        """Set the role of each module."""
        for module in modules:
            if module[0].layer != NO_LAYER:
                _become(module, self._role(module))
        outside = [module for module in modules if module[0].layer == NO_LAYER]
        vocabulary = self.facts.vocabulary or 0
        # A name that says so is the head; of two alike the first is the embedding: either choice gives the same counts.
        tables = sorted(
            (module for module in outside if _is_table(_weight(module), self.facts) and self._role(module) == "other"),
            key=lambda m: (not HEAD_WORDS.search(m[0].module), abs(max(_weight(m).shape) - vocabulary)),
        )
        for module in tables:
            role = "lm_head" if HEAD_WORDS.search(module[0].module) else "embedding"
            if self.tables[role]:
                role = next((other for other, taken in self.tables.items() if not taken), "other")
            self.tables[role] = True
            _become(module, role)
        for module in outside:
            if module[0].owner == "unclassified":
                _become(module, self._role(module))

    def _role(self, module: Module) -> str:
        group = _weight(module)
        name = group.module
        if group.layer != NO_LAYER and group.stack in self.stacks:
            if self.facts.is_appended(group.stack, group.layer):
                return "mtp"
            return "lookup" if self._is_lookup(group) else "other"
        worded = next((role for role, words in WORDS if words.search(name)), None)
        if worded is not None:
            return worded
        if self._is_lookup(group):
            return "lookup"
        tower = next((role for root, role in self.towers.items() if name.startswith(f"{root}.")), None)
        if tower is None and group.layer != NO_LAYER and self.facts.modalities and self.stacks:
            root = self._root(group.stack)
            if root:
                tower = self.towers[root] = "vision" if "vision" in self.facts.modalities else "audio"
        return tower or "other"

    def _root(self, stack: str) -> str:
        """The shortest prefix of a stack that no decoder stack shares; empty when there is none."""
        parts = stack.split(".")
        prefixes = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
        return next((p for p in prefixes if not any(f"{known}.".startswith(f"{p}.") for known in self.stacks)), "")

    def _is_lookup(self, group: Group) -> bool:
        """A table of more rows than the vocabulary has, or of one as wide as all layers: a step gathers rows of it."""
        logical, vocabulary = group.logical or (), self.facts.vocabulary
        if len(logical) != 2 or not vocabulary:
            return False
        return logical[0] >= vocabulary and logical[1] != self.facts.hidden and "embed" in group.module
