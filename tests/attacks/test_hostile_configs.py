"""Config fields of the wrong type: every family's config with strange values in fields it has and fields it lacks."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moegauge.counting import config
from moegauge.counting.errors import BadConfigError
from moegauge.errors import MoegaugeError

FAMILIES = sorted((Path(__file__).resolve().parents[1] / "data" / "families").glob("*.json"))
STRANGE: list[Any] = [
    *(None, [], {}, "x", "", -1, 0, 1, 1.5, True, False, 2**31, 10**40, "128", float("nan"), float("inf")),
    *([1, 1], [0], ["a"], [None, 1], [[1]], [1] * 61, [True, False], [{"a": 1}], [{}], {"a": 1}, {"0": 2}),
    *(["full_attention"] * 3, {"num_experts": 4}, {"0": {"num_experts": [1]}}),
]
FIELDS = [
    *(spelling for spellings in config.FIELDS.values() for spelling in spellings),
    *config.TEXT_SECTIONS, *config.PART_SECTIONS, *config.LAYER_SECTIONS,
    *("layer_types", "layer_group_size", "hybrid_layer_pattern", "use_sliding_window", "moe_layer_freq"),
    *("first_k_dense_replace", "mlp_only_layers", "decoder_sparse_step", "quantization_config", "architectures"),
    *("tie_word_embeddings", "vision_config", "num_experts_per_layer", "model_type", "num_nextn_predict_layers"),
    *("intermediate_size", "mamba_expand", "compression_config"),
]  # fmt: skip
QUANTISED = ("quant_method", "bits", "group_size", "weight_block_size", "config_groups", "ignore", "fmt", "dynamic")


def places(value: Any, here: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if here:
        yield here
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from places(inner, (*here, key))


@pytest.mark.parametrize("part", range(4))
def test_every_family(part: int, synthetic: Any) -> None:
    rng = random.Random(part)
    for path in FAMILIES[part::4]:
        family = json.loads(path.read_text())
        headers = synthetic.unfold(family["saved"])
        own = list(places(family["config"]))
        for _ in range(6):
            document = copy.deepcopy(family["config"])
            kind = rng.random()
            if kind < 0.5:
                place: tuple[str, ...] = rng.choice(own)
            elif kind < 0.9:
                place = (rng.choice(FIELDS),)
            else:
                place = ("quantization_config", rng.choice(QUANTISED))
                document["quantization_config"] = {"quant_method": "fp8"}
            holder: Any = document
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = value = copy.deepcopy(rng.choice(STRANGE))
            try:
                census = synthetic.census(headers, document)
                json.dumps(census.to_json(per_layer=True), allow_nan=False)
                census.model_shape()
            except MoegaugeError:
                pass  # one line, as every one of them is
            except Exception as error:
                raise AssertionError(f"{path.stem}: {place} = {value!r}") from error


@pytest.mark.parametrize("field", ["num_hidden_layers", "n_layers", "hidden_size", "vocab_size"])
def test_a_list_where_one_number_is_meant(field: str) -> None:
    with pytest.raises(BadConfigError, match=rf"config\.json: {field} is \[1, 1\], a list where one number is meant"):
        config.read_facts({field: [1, 1]})


def test_architectures_that_are_no_list(synthetic: Any) -> None:
    family = json.loads(FAMILIES[0].read_text())
    document = {**family["config"], "architectures": 5}
    assert synthetic.census(synthetic.unfold(family["saved"]), document).warnings is not None
