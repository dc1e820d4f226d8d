"""Quantisers against the gguf package's decoders."""

import tempfile
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from training.base import Base
from training.export import expert_matrices, read_gguf, to_q4_0, to_q4_1, to_q5_0, write_gguf
from training.model import COMPUTE
from training.settings import for_accelerator, for_more
from training.student import Group, decoded


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


def test_what_learns_rounded_is_what_the_file_holds():
    torch.manual_seed(0)
    layer = {
        "expert_gate_up": torch.randn(3, 64, 128) * 0.02, "expert_down": torch.randn(3, 64, 64), "shared_down": torch.randn(64, 96),
    }  # fmt: skip
    group = Group(layer, replace(for_more().mix, rounded=True), "cpu")
    file = {part: dequantize(to_q4_0(matrix.contiguous().numpy()), Kind.Q4_0) for part, matrix in expert_matrices(layer).items()}
    gate_up = torch.from_numpy(np.concatenate([file["gate"], file["up"]], 1)).transpose(1, 2)
    torch.testing.assert_close(group.working["expert_gate_up"], gate_up.to(COMPUTE), rtol=0, atol=0)
    torch.testing.assert_close(group.working["expert_down"], torch.from_numpy(file["down"]).transpose(1, 2).to(COMPUTE), rtol=0, atol=0)
    shared = torch.from_numpy(dequantize(to_q5_0(layer["shared_down"].numpy()), Kind.Q5_0))
    torch.testing.assert_close(group.working["shared_down"], shared.to(COMPUTE), rtol=0, atol=0)
    # What learns stays exact.
    torch.testing.assert_close(group.tensors()["expert_down"], layer["expert_down"], rtol=0, atol=0)


def test_attention_blocks_go_through_unchanged():
    base = Base()
    for name in ("blk.3.attn_q.weight", "blk.3.attn_output.weight"):
        codes, scales, minima = base.blocks(name)
        np.testing.assert_array_equal(to_q4_1(codes, scales, minima), base.raw(name))
        layer = {"o_codes": codes, "o_scales": scales, "o_minima": minima}
        torch.testing.assert_close(decoded(layer, "o"), base.tensor(name).to(COMPUTE))


def test_the_shipped_model_is_read_and_written_again():
    """What is quantised anew when it is written has the same values when it is read; all else comes out bit for bit."""
    models, settings = Path(__file__).resolve().parents[2] / "models", for_accelerator()
    done = read_gguf(models / "demo-00001-of-00004.gguf", settings.shape)
    shipped = {t.name: t for part in sorted(models.glob("demo-*-of-00004.gguf")) for t in gguf.GGUFReader(str(part)).tensors}
    values = lambda name: dequantize(shipped[name].data, shipped[name].tensor_type)
    for part, matrix in expert_matrices(done["layers"][7]).items():
        np.testing.assert_array_equal(matrix, values(f"blk.7.ffn_{part}_exps.weight"))
    np.testing.assert_array_equal(done["layers"][7]["shared_down"], values("blk.7.ffn_down_shexp.weight"))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.gguf"
        write_gguf(copy, Base(), done["layers"], done["output_norm"], settings.shape, settings.name)
        written = {t.name: t for t in gguf.GGUFReader(str(copy)).tensors}
        assert shipped.keys() == written.keys()
        for name, tensor in written.items():
            assert tensor.tensor_type == shipped[name].tensor_type
            if not name.endswith(("_exps.weight", "ffn_down_shexp.weight")):
                np.testing.assert_array_equal(tensor.data, shipped[name].data, name)
