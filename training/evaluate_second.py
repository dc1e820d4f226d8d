"""Perplexity and expert usage of the second model's file by PyTorch in f32, from its decoded weights.

`python -m training.evaluate_second models/mixtral-shape.gguf TEXT [WINDOWS]`: what `moce perplexity --kv f32 --limit WINDOWS*1024`
has to come near (it computes with 8-bit activations).
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import Tokenizer, models, pre_tokenizers

from . import model, second
from .evaluate import windows


def tensors_of(reader: GGUFReader, small: second.Small) -> dict[str, torch.Tensor]:
    """The file's tensors as second.forward takes them."""
    read = {t.name: torch.from_numpy(np.array(dequantize(t.data, t.tensor_type), dtype=np.float32)) for t in reader.tensors}
    sizes = small.sizes
    half_split = lambda heads: torch.from_numpy(np.argsort(second.interleaved_order(heads, sizes.head)))
    made = {"embedding": read["token_embd.weight"], "output": read["output.weight"], "output_norm": read["output_norm.weight"]}
    for i in range(sizes.layers):
        part = lambda name: read[f"blk.{i}.{name}.weight"]
        q, k = part("attn_q")[half_split(sizes.heads)], part("attn_k")[half_split(sizes.kv_heads)]
        made |= {
            f"{i}.attention_norm": part("attn_norm"),
            f"{i}.feed_forward_norm": part("ffn_norm"),
            f"{i}.qkv": torch.cat([q, k, part("attn_v")]),
            f"{i}.o": part("attn_output"),
            f"{i}.router": part("ffn_gate_inp"),
            f"{i}.expert_gate_up": torch.cat([part("ffn_gate_exps"), part("ffn_up_exps")], 1).transpose(1, 2).contiguous(),
            f"{i}.expert_down": part("ffn_down_exps").transpose(1, 2).contiguous(),
        }
    return made


def main() -> None:
    """Prints perplexity and each layer's shares of choices."""
    path, text, count = (*sys.argv[1:], "4")[:3]
    model.COMPUTE = second.COMPUTE = torch.float32
    reader, small = GGUFReader(path), second.Small()
    names = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(line.split(" ")) for line in reader.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ids = tokenizer.encode(Path(text).read_text(encoding="utf-8")[: int(count) * 8_192]).ids
    tensors = tensors_of(reader, small)
    cos, sin = model.rope_tables(small.sizes, 1_024)
    used = torch.zeros(small.sizes.layers, small.experts)
    nll = tokens = 0
    with torch.no_grad():
        for inputs, predicted in windows(ids, int(count)):
            watch = lambda i, p, chosen: used[i].add_(torch.bincount(chosen.reshape(-1), minlength=small.experts))
            logits = second.forward(inputs[None], tensors, small, cos, sin, watch)
            nll += F.cross_entropy(logits.double(), predicted, reduction="sum").item()
            tokens += len(predicted)
    print(f"perplexity {math.exp(nll / tokens):.4f} ({tokens} tokens)")
    for layer, share in enumerate(used / used.sum(1, keepdim=True)):
        print(f"layer {layer}:", " ".join(f"{100 * s:.0f} %" for s in share))


if __name__ == "__main__":
    main()
