"""Quantisers against the gguf package's decoders."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from training.base import Base
from training.export import to_q4_0, to_q4_1, to_q5_0
from training.model import COMPUTE
from training.student import decoded


@pytest.mark.parametrize("kind, ours", [(Kind.Q4_0, to_q4_0), (Kind.Q5_0, to_q5_0)])
def test_blocks_decode_and_are_closer_than_the_packages_own(kind, ours):
    rows = np.random.default_rng(0).normal(0, 0.02, (64, 576)).astype(np.float32)
    made = ours(rows)
    reference = quantize(rows, kind)
    assert made.shape == reference.shape and made.dtype == reference.dtype
    error = lambda blocks: float(np.square(dequantize(blocks, kind) - rows).mean())
    assert error(made) < error(reference)


@pytest.mark.parametrize("kind, ours", [(Kind.Q4_0, to_q4_0), (Kind.Q5_0, to_q5_0)])
def test_zero_blocks_stay_zero_and_single_values_are_exact(kind, ours):
    rows = np.zeros((2, 32), np.float32)
    rows[1, 7] = -0.5
    np.testing.assert_array_equal(dequantize(ours(rows), kind), rows)


def test_attention_blocks_go_through_unchanged():
    base = Base()
    for name in ("blk.3.attn_q.weight", "blk.3.attn_output.weight"):
        codes, scales, minima = base.blocks(name)
        np.testing.assert_array_equal(to_q4_1(codes, scales, minima), base.raw(name))
        layer = {"o_codes": codes, "o_scales": scales, "o_minima": minima}
        torch.testing.assert_close(decoded(layer, "o"), base.tensor(name).to(COMPUTE))
