"""A user's own naming rules: what they decide, and one line for every way a file of them can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moegauge.cli import main
from moegauge.counting.rules import read_rules
from moegauge.counting.sources.sparse import Tensor, write_sparse
from moegauge.errors import MoegaugeError

CONFIG: dict[str, Any] = {
    "model_type": "new",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def checkpoint(folder: Path) -> Path:
    """One layer whose experts are called what no rule and no structure knows."""
    tensors = [
        ("model.embed_tokens.weight", "BF16", (100, 64)),
        ("lm_head.weight", "BF16", (100, 64)),
        *((f"model.layers.0.self_attn.{n}_proj.weight", "BF16", (64, 64)) for n in "qkvo"),
        *((f"model.layers.0.zorb.{n}.weight", "BF16", (96, 64)) for n in ("quux", "blarg")),
    ]
    write_sparse(folder, [Tensor(*row) for row in tensors], CONFIG)
    return folder


def rules(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def counted(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `moegauge count`."""
    with pytest.raises(SystemExit) as stop:
        main(["count", *map(str, arguments)])
    return int(stop.value.code or 0), *capsys.readouterr()


def test_a_rule_gives_its_role(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    folder = checkpoint(tmp_path / "model")
    file = rules(
        tmp_path / "rules.toml",
        """
        [[rule]]
        role = "dense_mlp"
        pattern = 'model\\.layers\\.#\\.zorb\\.quux'
        [[rule]]
        role = "vision"
        pattern = '.*\\.zorb\\..*'
        note = "first match wins"
        """,
    )
    code, out, err = counted(capsys, folder, "--rules", file, "--strict", "--json")
    assert code == 0, err
    roles = json.loads(out)["roles"]
    assert roles["dense_mlp"]["parameters"] == roles["vision"]["parameters"] == 96 * 64
    code, _, err = counted(capsys, folder, "--strict")
    assert code == 1
    assert "--rules" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rules"),
        ("x = 1", "holds no rules"),
        ("[[rule]", "is not TOML"),
        ("[[rule]]\nrole = 'router'", "rule 1: needs role and pattern"),
        ("[[rule]]\nrole = 'router'\npattern = 3", "rule 1: role, pattern and note are strings"),
        ("[[rule]]\nrole = 'router'\npattern = '('", "rule 1: the pattern is no regular expression"),
        ("[[rule]]\nrole = 'experts'\npattern = 'a'", "routed_expert"),
        ("[[rule]]\nrole = 'router'\npattern = 'a'\nlayer = '3'", "nothing else"),
        ("[[rule]]\nrole = 'router'\npattern = 'a'\n[[rule]]\nrole = 'unclassified'\npattern = 'b'", "rule 2"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(MoegaugeError, match=r"rules.toml") as error:
        read_rules(rules(tmp_path / "rules.toml", text))
    assert said in str(error.value) + error.value.advice


def test_a_file_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(MoegaugeError, match=r"none.toml: cannot be read: No such file"):
        read_rules(tmp_path / "none.toml")
