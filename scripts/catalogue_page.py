"""Write docs/catalogue.md: the table, every count against what is published, disagreements with their reasons.

`make_models.py` writes the page with the catalogue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from moegauge.commands.models import markdown
from moegauge.models.catalogue import Entry

PAGE = Path(__file__).resolve().parent.parent / "docs" / "catalogue.md"
FIGURES = {"hub": "hub_total", "total": "total", "active": "active"}
SAID = {"hub": "elements on the Hub", "total": "total, by its authors", "active": "active, by its authors"}
# Why a count and a published figure differ, by repository and figure.
_NAME = "a size in a name, rounded by whoever gave it"
REASONS: dict[tuple[str, str], str] = {
    (
        "baidu/ERNIE-4.5-VL-28B-A3B-PT",
        "total",
    ): "the name's figure; the two pools of text and vision experts and the tower"
    " are all in the count, and the config is the library's default",
    **dict.fromkeys(
        (("zai-org/GLM-4.5", "total"), ("zai-org/GLM-4.7", "total")),
        "355.24 billion is the decoder with the prediction layer but without its copies, less embedding and head:"
        " 352.80 + 3.99 - 1.55",
    ),
    ("tencent/Tencent-Hunyuan-Large", "active"): "the count with the input embedding, which is tied, is 51.32 billion",
    ("moonshotai/Kimi-K2-Instruct", "hub"): "3,416 elements, 61 layers x 56, that its config does not explain; the base"
    " model's total has them too",
    ("MiniMaxAI/MiniMax-M3", "total"): "the card as quoted says 428; vLLM's recipe says 427, which is the count and the"
    " Hub's total",
    ("inclusionAI/Ling-plus", "active"): "nothing that was found; the total agrees",
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "total"): "the model card counts the vision encoder in; with the"
    " tower of the library's default vision config it is 108.2",
    ("JetBrains/Mellum2-12B-A2.5B-Instruct", "active"): _NAME,
    ("mistralai/Mistral-Small-4-119B-2603", "active"): "vLLM's recipe says 6.5; the count is 6.63 with the embedding"
    " and 6.10 without",
    (
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        "hub",
    ): "2,944 = 23 layers x 128: the Hub's total leaves the routers' correction biases out",
    ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", "hub"): "20,992 = 41 layers x 512: the Hub's total leaves the"
    " routers' correction biases out",
}
# Releases that are not in the catalogue, and why; what cannot be laid out says so itself.
_UNCHECKED = "only the library's defaults are at hand, and no published figure to check them by"
LEFT_OUT: dict[str, str] = {
    "poolside/Laguna-XS-2.1": "the library's defaults count 33,189,975,808, the Hub 33,442,617,088: 30 of the 40 layers"
    " with 64 query heads instead of 48 would make the difference, but no source says so",
    "skt/A.X-K1": _UNCHECKED,
    "stepfun-ai/Step-3.7-Flash-FP8": "its quantisation section does not say how the stacked experts are stored and"
    " no total checks it; Step-3.7-Flash is in",
    "zai-org/GLM-5.3-Flash": _UNCHECKED,
    "Zyphra/ZAYA1-8B": "the library's defaults count 8.84 billion, the name says 8",
    "dots-studio/dots3-note-prev": "the library's defaults count 287.3 and 16.3 billion active, published: 288 and 17",
}


class Check(NamedTuple):
    """One published figure beside the count that comes nearest.

    Attributes:
        entry: the model.
        figure: `hub` (the Hub's total of elements), `total` or `active` (its authors').
        published, count: parameters.
        convention: what `count` counts.
        verdict: `exact`; `rounds` or `truncates`, when the published digits are the count's; else `differs`.
    """

    entry: Entry
    figure: str
    published: int
    count: int
    convention: str
    verdict: str

    @property
    def difference(self) -> int:
        """Published minus counted."""
        return self.published - self.count


def counts(entry: Entry, figure: str) -> dict[str, int]:
    """Convention -> count, for one kind of figure, the plainest convention first."""
    shape = entry.shape()
    table, head = shape.embedding.parameters, shape.head.parameters if shape.head else 0
    untied = table if shape.head else 0
    if figure == "active":
        found = {
            "all of the decoder": entry.active,
            "without the input embedding": entry.active - untied,
            "without embedding and head": entry.active - table - head,
            "decoder and tower": entry.active + entry.beside,
        }
    else:
        found = {
            "decoder": entry.total,
            "decoder and prediction layers": entry.total + entry.mtp,
            "decoder and tower": entry.total + entry.beside,
        }
    if figure == "hub":
        blocks = (
            m.parameters * e.count for la in shape.layers for e in la.experts for m in e.matrices if m.format == "mxfp4"
        )
        found["everything stored, scales as elements"] = entry.stored_elements
        found["decoder, and a scale per 32 MXFP4 weights"] = entry.total + sum(blocks) // 32
        found["decoder, prediction layers and routing tables"] = entry.total + entry.mtp + entry.buffers
    if figure == "total":
        found["without embedding and head"] = entry.total - table - head
    return found


def verdict(count: int, published: int) -> str:
    """How a published figure stands to a count. Its last digit is its last that is not zero; of two digits and more, at
    most the first two are taken as said (480 billion is 480 give or take 5)."""
    if count == published:
        return "exact"
    digit, size = 1, 10 ** (len(str(published)) - 1)
    while published % (digit * 10) == 0:
        digit *= 10
    digit = min(digit, max(size // 10, min(size, 10**9)))
    if abs(count - published) * 2 <= digit:
        return "rounds"
    return "truncates" if 0 <= count - published < digit else "differs"


def checks(entry: Entry) -> Iterator[Check]:
    """Every published figure of one model beside its count: the plainest convention that agrees, else the nearest."""
    for figure, key in FIGURES.items():
        published = entry.published[key]
        if published is None:
            continue
        found = counts(entry, figure)
        judged = {name: verdict(count, published) for name, count in found.items()}
        if figure == "hub":  # a count of elements is right to the digit or not at all
            judged = {name: said if said == "exact" else "differs" for name, said in judged.items()}
        ranked = [name for said in ("exact", "rounds", "truncates") for name in found if judged[name] == said]
        chosen = ranked[0] if ranked else min(found, key=lambda name: abs(found[name] - published))
        yield Check(entry, figure, published, found[chosen], chosen, judged[chosen])


def table(headings: Iterable[str], rows: Iterable[Iterable[str]], numbers: int = 0) -> list[str]:
    """A Markdown table; its last `numbers` columns are right-aligned."""
    names = list(headings)
    marks = ["---"] * (len(names) - numbers) + ["--:"] * numbers
    return [f"| {' | '.join(row)} |" for row in ([*names], marks, *([*row] for row in rows))]


def page(made: list[Entry], left_out: dict[str, str]) -> str:
    """The whole page."""
    found = [check for entry in made for check in checks(entry)]
    tally = Counter((check.figure, check.verdict) for check in found)

    def said(figure: str, *verdicts: str) -> int:
        return sum(tally[figure, one] for one in verdicts)

    agreed = ("exact", "rounds", "truncates")
    summary = table(
        ("published figure", "exact", "rounds to it", "truncated to it", "differs"),
        ([SAID[figure], *(str(tally[figure, v]) for v in (*agreed, "differs"))] for figure in FIGURES),
        4,
    )
    checked = table(
        ("model", "figure", "counted as", "published", "counted", ""),
        (
            (c.entry.name, SAID[c.figure], c.convention, f"{c.published:,}", f"{c.count:,}", c.verdict)
            for c in found
            if c.verdict != "differs"
        ),
        3,
    )
    differing = table(
        ("model", "figure", "nearest", "published", "counted", "published - counted", "why"),
        (
            (
                *(c.entry.name, SAID[c.figure], c.convention, f"{c.published:,}", f"{c.count:,}"),
                f"{c.difference:+,} ({c.difference / c.published:+.2%})",
                REASONS.get((c.entry.repo, c.figure), "not known"),
            )
            for c in found
            if c.verdict == "differs"
        ),
    )
    sources = table(
        ("model", "config", "tensors", "figures"),
        ((e.name, e.source["config"], e.source["made"], e.published["from"] or "none seen") for e in made),
    )
    missing = table(("release", "why"), sorted(left_out.items()))
    return "\n".join(
        [
            *INTRODUCTION.format(
                models=len(made),
                families=len({e.family for e in made}),
                checks=len(found),
                agreed=sum(said(figure, *agreed) for figure in FIGURES),
                differ=sum(said(figure, "differs") for figure in FIGURES),
            ).splitlines(),
            *("", "## The table", "", "    moegauge models --table --markdown", ""),
            *markdown(made),
            *("", "## Against what is published", "", *CHECKED.splitlines(), ""),
            *summary,
            *("", "### Where they differ", ""),
            *differing,
            *("", "### Where they agree", ""),
            *checked,
            *("", "## Left out", "", *OMITTED.splitlines(), ""),
            *missing,
            *("", "## Sources", ""),
            *sources,
            "",
        ]
    )


INTRODUCTION = """# The catalogue of open MoE models

{models} releases of {families} families ship with the package, one line each in `src/moegauge/models/catalogue.jsonl`:
the counts and the whole shape, so that a name of the table serves wherever a model is asked for.

    moegauge models --table                     # this table; --json, --csv or --markdown
    moegauge models qwen3.5-397b                # one shape as JSON; `-a17b` may be left out where one model answers
    moegauge predict glm-5-fp8 --bandwidth 4800 # every command that asks for a model takes these names
    moegauge count deepseek-v4-pro              # counts the repository the name stands for
    moegauge models --verify kimi-k2 dbrx       # recounts entries from the Hub's headers and prints what differs

No weights were read and no checkpoint was at hand: each release was laid out from its published config. Families that
transformers knows are laid out by the library's own module tree on the meta device, at full size, under the names its
conversion tables say the release uses; the others by the rules of `counting/sources/release_layout.py`. Quantised
releases are stored module by module as their quantisation section says. The layout is then counted like any checkpoint,
and total and routed parameters must equal those of the module tree. Of {checks} published figures {agreed} agree and
{differ} differ; each difference stands below with its reason. Nothing here was read from the repositories themselves:
`--verify` does that, and leaves with 1 when any entry differs.

    python scripts/make_models.py CONFIGS MODELS.csv"""
CHECKED = """The Hub's total of elements must be met to the digit. An author's round figure is met when the count, in
one of the usual conventions, rounds to it or is cut off to it (671 billion is 671.03; 3.3 billion is 3.35 cut off).
Which modules a quantised release keeps in bfloat16 is checked by such a total only where one is published (DeepSeek-V3
and V3.2, Qwen3-30B-A3B-FP8, gpt-oss); MiMo-V2-Flash's config at hand names none to keep, so its bytes take every linear
layer for FP8."""
OMITTED = """Nothing is guessed: a release whose config was not to be had, or whose quantisation file does not say which
modules are quantised, has no entry."""
