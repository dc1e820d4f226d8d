"""Writes the student: a Hugging Face folder (Qwen2MoeForCausalLM) and a GGUF file (qwen2moe), which it can read again.

The base's own embedding goes into the GGUF byte for byte; attention and the shared expert's gate and up keep
its codes under learnt scales; learnt matrices are quantised here, with the scale of least squared error among several.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

from . import student
from .base import Base, q4_1_blocks
from .rounding import BLOCK, signed_blocks
from .settings import Shape


def half(values: np.ndarray) -> np.ndarray:
    """Rounded to f16, as block scales are stored."""
    return values.astype(np.float16)


def signed(matrix: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """[..., n] f32 -> (scales f16 [blocks], codes u8 [blocks, 32])."""
    scales, codes = signed_blocks(torch.from_numpy(matrix.reshape(-1, BLOCK).astype(np.float32)), bits)
    return scales.numpy(), codes.numpy().astype(np.uint8)


def to_q4_0(matrix: np.ndarray) -> np.ndarray:
    """[..., n] f32 -> [..., n / 32 * 18] u8."""
    scale, codes = signed(matrix, 4)
    packed = codes[:, :16] | (codes[:, 16:] << 4)
    blocks = np.concatenate([scale[:, None].view(np.uint8), packed], 1)
    return blocks.reshape(*matrix.shape[:-1], matrix.shape[-1] // BLOCK * 18)


def to_q5_0(matrix: np.ndarray) -> np.ndarray:
    """[..., n] f32 -> [..., n / 32 * 22] u8."""
    scale, codes = signed(matrix, 5)
    packed = (codes[:, :16] & 15) | ((codes[:, 16:] & 15) << 4)
    high = np.packbits(codes >> 4, axis=1, bitorder="little")
    blocks = np.concatenate([scale[:, None].view(np.uint8), high, packed], 1)
    return blocks.reshape(*matrix.shape[:-1], matrix.shape[-1] // BLOCK * 22)


def to_q4_1(codes: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor) -> np.ndarray:
    """Codes [out, in], scales and minima [out, in / 32] -> [out, in / 32 * 20] u8: what base.blocks reads."""
    blocks = codes.numpy().reshape(len(codes), -1, BLOCK)
    packed = blocks[..., :16] | (blocks[..., 16:] << 4)
    heads = [half(part.detach().float().numpy())[..., None].view(np.uint8) for part in (scales, minima)]
    return np.concatenate([*heads, packed], -1).reshape(len(codes), -1)


QUANTISERS = {Kind.Q4_0: to_q4_0, Kind.Q5_0: to_q5_0}


def quantised(matrix: torch.Tensor, kind: Kind) -> np.ndarray:
    """Bytes of the tensor's rows."""
    rows = matrix.detach().float().contiguous().numpy()
    return QUANTISERS[kind](rows) if kind in QUANTISERS else gguf.quants.quantize(rows, kind)


def expert_matrices(layer: dict) -> dict[str, torch.Tensor]:
    """gate and up [N, W, D], down [N, D, W]: out by in, as both file formats want them."""
    gate, up = layer["expert_gate_up"].float().transpose(1, 2).chunk(2, 1)
    return {"gate": gate, "up": up, "down": layer["expert_down"].float().transpose(1, 2)}


def write_gguf(path: Path, base: Base, layers: list[dict], output_norm, shape: Shape, name: str, expert_kind=Kind.Q4_0, shared_down_kind=Kind.Q5_0) -> None:
    """One file; split afterwards by the project's own program."""
    beside = path.with_suffix(".part.gguf")
    sizes, writer = base.sizes, gguf.GGUFWriter(beside, "qwen2moe")
    writer.add_type("model")
    writer.add_name(name)
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, "SmolLM2 135M Instruct")
    writer.add_base_model_organization(0, "HuggingFaceTB")
    writer.add_block_count(sizes.layers)
    writer.add_context_length(sizes.context)
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length(sizes.feed_forward)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_rope_freq_base(sizes.rope_base)
    writer.add_rope_dimension_count(sizes.head)
    writer.add_layer_norm_rms_eps(sizes.norm_epsilon)
    writer.add_vocab_size(sizes.vocabulary)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.experts_per_token)
    writer.add_expert_feed_forward_length(shape.expert_width)
    writer.add_expert_shared_feed_forward_length(shape.shared_width)
    writer.add_expert_weights_norm(False)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, field in base.reader.fields.items():
        if key.startswith("tokenizer."):
            kind = field.types[0]
            inner = field.types[1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, inner)

    def raw(name: str, data: np.ndarray, kind: Kind) -> None:
        writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=kind)

    def plain(name: str, tensor: torch.Tensor) -> None:
        writer.add_tensor(name, tensor.detach().float().contiguous().numpy())

    raw("token_embd.weight", base.raw("token_embd.weight"), base.tensors["token_embd.weight"].tensor_type)
    plain("output_norm.weight", output_norm)

    def matrices(number: int) -> dict[str, np.ndarray]:
        """The learnt matrices of a layer, quantised."""
        layer = layers[number]
        experts = {f"{part}_exps": quantised(matrix, expert_kind) for part, matrix in expert_matrices(layer).items()}
        return experts | {"down_shexp": quantised(layer["shared_down"], shared_down_kind)}

    with ThreadPoolExecutor() as workers:
        learnt = list(workers.map(matrices, range(len(layers))))
    for i, layer in enumerate(layers):
        at = f"blk.{i}."
        plain(at + "attn_norm.weight", layer["attention_norm"])
        plain(at + "ffn_norm.weight", layer["feed_forward_norm"])
        q, kv = sizes.heads * sizes.head, sizes.kv_heads * sizes.head
        parts = [layer[f"qkv_{part}"].split([q, kv, kv]) for part in ("codes", "scales", "minima")]
        for part, blocks, bias in zip("qkv", zip(*parts), layer["qkv_bias"].split([q, kv, kv])):
            raw(f"{at}attn_{part}.weight", to_q4_1(*blocks), Kind.Q4_1)
            plain(f"{at}attn_{part}.bias", bias)
        raw(f"{at}attn_output.weight", to_q4_1(layer["o_codes"], layer["o_scales"], layer["o_minima"]), Kind.Q4_1)
        halves = zip(*(layer[f"shared_gate_up_{part}"].chunk(2) for part in ("codes", "scales", "minima")))
        for part, blocks in zip(("gate", "up"), halves):
            raw(f"{at}ffn_{part}_shexp.weight", to_q4_1(*blocks), Kind.Q4_1)
        raw(f"{at}ffn_down_shexp.weight", learnt[i]["down_shexp"], shared_down_kind)
        plain(f"{at}ffn_gate_inp_shexp.weight", layer["shared_gate"])
        plain(f"{at}ffn_gate_inp.weight", layer["router"])
        for part in ("gate", "up", "down"):
            raw(f"{at}ffn_{part}_exps.weight", learnt[i][f"{part}_exps"], expert_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    beside.rename(path)


def read_gguf(path: Path, shape: Shape) -> dict:
    """The layers and output norm of a file that `write_gguf` wrote, or of its parts: what a stage begins with, learnt matrices as far as
    the file's bits tell them."""
    split = re.fullmatch(r"(.*-)\d{5}(-of-(\d{5})\.gguf)", path.name)
    names = [f"{split[1]}{part + 1:05}{split[2]}" for part in range(int(split[3]))] if split else [path.name]
    readers = [gguf.GGUFReader(str(path.with_name(name))) for name in names]
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}

    def values(name: str) -> torch.Tensor:
        decoded = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        return torch.from_numpy(np.array(decoded, dtype=np.float32))

    def layer(at: str) -> dict:
        kept = {
            "qkv": ("attn_q", "attn_k", "attn_v"), "o": ("attn_output",), "shared_gate_up": ("ffn_gate_shexp", "ffn_up_shexp"),
        }  # fmt: skip
        made = {}
        for name, sources in kept.items():
            parts = zip(*(q4_1_blocks(tensors[f"{at}{source}.weight"].data) for source in sources))
            made |= {f"{name}_{part}": torch.cat(blocks) for part, blocks in zip(("codes", "scales", "minima"), parts)}
        gate, up, down = (values(f"{at}ffn_{part}_exps.weight") for part in ("gate", "up", "down"))
        return made | {
            "shared_down": values(f"{at}ffn_down_shexp.weight"),
            "shared_gate": values(f"{at}ffn_gate_inp_shexp.weight"),
            "attention_norm": values(f"{at}attn_norm.weight"),
            "feed_forward_norm": values(f"{at}ffn_norm.weight"),
            "qkv_bias": torch.cat([values(f"{at}attn_{part}.bias") for part in "qkv"]),
            "router": values(f"{at}ffn_gate_inp.weight"),
            "expert_gate_up": torch.cat([gate, up], 1).transpose(1, 2).contiguous(),
            "expert_down": down.transpose(1, 2).contiguous(),
        }

    layers = [layer(f"blk.{index}.") for index in range(readers[0].fields["qwen2moe.block_count"].contents())]
    found = (*layers[0]["router"].shape[:1], *layers[0]["expert_down"].shape[1:2], layers[0]["shared_down"].shape[1])
    if found != (wanted := (shape.experts, shape.expert_width, shape.shared_width)):
        raise ValueError(f"{path}: experts, their width and the shared expert's are {found}, these settings have {wanted}")
    return {"layers": layers, "output_norm": values("output_norm.weight"), "curve": []}


def write_hugging_face(folder: Path, base: Base, layers: list[dict], output_norm, shape: Shape) -> None:
    """config.json, model.safetensors (bf16 matrices, f32 elsewhere), tokenizer.json."""
    from safetensors.torch import save_file

    sizes = base.sizes
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "torch_dtype": "float32",
        "vocab_size": sizes.vocabulary, "hidden_size": sizes.hidden, "intermediate_size": sizes.feed_forward,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": sizes.context, "rope_theta": sizes.rope_base, "rms_norm_eps": sizes.norm_epsilon,
        "hidden_act": "silu", "tie_word_embeddings": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "num_experts": shape.experts, "num_experts_per_tok": shape.experts_per_token, "norm_topk_prob": False,
        "moe_intermediate_size": shape.expert_width, "shared_expert_intermediate_size": shape.shared_width,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    base.tokenizer().save(str(folder / "tokenizer.json"))
    tensors = {"model.embed_tokens.weight": base.tensor("token_embd.weight"), "model.norm.weight": output_norm.float()}
    q, kv = sizes.heads * sizes.head, sizes.kv_heads * sizes.head
    for i, layer in enumerate(layers):
        at = f"model.layers.{i}."
        tensors[at + "input_layernorm.weight"] = layer["attention_norm"]
        tensors[at + "post_attention_layernorm.weight"] = layer["feed_forward_norm"]
        for part, weight, bias in zip("qkv", student.decoded(layer, "qkv").split([q, kv, kv]), layer["qkv_bias"].split([q, kv, kv])):
            tensors[f"{at}self_attn.{part}_proj.weight"] = weight
            tensors[f"{at}self_attn.{part}_proj.bias"] = bias
        tensors[at + "self_attn.o_proj.weight"] = student.decoded(layer, "o")
        gate, up = student.decoded(layer, "shared_gate_up").chunk(2)
        tensors[at + "mlp.shared_expert.gate_proj.weight"] = gate
        tensors[at + "mlp.shared_expert.up_proj.weight"] = up
        tensors[at + "mlp.shared_expert.down_proj.weight"] = layer["shared_down"]
        tensors[at + "mlp.shared_expert_gate.weight"] = layer["shared_gate"][None, :]
        tensors[at + "mlp.gate.weight"] = layer["router"]
        for part, matrices in expert_matrices(layer).items():
            for expert, matrix in enumerate(matrices):
                tensors[f"{at}mlp.experts.{expert}.{part}_proj.weight"] = matrix
    save_file({k: v.detach().float().contiguous().clone() for k, v in tensors.items()}, folder / "model.safetensors")
