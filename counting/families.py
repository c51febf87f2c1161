"""Naming rules of model families, as data: one row says what role a module's name means.

First match wins.

A pattern is a regular expression that must match a whole module name in which numbers are `#`
(`model.layers.#.mlp.experts.#.gate_proj`). To support a new family add the rows its names need here, and its headers to
the tests; no branch is added anywhere. Names are those of transformers 5 (`conversion_mapping.py` and the modelling
files), of the remote-code models named in the notes, and of the native layouts of DeepSeek and Mistral.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Rule(NamedTuple):
    """One row: names that match `pattern` have role `role`; `note` says whose names they are."""

    role: str
    pattern: str
    note: str = ""


# Wrappers that hold a text decoder without changing what it is.
WRAP = (
    r"(?:(?:model|language|language_model|text_model|llm|lm|text|thinker|transformer|backbone|base_model|decoder|encoder|ernie"
    r"|gpt_model|actor|policy|student|pretrained_model)\.)*"
)
# One layer of a stack; T5-style blocks hold numbered sublayers.
LAYER = WRAP + r"(?:(?:layers|h|blocks|block|layer|decoder_layer|meta_mlp)\.#|midlayer)\.(?:layer\.#\.)?"
# Modules that hold a layer's feed-forward part; some families have none and hang experts on the layer itself.
FEED = (
    r"(?:(?:mlp|mlps\.#|ffn|feed_forward|block_sparse_moe|moe|moe_block|mixer|text_moe|vision_moe"
    r"|deepspeed_moe|feed_forward_moe)\.){1,2}"
)
FEED0 = r"(?:" + FEED + r")?"
# The projections of an MLP in every spelling.
MLP = (
    r"(?:gate_proj|up_proj|down_proj|gate_up_proj|gate_and_up_proj|up_gate_proj|w1|w2|w3|v1|wi|wo|wi_0|wi_1|fc1|fc2|fc11"
    r"|fc12|linear|linear_1|linear_v|linear_gate|input_linear|output_linear|dense_h_to_4h|dense_4h_to_h|c_fc|c_proj"
    r"|linear_fc1|linear_fc2|w13_dn|w2_md|w13|gate_up_projs|down_projs|gate_projs|up_projs)"
)
# Modules that hold a layer's token mixer.
ATTEND = (
    r"(?:self_attn|self_attn\.#|attention|attn|self_attention|linear_attn|mixer|mamba|conv|SelfAttention"
    r"|EncDecAttention|cross_attention|encoder_attn|norm_attn_norm\.attn|mla_attn|gated_delta_net|kda)\."
)
# Parts of a token mixer that hold projections of their own.
INNER = (
    r"(?:(?:indexer|compressor|scorer|forget_gate|qkv_proj|softmax_scaling|ssmax_scaling|k_sconv|v_sconv|q_l2_clip"
    r"|rel_l2_clip|rel_logits_proj|qk_norm)\.)*"
)
MIX = (
    r"(?:q|k|v|o|qkvg_proj|wq|wk|wv|wo|Wqkv|dense|out_proj|in_proj|x_proj|dt_proj|c_proj|c_attn|query_key_value|output_gate|conv"
    r"|conv1d|[qkv]_conv1d|[qkv]_conv\.conv|kv_proj|[qkv]kv_proj|qk_proj|index_(?:q|k|qk)_proj|[qkvobgfr]_proj|[qgof]_[ab]_proj|q_gate_proj"
    r"|kv_a_proj_with_mqa|kv_a_proj|kv_b_proj|fused_qkv_a_proj_with_mqa|gate_proj|gate_attn|linear_gate|weights_proj"
    r"|weight_proj|wq_[ab]|wo_[ab]|wkv|wkv_b|wkv_a_with_mqa|wgate|w[qr]_du|w[kv]_dv|wo_ud|in_proj_(?:qkv|z|a|b|ba|qkvz)"
    r"|qkv|out|embed_q|unembed_out|linear_(?:qkv|proj|q_proj|q_down_proj|q_up_proj|kv_down_proj|kv_up_proj|qkv_down_proj)"
    r"|in_proj_[a-z]+|v_router|tau_(?:alpha|wq|wv)|tau\.(?:alpha|wq|wv)|param_sink_(?:key|value)|sink_k|core_attention\.softmax_offset"
    r"|v_proj_(?:current|delayed)|conv_qk_(?:depthwise|grouped)|sink_proj|attn_sink_proj|proj|relative_attention_bias"
    r"|A|A_log|D|dt_bias|ape|temp|scale|bias|s|b|softmax_scaling|ssmax_scaling|static_weight|static_w|softmax_offset|sinks|attn_sink|position_bias"
    r"|learnable_sink_param|attention_sink_bias|gate_bias|index_kpool_compress_(?:ape|gate)|k_sconv|v_sconv)"
)
# A component that says it is a norm.
NORM = r"(?:[A-Za-z0-9_]*norm[A-Za-z0-9_]*|(?:[a-z]+_)?ln(?:\d|_[a-z0-9]+)?)(?:\.#)?"
VISION = (
    r"(?:visual|visual_tokenizer|vte|vpm|vision|(?:visual|vision|image|video)_[a-z_]+|img_projector"
    r"|resampler|mlp_mm|mm_vision_tower|moonvit|vit"
    r"|vit_large_projector|vit_downsampler2?|mm_projector|multi_modal_projector|multimodal_projector"
    r"|patch_merger|patch_merge_mlp|pre_mm_projector_norm|resampler_model|sam_model|qwen2_model|projector|embed_vision"
    r"|view_seperator|view_separator|connector|aligner|mlp1)"
)
AUDIO = (
    r"(?:audio|(?:audio|speech)_[a-z_0-9]+|apm|tts|token2wav|whisper|whisper_encoder|codec|embed_audio|talker|code2wav)"
)
# What PEFT keeps beside the base weights.
ADAPTER = r".+\.(?:lora_[A-Za-z_]+|modules_to_save)(?:\.[a-z0-9_]+)?"

RULES: tuple[Rule, ...] = (
    # Towers and drafters: whole subtrees, whatever they hold.
    Rule("vision", WRAP + VISION + r"(?:\..+)?"),
    Rule("audio", WRAP + AUDIO + r"(?:\..+)?", "Qwen3-Omni's talker speaks: it is no part of the text decoder"),
    Rule("mtp", WRAP + r"mtp(?:_block|_emb_norm|_hidden_norm|_linear_proj|_layers)?\..+", "Qwen, ERNIE, DeepSeek-V4"),
    Rule("mtp", LAYER + r"(?:enorm|hnorm|eh_proj|shared_head\.(?:norm|head|output)|embed_tokens)", "DeepSeek-V3, GLM"),
    Rule("mtp", WRAP + r"(?:eagle_linear|eagle_module|medusa_heads?|draft_model|dflash|nextn)(?:\..+)?", "drafters"),
    Rule("other", ADAPTER, "PEFT: an adapter beside its base"),
    # Buffers: computed or looked up by integers, never multiplied.
    Rule("buffer", r".+\.(?:rotary_emb|rope|rotary_pos_emb)\.(?:inv_freq|cos_cached|sin_cached)"),
    Rule("buffer", r".+\.tid2eid", "DeepSeek-V4: token id to expert id"),
    Rule("buffer", WRAP + r"(?:d2t|t2d)", "EAGLE-3: ids of a drafter's vocabulary to the target's and back"),
    Rule("buffer", r".+\._extra_state", "Transformer Engine"),
    Rule("buffer", r".+\.(?:slope_rate|query_decay|key_decay|diagonal_decay)", "MiniMax: constants of the decay"),
    Rule("buffer", r".+\.ple_embedding\.(?:layer_multipliers|ngram_heads_offsets|ngram_heads_vocab_sizes)", "Qwen4"),
    Rule("buffer", r".+\.(?:masked_bias|attn\.bias_mask|num_batches_tracked|tokens_per_expert)"),
    # Scales of the KV cache, kept beside attention whatever the weights' format.
    Rule("quant_meta", r".+\.(?:k_scale|v_scale|q_scale|prob_output_scale|kv_cache_scale)"),
    # Lookup tables: a step gathers one row of each.
    Rule("lookup", WRAP + r"embed_tokens_per_layer", "Gemma: one embedding per layer"),
    Rule("lookup", LAYER + r"(?:ple\.ple_embedding\.ngram_embedding(?:\.shard_\d+)?|engram\.embed)", "Qwen4, DeepSeek"),
    Rule("lookup", WRAP + r"(?:ngram_embeddings?|engram)\..*embed.*", "LongCat: n-gram tables"),
    # Routers before experts: their names are narrower.
    Rule("router", LAYER + FEED0 + r"(?:gate|router)(?:\.(?:wg|layer|classifier|gate|proj|linear|weight_1|bias_vl))?"),
    Rule("router", LAYER + FEED0 + r"(?:moe_gate|gate_network|coefficient)", "Klear"),
    Rule("router", LAYER + FEED0 + r"(?:(?:gate|router|experts)\.)?(?:moe_statics\.)?e_score_correction_bias"),
    Rule("router", LAYER + FEED0 + r"(?:gate\.|router\.)?(?:correction_bias|expert_biases)"),
    Rule("router", LAYER + FEED0 + r"(?:gate\.|router\.)?(?:expert_bias|router_bias|balancing_biases|global_scale)"),
    Rule("router", LAYER + FEED0 + r"router\.(?:scale|per_expert_scale)", "Gemma 4"),
    Rule("router", LAYER + FEED0 + r"router\.classifier\.e_score_correction_bias", "LongCat"),
    Rule("router", LAYER + r"mlp\.gate\.(?:down_proj|router_states_scale|router_mlp\.[a-z0-9_]+)", "ZAYA"),
    Rule("router", LAYER + r"(?:mlp\.router_gate|self_attention\.experts\.router\.layer)", "Doge; JetMoE"),
    # Shared experts and their gates.
    Rule("shared_expert", LAYER + FEED0 + r"(?:shared_experts?|share_expert|shared_mlp)\.(?:#\.)?" + MLP),
    Rule("shared_expert", LAYER + FEED0 + r"shared_expert_gate", "Qwen2-MoE and later"),
    Rule("shared_expert", LAYER + FEED + r"shared_experts\.(?:shared_w13_weight|shared_w2_weight)", "Inkling"),
    # Routed experts, by number: one tensor per expert and matrix.
    Rule("routed_expert", LAYER + FEED0 + r"experts\.(?:(?:mlp|local_experts|deepspeed_experts)\.)?#\." + MLP),
    Rule("routed_expert", LAYER + FEED0 + r"experts\.(?:local_experts\.)?" + MLP + r"\.#", "Unsloth, Megatron"),
    Rule("routed_expert", LAYER + r"moe\.mlp\.#\." + MLP, "Phixtral"),
    Rule("routed_expert", LAYER + r"self_attn\.v_experts(?:\.#)?", "K2-Horizon: routed values"),
    # Routed experts, fused: one tensor per matrix for all experts.
    Rule("routed_expert", LAYER + FEED0 + r"experts\.(?:gate_up_proj|up_proj|gate_proj|down_proj|fc1|fc2)(?:_bias)?"),
    Rule("routed_expert", LAYER + FEED + r"experts\.(?:routed_experts\.)?(?:w13|w2|w1|w3)(?:_weight|_bias)?"),
    Rule("routed_expert", LAYER + FEED + r"experts\.(?:fc|proj|weight1|weight2)(?:_bias)?", "IQuest, Megatron"),
    Rule("routed_expert", LAYER + FEED0 + r"(?:experts\.)?switch_(?:mlp|glu)\." + MLP, "mlx-lm's conversions"),
    Rule("routed_expert", LAYER + FEED0 + r"mlp[12]_(?:weight|bias)", "gpt-oss, OpenAI's own names"),
    Rule("routed_expert", LAYER + FEED + r"experts\.mlp\.(?:w1|v1|w2|w3)", "DBRX, OLMo-core: stacked on the rows"),
    Rule("routed_expert", LAYER + r"block_sparse_moe\.(?:input_linear|output_linear)", "Granite"),
    Rule("routed_expert", LAYER + r"(?:mlp|self_attention\.experts)\.(?:input_linear|output_linear)", "JetMoE"),
    Rule("routed_expert", LAYER + r"moe\.(?:gate_proj|up_proj|down_proj)", "Step3"),
    Rule("routed_expert", LAYER + r"mlp\.(?:up_embed|down_embed)", "Doge: an expert is one row of each"),
    # Embedding and head.
    Rule("embedding", WRAP + r"(?:embed_tokens|wte|(?:embedding\.|embeddings\.)?word_embeddings|tok_embeddings|embed"
         r"|embedding|embeddings|shared|embed_in)"),
    Rule("lm_head", WRAP + r"(?:lm_head|output|head|unembed|unembedding|embed_out|output_layer)"),
    Rule("other", WRAP + r"(?:score|v_head|value_head|reward_head|rm_head|classifier)(?:\.(?:summary|#))?"),
    # Norms and the other small per-layer weights: residual scales and gates, hyper-connections.
    Rule("norm", WRAP + NORM),
    Rule("norm", WRAP + r"(?:embed_tokens|self_conditioning)\." + NORM, "Inkling; Diffusion Gemma"),
    Rule("norm", LAYER + r"(?:[A-Za-z0-9_#]+\.){0,4}" + NORM),
    Rule("norm", LAYER + NORM + r"\.(?:norm|mlp\.fc1|mlp\.fc2|W_down|W_up)", "A.X-K2: gated norms"),
    Rule("norm", LAYER + r"(?:layer_scalar|input_residual|post_attention_residual)", "Gemma 4; Doge"),
    Rule("norm", LAYER + r"post_(?:attention|mlp|feedforward)_residual_(?:scale|gate)\.[a-z_]+", "ZAYA, Muse Spark"),
    Rule("norm", WRAP + r"input_hidden_states_(?:bias|scale)", "ZAYA"),
    Rule("norm", LAYER + r"(?:attn_hc|ffn_hc|hc_pre\.hc_(?:attn|mlp)_layer)\.(?:hc_)?(?:base|fn|scale)", "DeepSeek-V4"),
    Rule("norm", LAYER + r"hc_(?:attn|ffn)_(?:base|fn|scale)", "DeepSeek-V4 native"),
    Rule("norm", LAYER + r"(?:attn|mlp|self_attention)_res_(?:norm_weight|proj)", "Kimi K3, Alice AI"),
    Rule("norm", WRAP + r"output_attn_res_proj", "Kimi K3"),
    Rule("norm", WRAP + r"attnres_final\.[a-z_]+", "Alice AI"),
    Rule("norm", LAYER + r"(?:attn|ffn)_layer_scale", "InternS2-Mobius"),
    Rule("norm", LAYER + r"(?:[A-Za-z0-9_#]+\.){0,3}layer_norm_(?:weight|bias)", "Megatron"),
    Rule("norm", LAYER + r"(?:[A-Za-z0-9_#]+\.){0,2}norm\.scale", "gpt-oss, OpenAI's own names"),
    Rule("norm", WRAP + r"norm\.scale", "gpt-oss, OpenAI's own names"),
    Rule("norm", LAYER + r"mlp\.global_scale", "Inkling"),
    Rule("norm", WRAP + r"(?:hc_pre\.)?(?:hc_head\.)?hc_(?:head_)?(?:base|fn|scale)", "DeepSeek-V4, Hy-V4"),
    Rule("norm", LAYER + r"(?:attn|mlp)_hyper_connection\.[a-z_]+", "Qwen4"),
    Rule("norm", WRAP + r"hyper_connection_mixer\.[a-z_]+", "Qwen4"),
    Rule("norm", WRAP + r"(?:final_input\.query|attn_res\.(?:output_query|(?:attn|mlp)_queries\.#))", "Inkling 2"),
    Rule("norm", LAYER + r"(?:attention_input|mlp_input)\.query", "Inkling 2"),
    Rule("norm", WRAP + r"(?:rotary_emb|lerope)\.alpha", "Mistral Large 4"),
    # Token mixers: attention, linear attention, state spaces, short convolutions.
    Rule("attention", LAYER + ATTEND + INNER + MIX),
    Rule("attention", LAYER + r"self_attention\.experts", "JetMoE: the bias of the routed attention"),
    Rule("attention", LAYER + r"(?:attn|mlp)_sconv(?:\.conv1d)?", "Inkling"),
    Rule("attention", LAYER + r"post_(?:attention|mlp)_convolution\.conv1d", "Inkling 2"),
    # Dense MLPs, residual MLPs, and the projections around experts and lookup tables.
    Rule("dense_mlp", LAYER + FEED + MLP),
    Rule("dense_mlp", LAYER + r"residual_mlp\." + MLP, "Arctic"),
    Rule("dense_mlp", LAYER + MLP, "NLLB's dense layers"),
    Rule("dense_mlp", LAYER + r"mlp", "JetMoE: the bias after its experts"),
    Rule("dense_mlp", LAYER + FEED0 + r"(?:fc[12]_latent_proj|routed_expert_(?:down|up)_proj)", "Nemotron-H; Kimi K3"),
    Rule("dense_mlp", LAYER + FEED + r"(?:pre|post)_expert_proj", "Muse Spark"),
    Rule("dense_mlp", LAYER + r"(?:per_layer_input_gate|per_layer_projection)", "Gemma"),
    Rule("dense_mlp", WRAP + r"per_layer_model_projection", "Gemma"),
    Rule("dense_mlp", WRAP + r"self_conditioning\." + MLP, "Diffusion Gemma"),
    Rule("dense_mlp", WRAP + r"ngram_embeddings\.post_projs\.#", "LongCat: every token uses the projections"),
    Rule("dense_mlp", LAYER + r"engram\.(?:q_weight|k_weight)", "DeepSeek-V4.1"),
    Rule("dense_mlp", WRAP + r"fc", "EAGLE: joins the target's hidden states"),
    Rule("dense_mlp", LAYER + r"(?:ple\.(?:key_proj|value_proj|conv1d)|engram\.(?:wkv|conv|wo))", "Qwen4; DeepSeek"),
)  # fmt: skip

# Words of a name no rule knows that tell what its subtree is, outside the decoder's layers. First match wins.
WORDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("mtp", re.compile(r"(?:^|[._])(?:mtp|nextn|eagle\d*|medusa|draft(?:er)?|dspark|markov_head)(?:[._]|\d|$)")),
    ("audio", re.compile(r"audio|speech|talker|code2?wav|codec|whisper|acoustic|vocoder|(?:^|[._])(?:asr|tts)[._]")),
    (
        "vision",
        re.compile(
            r"vis(?:ion|ual)|image|pixel|siglip|patch|resampler|mm_proj|vae[._]|multi_?modal|view_sep|projector|(?:^|[._])(?:vit|sam)[._]"
        ),
    ),
)
HEAD_WORDS = re.compile(r"head|unembed|logit|output")

# Facts a family's config does not hold: `model_type` -> our field -> value.
FAMILY_FACTS: dict[str, dict[str, int]] = {
    "nllb-moe": {"top_k": 2},  # top-2 gating is the architecture (Lepikhin et al., arXiv 2006.16668)
    "switch_transformers": {"top_k": 1},  # Fedus et al., arXiv 2101.03961
}
