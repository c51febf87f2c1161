"""Structure before names: what stays exact when rules or all words are taken away.

The oracle is each family's module tree (`tests/data/families`) and its count with every rule in place.
"""

from __future__ import annotations

import json
import logging
import random
import re
from pathlib import Path

import pytest

from moegauge.counting import roles
from moegauge.counting.config import read_facts
from moegauge.counting.storage import MAIN_LEAVES, split_leaf
from moegauge.counting.structure import find_numbering

FAMILIES = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).resolve().parents[1] / "data" / "families").glob("*.json"))
}
LOG = logging.getLogger(__name__)  # shown by: pytest --log-cli-level=INFO
NAMINGS = ("saved", "runtime")
# Wrong without every row a family uses: Doge (an expert is one row), MiniMax (constants of its decay as weights).
LIMITS = {"routed": 0.98, "total": 0.98, "dense": 0.95, "active": 0.95, "bytes_per_token": 0.95}


def modules(rows):
    """What rules are matched against: module templates, and whole templates of leaves no layout knows."""
    for template in {roles.template_of(name) for name, _, _ in rows}:
        module, leaf = split_leaf(template)
        yield module if leaf in MAIN_LEAVES else template
        yield template


@pytest.fixture(scope="module")
def used():
    """(family, naming) -> the positions in the table of the rules it uses."""
    found = {}
    for name, family in FAMILIES.items():
        for naming in NAMINGS:
            templates = {template.format(*many[0]) for template, _, _, many in family[naming]}
            found[name, naming] = {
                next(i for i, (_, pattern) in enumerate(roles._COMPILED) if pattern.fullmatch(module))
                for module in modules([(template, "", ()) for template in templates])
                if roles.role_of(module) != "unclassified"
            }
    return found


@pytest.fixture
def without(monkeypatch):
    """Take rules out of the table, for one test."""

    def drop(positions):
        kept = tuple(row for i, row in enumerate(COMPILED) if i not in positions)
        monkeypatch.setattr(roles, "_COMPILED", kept)
        roles.role_of.cache_clear()

    yield drop
    monkeypatch.undo()
    roles.role_of.cache_clear()


COMPILED = roles._COMPILED


def numbers(census):
    return {
        "routed": census.routed,
        "total": census.total,
        "dense": census.dense,
        "active": census.active,
        "bytes_per_token": census.dense_bytes + (census.routed_bytes or 0),
    }


def percent(shares):
    return ", ".join(f"{field} {share:.1%}" for field, share in shares.items())


def relatives(name):
    """A family and its text-only twin are one."""
    return name.replace("_text", "").replace("_thinker", "")


def shares(synthetic, without, dropped):
    """Field -> the share of families, under both namings, that stay exact without `dropped(family, naming)`."""
    right = dict.fromkeys(LIMITS, 0)
    for name, family in FAMILIES.items():
        for naming in NAMINGS:
            rows = synthetic.unfold(family[naming])
            without(())
            known = numbers(synthetic.census(rows, family["config"]))
            without(dropped(name, naming))
            census = synthetic.census(rows, family["config"])
            got = numbers(census)
            for field in LIMITS:
                right[field] += got[field] == known[field] and (field == "total" or not census.unclassified())
    return {field: count / (len(NAMINGS) * len(FAMILIES)) for field, count in right.items()}


def test_leave_one_family_out(synthetic, without, used):
    """Without the rules only this family needs, its counts are the same."""

    def own(name, naming):
        others = (rules for (other, _), rules in used.items() if relatives(other) != relatives(name))
        return (used[name, "saved"] | used[name, "runtime"]) - set().union(*others)

    found = shares(synthetic, without, own)
    LOG.info("the rules only it needs: %s", percent(found))
    assert all(found[field] >= limit for field, limit in LIMITS.items()), found


def test_leave_out_every_rule_a_family_uses(synthetic, without, used):
    """Harder: not one of its names is known by the rule that knew it, shared rules included."""
    found = shares(synthetic, without, lambda name, naming: used[name, naming])
    LOG.info("every rule it uses: %s", percent(found))
    assert all(found[field] >= limit for field, limit in LIMITS.items()), found


def replaced(rows, seed, words_of=r"[A-Za-z]+"):
    """The rows with every word of their names replaced by another, the same word by the same."""
    chosen = random.Random(seed)
    words: dict[str, str] = {}

    def word(match):
        if match[0] not in words:
            words[match[0]] = "".join(chosen.choice("bdfgkmnprst") + chosen.choice("aeiou") for _ in range(5))
        return words[match[0]]

    return [(re.sub(words_of, word, name), dtype, shape) for name, dtype, shape in rows]


@pytest.mark.parametrize("words_of", [r"[A-Za-z]+", r"[A-Za-z_]\w*"], ids=["letters", "components"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_word_replaced(synthetic, naming, words_of):
    """No name means anything: routed and total are still the module tree's for 95 % of families. Replacing whole
    components leaves no number in `expert_7`: copies are then told by being alike."""
    right = {"routed": 0, "total": 0}
    for family in FAMILIES.values():
        rows = synthetic.unfold(family[naming])
        census = synthetic.census(replaced(rows, 1, words_of), family["config"])
        right["routed"] += census.routed == family["oracle"]["routed"]
        right["total"] += census.total == synthetic.census(rows, family["config"]).total
    found = {field: count / len(FAMILIES) for field, count in right.items()}
    LOG.info("every word replaced, %s: %s", naming, percent(found))
    assert min(found.values()) >= 0.95, found


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_without_its_own_rules(name, synthetic, without, used):
    """The routed experts of every family but one are found without the rules written for it."""
    family = FAMILIES[name]
    others = (rules for (other, _), rules in used.items() if relatives(other) != relatives(name))
    without((used[name, "saved"] | used[name, "runtime"]) - set().union(*others))
    for naming in NAMINGS:
        census = synthetic.census(synthetic.unfold(family[naming]), family["config"])
        if name == "doge":  # an expert is one row of two tables: no copies, no stack
            assert census.routed == 0
        else:
            assert (census.routed, census.unclassified()) == (family["oracle"]["routed"], [])


CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 32,
}


def unknown(experts):
    """Two layers of names no rule knows, with these tensors as experts."""
    rows = [("tab.in", "BF16", (32, 8)), ("tab.out_head", "BF16", (32, 8))]
    for layer in range(2):
        rows += [(f"net.stage.{layer}.mix.{n}", "BF16", (8, 8)) for n in ("ka", "ve")]
        rows += [(f"net.stage.{layer}.sel", "BF16", (4, 8))]
        rows += [(f"net.stage.{layer}.{name}", "BF16", shape) for name, shape in experts]
    return rows


@pytest.mark.parametrize(
    "experts",
    [
        [(f"pool.{e}.{m}", (6, 8)) for e in range(4) for m in ("ga", "be")],
        [(f"pool_{e}.{m}", (6, 8)) for e in range(4) for m in ("ga", "be")],
        [(f"pool.{m}.{e}", (6, 8)) for e in range(4) for m in ("ga", "be")],
        [(f"pool.{e}.{m}", (6, 8)) for e in ("an", "en", "in", "on") for m in ("ga", "be")],
        [("pool.ga", (4, 6, 8)), ("pool.be", (4, 6, 8))],
        [("pool.ga.w", (4, 6, 8)), ("pool.be.w", (4, 6, 8))],
    ],
    ids=["numbered", "worded", "matrix first", "named", "stacked", "stacked with a leaf"],
)
def test_experts_by_structure(experts, synthetic):
    census = synthetic.census(unknown(experts), CONFIG)
    assert census.routed == 2 * 2 * 4 * 6 * 8
    assert census.dense == 2 * 32 * 8 + 2 * (2 * 64 + 32)
    assert census.active_routed == census.routed // 2
    assert census.moe_layers == 2
    assert census.to_json()["bytes_per_token"]["kv_per_context_token"] is None  # no name says what mixes tokens
    assert any("KV cache is not given" in warning for warning in census.warnings)
    assert census.common("count") == 4
    # What every token uses, and the experts' two matrices; eight where each expert has a name.
    assert len(census.inferred) == 5 + (8 if experts[0][0] == "pool.an.ga" else 2)


def test_a_bias_of_stacked_experts_is_theirs_and_a_router_is_not(synthetic):
    rows = unknown([("pool.ga", (4, 8, 6)), ("pool.ga_b", (4, 8)), ("pool2.sel", (4, 8))])
    census = synthetic.census(rows, CONFIG)
    assert census.routed == 2 * (4 * 8 * 6 + 4 * 8)


def test_unknown_experts_past_the_decoder_are_prediction(synthetic):
    rows = unknown([(f"pool.{e}.{m}", (6, 8)) for e in range(4) for m in ("ga", "be")])
    longer = [*rows, *((name.replace(".1.", ".2.", 1), d, s) for name, d, s in rows if name.startswith("net.stage.1."))]
    census = synthetic.census(longer, CONFIG)
    assert census.routed == 2 * 2 * 4 * 6 * 8
    assert census.parameters("mtp") == 2 * 4 * 6 * 8 + 2 * 64 + 32


def test_copies_of_a_number_no_config_names_are_in_doubt(synthetic):
    experts = [(f"pool.{e}.{m}", (6, 8)) for e in range(5) for m in ("ga", "be")]
    census = synthetic.census(unknown(experts), CONFIG)
    assert census.routed == 0
    assert census.unclassified() == ["net.stage.#.pool.#.be", "net.stage.#.pool.#.ga"]


def test_a_stack_of_experts_is_none_of_the_dense_mlp_it_is_named(synthetic):
    """Moondream 3 stores its experts as `mlp.fc1.weight`, [experts, rows, columns]."""
    rows = [(f"model.layers.{n}.mlp.fc{i}.weight", "BF16", (4, 6, 8)) for n in range(2) for i in (1, 2)]
    census = synthetic.census(rows, CONFIG)
    assert census.routed == 2 * 2 * 4 * 6 * 8
    dense = [(f"model.layers.{n}.mlp.fc{i}.weight", "BF16", (6, 8)) for n in range(2) for i in (1, 2)]
    assert synthetic.census(dense, CONFIG).routed == 0


def test_a_matrix_a_head_is_no_expert(synthetic):
    """As many heads as experts: a stack beside experts a rule knows is attention's (MLX absorbs kv_b_proj so)."""
    rows = [(f"model.layers.{n}.mlp.experts.{e}.up_proj.weight", "BF16", (6, 8)) for n in range(2) for e in range(4)]
    heads = [(f"model.layers.{n}.self_attn.absorbed", "BF16", (4, 8, 6)) for n in range(2)]
    census = synthetic.census([*rows, *heads], {**CONFIG, "num_attention_heads": 4})
    assert census.routed == 2 * 4 * 6 * 8
    assert census.parameters("other") == 2 * 4 * 8 * 6


def test_what_is_packed_flat_is_in_doubt(synthetic):
    """bitsandbytes keeps no shape; under a name no rule knows it may be all experts or none."""
    rows = unknown([("pool", (96, 1))])
    rows = [(name, "U8" if name.endswith("pool") else dtype, shape) for name, dtype, shape in rows]
    notes = [("absmax", "F32", (3,)), ("quant_map", "F32", (16,)), ("quant_state.bitsandbytes__nf4", "U8", (80,))]
    rows += [(f"net.stage.{n}.pool.{leaf}", dtype, shape) for n in range(2) for leaf, dtype, shape in notes]
    assert synthetic.census(rows, CONFIG).unclassified() == ["net.stage.#.pool"]


def test_promised_experts_that_are_nowhere_leave_large_unknown_matrices_in_doubt(synthetic):
    """Unknown names, in no shape experts have: refused, not silently dense; what has a router's size is dense."""
    census = synthetic.census(unknown([("blob", (40, 9))]), CONFIG)
    assert census.unclassified() == ["net.stage.#.blob", "net.stage.#.mix.ka", "net.stage.#.mix.ve"]
    dense = {name: value for name, value in CONFIG.items() if "expert" not in name}
    assert synthetic.census(unknown([("blob", (40, 9))]), dense).unclassified() == []


def test_layers_are_found_without_a_word_for_them():
    tensors = [(f"net.stage.{n}.x", "BF16", (2,)) for n in range(2)] + [("net.other.0.x", "BF16", (2,))]
    assert find_numbering(tensors, read_facts(CONFIG)).stacks == ("net.stage",)


def test_integers_that_no_packing_explains_are_tables(synthetic):
    rows = [*unknown([("pool.ga", (4, 6, 8)), ("pool.be", (4, 6, 8))]), ("map", "I64", (32,)), ("mask", "BOOL", (32,))]
    census = synthetic.census(rows, CONFIG)
    assert census.by_role()["buffer"]["elements"] == 64
    packed = synthetic.census([*rows, ("words", "I32", (32, 8))], CONFIG)
    assert packed.unclassified() == ["words"]


def test_more_modules_than_any_model_has_are_left_in_doubt(synthetic, monkeypatch):
    """Structure looks at every module several times; a hostile file's half a million stay as they are."""
    rows = unknown([("pool.ga", (4, 6, 8)), ("pool.be", (4, 6, 8))])
    assert synthetic.census(rows, CONFIG).unclassified() == []
    monkeypatch.setattr("moegauge.counting.groups.MOST_PLACED", 5)
    assert len(synthetic.census(rows, CONFIG).unclassified()) == 7
