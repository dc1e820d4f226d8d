"""A second, differently shaped small model for cross-checks: Mixtral's shape, trained from nothing on corpus/.

`python -m training.second DATA=FOLDER WORK=FOLDER`. Architecture `llama` with experts: 8 of them, 2 a token, weights
renormalised, no shared expert, its own byte-level BPE vocabulary of 8,192, output matrix of its own. It need only
write English-looking text and route unevenly. Resumable like make.py.
"""

import json
import math
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from . import checkpoint, data, workers as worker_pool
from .balance import Balance
from .base import Sizes
from .model import COMPUTE, attention, norm, rope_tables, routed
from .local import schedule


@dataclass(frozen=True)
class Small:
    """The shape and the run's numbers."""

    sizes: Sizes = Sizes(
        layers=6, hidden=256, heads=8, kv_heads=2, feed_forward=512, vocabulary=8_192, context=2_048,
        rope_base=10_000.0, norm_epsilon=1e-5,
    )
    experts: int = 8
    experts_per_token: int = 2
    seed: int = 11
    sequence: int = 256
    tokens: int = 2_000_000
    step_tokens: int = 4_096
    task_tokens: int = 2_048
    step_size: float = 3e-3
    matrix_decay: float = 0.05
    # Weak on purpose: uneven use is wanted.
    balance: float = 0.005


def train_tokenizer(pieces, small: Small) -> Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokenizer; id 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=small.sizes.vocabulary, special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )
    tokenizer.train_from_iterator(pieces, trainer)
    return tokenizer


def initial(small: Small) -> dict[str, torch.Tensor]:
    """All tensors, f32; names are `layer.part`."""
    generator = torch.Generator().manual_seed(small.seed)
    s = small.sizes
    normal = lambda *shape, std: torch.randn(*shape, generator=generator) * std
    qkv = (s.heads + 2 * s.kv_heads) * s.head
    tensors = {
        "embedding": normal(s.vocabulary, s.hidden, std=0.02),
        "output": normal(s.vocabulary, s.hidden, std=0.02),
        "output_norm": torch.ones(s.hidden),
    }
    inward = 1 / math.sqrt(s.hidden)
    outward = 1 / math.sqrt(2 * s.layers)
    for i in range(s.layers):
        tensors |= {
            f"{i}.attention_norm": torch.ones(s.hidden),
            f"{i}.feed_forward_norm": torch.ones(s.hidden),
            f"{i}.qkv": normal(qkv, s.hidden, std=inward),
            f"{i}.o": normal(s.hidden, s.hidden, std=inward * outward),
            f"{i}.router": normal(small.experts, s.hidden, std=inward),
            f"{i}.expert_gate_up": normal(small.experts, s.hidden, 2 * s.feed_forward, std=inward),
            f"{i}.expert_down": normal(small.experts, s.feed_forward, s.hidden, std=outward / math.sqrt(s.feed_forward)),
        }
    return tensors


def forward(ids, tensors: dict, small: Small, cos, sin, watch=None):
    """[B, L] ids -> logits [B * L, V]."""
    s = small.sizes
    x = F.embedding(ids, tensors["embedding"]).float()
    for i in range(s.layers):
        layer = {name: tensors[f"{i}.{name}"] for name in ("qkv", "o")}
        x = x + attention(norm(x, tensors[f"{i}.attention_norm"], s).to(COMPUTE), layer, s, cos, sin)
        h = norm(x, tensors[f"{i}.feed_forward_norm"], s).view(-1, s.hidden)
        p = torch.softmax(F.linear(h, tensors[f"{i}.router"]), -1)
        weights, chosen = p.topk(small.experts_per_token, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        if watch is not None:
            watch(i, p, chosen)
        gate_up, down = tensors[f"{i}.expert_gate_up"], tensors[f"{i}.expert_down"]
        x = x + routed(h.to(COMPUTE), weights, chosen, gate_up, down).view(x.shape)
    return F.linear(norm(x, tensors["output_norm"], s).to(COMPUTE).view(-1, s.hidden), tensors["output"]).float()


def is_matrix(name: str) -> bool:
    """Whether it takes part in bf16 products and decays."""
    return not name.endswith(("norm", "router"))


def interleaved_order(heads: int, width: int) -> np.ndarray:
    """Row order from half-split rotary pairs to llama.cpp's interleaved ones."""
    within = np.arange(width).reshape(2, -1).T.reshape(-1)
    return (np.arange(heads)[:, None] * width + within[None, :]).reshape(-1)


def write_gguf(path: Path, tensors: dict, tokenizer: Tokenizer, small: Small) -> None:
    """Embedding, output and attention Q8_0, experts Q4_0 (down: Q8_0), the rest f32."""
    import gguf
    from gguf import GGMLQuantizationType as Kind

    from .export import quantised

    s, writer = small.sizes, gguf.GGUFWriter(str(path), "llama")
    writer.add_type("model")
    writer.add_name("moce second: small Mixtral shape 8x2")
    writer.add_license("apache-2.0")
    writer.add_block_count(s.layers)
    writer.add_context_length(s.context)
    writer.add_embedding_length(s.hidden)
    writer.add_feed_forward_length(s.feed_forward)
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.kv_heads)
    writer.add_rope_freq_base(s.rope_base)
    writer.add_rope_dimension_count(s.head)
    writer.add_layer_norm_rms_eps(s.norm_epsilon)
    writer.add_vocab_size(s.vocabulary)
    writer.add_expert_count(small.experts)
    writer.add_expert_used_count(small.experts_per_token)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([text for text, _ in vocabulary])
    writer.add_token_types([gguf.TokenType.CONTROL if i == 0 else gguf.TokenType.NORMAL for _, i in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)

    def add(name: str, tensor: torch.Tensor, kind: Kind = Kind.F32) -> None:
        tensor = tensor.detach().float().contiguous()
        if kind == Kind.F32:
            writer.add_tensor(name, tensor.numpy())
        else:
            writer.add_tensor(name, quantised(tensor, kind), raw_dtype=kind)

    add("token_embd.weight", tensors["embedding"], Kind.Q8_0)
    add("output.weight", tensors["output"], Kind.Q8_0)
    add("output_norm.weight", tensors["output_norm"])
    for i in range(s.layers):
        part = lambda name: tensors[f"{i}.{name}"]
        q, k, v = part("qkv").split([s.heads * s.head, s.kv_heads * s.head, s.kv_heads * s.head])
        add(f"blk.{i}.attn_norm.weight", part("attention_norm"))
        add(f"blk.{i}.ffn_norm.weight", part("feed_forward_norm"))
        add(f"blk.{i}.attn_q.weight", q[interleaved_order(s.heads, s.head)], Kind.Q8_0)
        add(f"blk.{i}.attn_k.weight", k[interleaved_order(s.kv_heads, s.head)], Kind.Q8_0)
        add(f"blk.{i}.attn_v.weight", v, Kind.Q8_0)
        add(f"blk.{i}.attn_output.weight", part("o"), Kind.Q8_0)
        add(f"blk.{i}.ffn_gate_inp.weight", part("router"))
        gate, up = part("expert_gate_up").transpose(1, 2).chunk(2, 1)
        add(f"blk.{i}.ffn_gate_exps.weight", gate, Kind.Q4_0)
        add(f"blk.{i}.ffn_up_exps.weight", up, Kind.Q4_0)
        add(f"blk.{i}.ffn_down_exps.weight", part("expert_down").transpose(1, 2), Kind.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Tokenizer, packed text, training, export; each step is skipped when its file is there."""
    given = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    if given.keys() != {"DATA", "WORK"}:
        sys.exit("usage: python -m training.second DATA=FOLDER WORK=FOLDER")
    folder, work, small = Path(given["DATA"]), Path(given["WORK"]) / "second", Small()
    work.mkdir(parents=True, exist_ok=True)
    (work / "pid").write_text(f"{os.getpid()}\n")
    workers = worker_pool.start()
    pool_path, tokenizer_path = work / "pool.npy", work / "tokenizer.json"
    if not pool_path.exists():
        sources = data.sources(folder, small.seed)
        draw = random.Random(small.seed)
        prose = lambda: next(sources[draw.choices(("openstax", "novels"), (0.4, 0.6))[0]])
        tokenizer = train_tokenizer((prose() for _ in range(1_500)), small)
        tokenizer.save(str(tokenizer_path))
        pieces = iter(prose, None)
        np.save(work / "pool.part.npy", data.pack(pieces, tokenizer, small.tokens // small.sequence, small.sequence))
        (work / "pool.part.npy").rename(pool_path)
    tokenizer, pool = Tokenizer.from_file(str(tokenizer_path)), np.load(pool_path)

    cos, sin = rope_tables(small.sizes, small.sequence)
    masters, first = initial(small), 0
    for master in masters.values():
        master.grad = torch.zeros_like(master)
    decaying = [m for name, m in masters.items() if is_matrix(name)]
    still = [m for name, m in masters.items() if not is_matrix(name)]
    optimiser = torch.optim.AdamW(
        [{"params": decaying, "weight_decay": small.matrix_decay}, {"params": still, "weight_decay": 0.0}],
        lr=small.step_size, betas=(0.9, 0.97), fused=True,
    )
    if (saved := checkpoint.load(work / "progress.pt")) is not None:
        first = saved["step"]
        for name, master in masters.items():
            master.copy_(saved["masters"][name])
        optimiser.load_state_dict(saved["optimiser"])
    balances = [Balance(small.balance, 0.0, 1.0) for _ in range(small.sizes.layers)]
    lock, timer = Lock(), checkpoint.Timer(240)
    rows_per_task, tasks = small.task_tokens // small.sequence, small.step_tokens // small.task_tokens
    steps = len(pool) // (rows_per_task * tasks)
    order = np.random.default_rng(small.seed).permutation(len(pool))

    for step in range(first, steps):
        started = time.monotonic()
        working = {
            name: (m.detach().to(COMPUTE) if is_matrix(name) else m.detach().clone()).requires_grad_()
            for name, m in masters.items()
        }

        def task(number: int) -> float:
            rows = order[number * rows_per_task : (number + 1) * rows_per_task]
            ids = torch.from_numpy(pool[rows].astype("int64"))
            pulls = []
            watch = lambda i, p, chosen: pulls.append(balances[i].loss(p, chosen, small.sequence))
            logits = forward(ids, working, small, cos, sin, watch)
            next_ids = torch.roll(ids, -1, 1)
            next_ids[:, -1] = -100
            loss = F.cross_entropy(logits, next_ids.view(-1))
            gradients = torch.autograd.grad((loss + sum(pulls)) / tasks, list(working.values()))
            with lock:
                for master, gradient in zip(masters.values(), gradients):
                    master.grad.add_(gradient)
            return loss.item()

        losses = list(workers.map(task, range(step * tasks, (step + 1) * tasks)))
        for group in optimiser.param_groups:
            group["lr"] = small.step_size * max(0.02, schedule(step / steps, step, 30))
        torch.nn.utils.clip_grad_norm_(masters.values(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)
        print(
            f"second {step + 1}/{steps}: NLL {sum(losses) / tasks:.4f}, "
            f"{small.step_tokens / (time.monotonic() - started):.0f} tokens/s",
            flush=True,
        )
        if timer.due():
            state = {"step": step + 1, "masters": {k: v.detach() for k, v in masters.items()}}
            checkpoint.save(state | {"optimiser": optimiser.state_dict()}, work / "progress.pt")
    write_gguf(work / "second.gguf", masters, tokenizer, small)
    print(f"wrote {work / 'second.gguf'}: {(work / 'second.gguf').stat().st_size} bytes")


if __name__ == "__main__":
    main()
