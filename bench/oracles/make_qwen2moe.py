"""Makes a synthetic qwen2moe GGUF with the layers of Qwen1.5-MoE-A2.7B, for measuring speed.

    python bench/oracles/make_qwen2moe.py --tokenizer-from SmolLM2.gguf synthetic.gguf [--layers 8]

Needs numpy and the gguf package. Random weights of zero mean from a seed: its text means nothing, and its routing is as
good as uniform. 8 of the 24 layers and a vocabulary of 49,152 make 2.8 GB. Matrices are Q4_0, the embedding and the
output Q8_0, norms, biases and routers F32. Tensors are made and written one by one, so memory stays small.
"""

import argparse

import gguf
import numpy as np

from gguf_copy import copy_metadata

HIDDEN = 2048
HEADS = 16
EXPERTS = 60
EXPERTS_PER_TOKEN = 4
EXPERT_WIDTH = 1408
SHARED_WIDTH = 5632
BLOCK = 32  # weights of one quant block, both formats

# Two 4-bit codes of 1 to 15: (code - 8) has zero mean, which 0 to 15 has not.
CODE_PAIRS = np.array([low | high << 4 for high in range(1, 16) for low in range(1, 16)], dtype=np.uint8)


def scales(random, blocks, deviation, code_deviation):
    """f16 scales, as bytes, that give weights the wanted standard deviation."""
    values = random.uniform(0.75, 1.25, blocks) * (deviation / code_deviation)
    return values.astype(np.float16).view(np.uint8).reshape(blocks, 2)


def q4_0(random, rows, columns):
    blocks = rows * columns // BLOCK
    codes = CODE_PAIRS[random.integers(0, len(CODE_PAIRS), (blocks, BLOCK // 2), dtype=np.uint8)]
    # 1 to 15 uniformly: variance (15 * 15 - 1) / 12.
    return np.hstack([scales(random, blocks, columns**-0.5, (224 / 12) ** 0.5), codes])


def q8_0(random, rows, columns, deviation=None):
    blocks = rows * columns // BLOCK
    codes = random.integers(-127, 128, (blocks, BLOCK), dtype=np.int8).view(np.uint8)
    return np.hstack([scales(random, blocks, deviation or columns**-0.5, (255 * 255 / 12) ** 0.5), codes])


def embedding(random, rows, columns):
    """Larger than all that the layers add: else every token looks like the average of those before it, and is routed alike."""
    return q8_0(random, rows, columns, deviation=8.0)


def f32(mean, deviation):
    return lambda random, rows, columns: random.normal(mean, deviation, (rows, columns)).astype(np.float32)


def tensors(layers, vocabulary):
    """(name, shape with rows first, maker) in file order."""
    one, bias = f32(1.0, 0.05), f32(0.0, 0.02)
    yield "token_embd.weight", (vocabulary, HIDDEN), embedding
    yield "output_norm.weight", (HIDDEN,), one
    yield "output.weight", (vocabulary, HIDDEN), q8_0
    for layer in range(layers):
        parts = {
            "attn_norm.weight": ((HIDDEN,), one),
            "ffn_norm.weight": ((HIDDEN,), one),
            "attn_q.weight": ((HIDDEN, HIDDEN), q4_0),
            "attn_k.weight": ((HIDDEN, HIDDEN), q4_0),
            "attn_v.weight": ((HIDDEN, HIDDEN), q4_0),
            "attn_q.bias": ((HIDDEN,), bias),
            "attn_k.bias": ((HIDDEN,), bias),
            "attn_v.bias": ((HIDDEN,), bias),
            "attn_output.weight": ((HIDDEN, HIDDEN), q4_0),
            "ffn_gate_inp.weight": ((EXPERTS, HIDDEN), f32(0.0, 1.5 * HIDDEN**-0.5)),
            "ffn_gate_exps.weight": ((EXPERTS, EXPERT_WIDTH, HIDDEN), q4_0),
            "ffn_up_exps.weight": ((EXPERTS, EXPERT_WIDTH, HIDDEN), q4_0),
            "ffn_down_exps.weight": ((EXPERTS, HIDDEN, EXPERT_WIDTH), q4_0),
            "ffn_gate_inp_shexp.weight": ((HIDDEN,), f32(0.0, HIDDEN**-0.5)),
            "ffn_gate_shexp.weight": ((SHARED_WIDTH, HIDDEN), q4_0),
            "ffn_up_shexp.weight": ((SHARED_WIDTH, HIDDEN), q4_0),
            "ffn_down_shexp.weight": ((HIDDEN, SHARED_WIDTH), q4_0),
        }
        for name, (shape, make) in parts.items():
            yield f"blk.{layer}.{name}", shape, make


def add_metadata(writer, layers, vocabulary, tokenizer):
    writer.add_name("synthetic Qwen2-MoE")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(vocabulary)
    writer.add_context_length(8192)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(SHARED_WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(1e6)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(EXPERTS_PER_TOKEN)
    writer.add_expert_feed_forward_length(EXPERT_WIDTH)
    writer.add_expert_shared_feed_forward_length(SHARED_WIDTH)
    copy_metadata(tokenizer, writer, keep=lambda key: key.startswith("tokenizer."))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output")
    parser.add_argument("--tokenizer-from", required=True, help="a GGUF file whose tokenizer metadata is copied")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    tokenizer = gguf.GGUFReader(arguments.tokenizer_from)
    vocabulary = len(tokenizer.fields["tokenizer.ggml.tokens"].data)
    writer = gguf.GGUFWriter(arguments.output, "qwen2moe")
    add_metadata(writer, arguments.layers, vocabulary, tokenizer)
    q8_format = (gguf.GGMLQuantizationType.Q8_0, 34)
    formats = {q4_0: (gguf.GGMLQuantizationType.Q4_0, 18), q8_0: q8_format, embedding: q8_format}
    planned = list(tensors(arguments.layers, vocabulary))
    for name, shape, make in planned:
        if make in formats:
            kind, block_bytes = formats[make]
            stored = (*shape[:-1], shape[-1] // BLOCK * block_bytes)
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kind)
        else:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), int(np.prod(shape)) * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for index, (_, shape, make) in enumerate(planned):
        random = np.random.default_rng([arguments.seed, index])
        writer.write_tensor_data(make(random, int(np.prod(shape[:-1])), shape[-1]))
    writer.close()


if __name__ == "__main__":
    main()
