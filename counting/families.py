"""The naming rules of every family, as data: one row says what role a module's name means. First match wins.

A pattern is a regular expression that must match a whole module name in which numbers are `#`
(`model.layers.#.mlp.experts.#.gate_proj`). To support a new family add the rows its names need here, and its headers to
the tests; no branch is added anywhere.
"""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """One row: names that match `pattern` have role `role`; `note` says whose names they are."""

    role: str
    pattern: str
    note: str = ""


# Wrappers that hold a text decoder without changing what it is.
WRAP = (
    r"(?:(?:model|language_model|text_model|llm|thinker|transformer|backbone|base_model|decoder|encoder|gpt|core)\.)*"
)
# One layer of a stack.
LAYER = WRAP + r"(?:layers|h|blocks|block|layer|decoder_layer)\.#\."
# The gated and plain MLP projections of every family.
MLP = (
    r"(?:gate_proj|up_proj|down_proj|gate_up_proj|w1|w2|w3|v1|wi|wo|wi_0|wi_1|fc1|fc2|gate|up|down|dense_h_to_4h"
    r"|dense_4h_to_h|linear|linear_1|linear_v|input_linear|output_linear|c_fc|c_proj|dense)"
)
# Modules that hold a layer's feed-forward part.
FEED = r"(?:mlp|mlps\.#|ffn|feed_forward|block_sparse_moe|moe|moe_block|mixer|ff|MLP)"
# Modules that hold a layer's token mixer.
ATTEND = (
    r"(?:self_attn|self_attn\.#|attention|attn|self_attention|linear_attn|self_attn_linear|mixer|mamba|temporal_block)"
)

RULES: tuple[Rule, ...] = (
    # Towers and drafters: whole subtrees.
    Rule("vision", r"(?:model\.)?(?:visual|vision_tower|vision_model|vision_encoder|vit)\..+"),
    Rule("vision", r"(?:model\.)?(?:mm_projector|multi_modal_projector|vision_projector|image_newline)(?:\..+)?"),
    Rule("mtp", r"(?:model\.)?mtp(?:_block|_emb_norm|_hidden_norm|_linear_proj|_layers)?\..+", "appended drafters"),
    # Buffers: computed or looked up, never multiplied.
    Rule("mtp", LAYER + r"(?:enorm|hnorm|eh_proj|shared_head\.(?:norm|head)|embed_tokens)"),
    Rule("buffer", r".+\.(?:rotary_emb|rope)\.(?:inv_freq|cos_cached|sin_cached)"),
    Rule("buffer", r".+\.tid2eid", "DeepSeek-V4: token id to expert id"),
    # Routers before experts: their names are narrower.
    Rule("router", LAYER + FEED + r"\.(?:gate|router)(?:\.(?:e_score_correction_bias|wg|layer|classifier|gate))?"),
    Rule("router", LAYER + FEED + r"\.(?:e_score_correction_bias|expert_bias|router_bias)"),
    # Shared experts and their gates.
    Rule("shared_expert", LAYER + FEED + r"\.(?:shared_experts?|share_expert|shared_mlp)\." + MLP),
    Rule("shared_expert", LAYER + FEED + r"\.shared_expert_gate"),
    # Routed experts: P1-P6 by number, F1, F2, F7 fused.
    Rule("routed_expert", LAYER + FEED + r"\.experts\.#\." + MLP),
    Rule("routed_expert", LAYER + FEED + r"\.experts\.(?:gate_up_proj|down_proj)(?:_bias)?"),
    # What every token uses.
    Rule("embedding", WRAP + r"(?:embed_tokens|wte|word_embeddings|tok_embeddings|embeddings|embed)"),
    Rule("lm_head", WRAP + r"(?:lm_head|output|head|embed_out)"),
    Rule("norm", WRAP + r"(?:norm|final_layernorm|ln_f|norm_f|final_norm)"),
    Rule("norm", LAYER + r"(?:input_layernorm|post_attention_layernorm|pre_feedforward_layernorm|norm)"),
    Rule("norm", LAYER + ATTEND + r"\.(?:q_norm|k_norm|q_a_layernorm|kv_a_layernorm)"),
    Rule("attention", LAYER + ATTEND + r"\.(?:q|k|v|o)_proj"),
    Rule("attention", LAYER + ATTEND + r"\.(?:q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|sinks)"),
    Rule("dense_mlp", LAYER + FEED + r"\." + MLP),
)
