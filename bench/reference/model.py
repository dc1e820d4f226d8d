"""Loads an F32 GGUF file of architecture `qwen2moe` into `transformers`, with routers that ask a policy.

The tokenizer is built with the `tokenizers` package from the vocabulary in the file.
"""

import gguf
import numpy as np
import tokenizers
import torch
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "ffn_down_exps.weight": "mlp.experts.down_proj",
    "ffn_gate_shexp.weight": "mlp.shared_expert.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_expert.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_expert.down_proj.weight",
}


def load(path):
    """(model, tokenizer)"""
    reader = gguf.GGUFReader(path)

    def value(key):
        field = reader.fields.get(key) or reader.fields[f"qwen2moe.{key}"]
        return field.contents()

    tensors = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values()), "the file is not all F32: decode.py"
    config = Qwen2MoeConfig(
        vocab_size=len(value("tokenizer.ggml.tokens")),
        hidden_size=value("embedding_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        num_experts=value("expert_count"),
        num_experts_per_tok=value("expert_used_count"),
        moe_intermediate_size=value("expert_feed_forward_length"),
        shared_expert_intermediate_size=value("expert_shared_feed_forward_length"),
        intermediate_size=value("feed_forward_length"),
        rope_parameters=dict(rope_type="default", rope_theta=value("rope.freq_base")),
        norm_topk_prob=False,
        tie_word_embeddings="output.weight" not in tensors,
        attn_implementation="eager",
        experts_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    state = {"model.embed_tokens.weight": tensors["token_embd.weight"], "model.norm.weight": tensors["output_norm.weight"]}
    state["lm_head.weight"] = tensors.get("output.weight", tensors["token_embd.weight"])
    for layer in range(config.num_hidden_layers):
        own = lambda name: tensors[f"blk.{layer}.{name}"]
        for name, target in LAYER.items():
            state[f"model.layers.{layer}.{target}"] = own(name)
        gate_up = torch.cat([own("ffn_gate_exps.weight"), own("ffn_up_exps.weight")], dim=1)
        state[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = gate_up
        state[f"model.layers.{layer}.mlp.shared_expert_gate.weight"] = own("ffn_gate_inp_shexp.weight").reshape(1, -1)
    with torch.device("meta"):
        model = Qwen2MoeForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert not missing and not unexpected, (missing, unexpected)
    # What is computed from the configuration alone is not in the file.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval().float(), tokenizer(value("tokenizer.ggml.tokens"), value("tokenizer.ggml.merges"), value("tokenizer.ggml.pre"))


def tokenizer(tokens, merges, kind):
    """Byte-level BPE; `smollm` splits off single digits first."""
    assert kind == "smollm", f"pre-tokenizer {kind} is not known here"
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, pairs))
    splitters = tokenizers.pre_tokenizers
    made.pre_tokenizer = splitters.Sequence(
        [splitters.Digits(individual_digits=True), splitters.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    return made


class Router(torch.nn.Module):
    """Scores as the model's router gives them; which experts run is the policy's choice, their weights are the original softmax's."""

    def __init__(self, inner, layer):
        super().__init__()
        self.weight, self.layer = inner.weight, layer

    def forward(self, hidden):
        scores = torch.nn.functional.linear(hidden.reshape(-1, hidden.shape[-1]), self.weight)
        rows = scores.numpy()
        chosen = torch.tensor([self.layer.route(rows[token]) for token in range(len(rows))])
        weights = torch.softmax(scores, dim=-1).gather(1, chosen)
        return scores, weights, chosen
