"""First stage: what the dense model does on the training text, one file of sums for all later stages.

Per layer: mean |activation| of each neuron, a sample of feed-forward inputs, and the sensitivity matrix
E[g g^T], g the gradient of the model's own loss (on ids sampled from itself: the Fisher metric) with respect
to the layer's output, scaled by the residual stream's size, since the next norm divides by it.
"""

from pathlib import Path
from threading import Lock

import torch
import torch.nn.functional as F

from . import checkpoint
from .model import COMPUTE, dense_activation, dense_forward
from .settings import Settings

TASK_TOKENS = 1_024


def root_mean_square(x: torch.Tensor) -> torch.Tensor:
    """[..., D] -> [..., 1]"""
    return x.float().square().mean(-1, keepdim=True).sqrt()


def gather(pool, base_model, settings: Settings, workers, path: Path) -> dict:
    """Runs the pass over the first sequences of `pool`, or reads its result."""
    if (done := checkpoint.load(path)) is not None:
        return done
    layers, ends, sizes, cos, sin = base_model
    wanted = settings.statistics
    count, rows = len(layers), TASK_TOKENS // settings.sequence
    sums = {
        "activation": torch.zeros(count, sizes.feed_forward, dtype=torch.float64),
        "sensitivity": torch.zeros(count, sizes.hidden, sizes.hidden),
        "tokens": 0,
    }
    inputs = torch.empty(count, wanted.cluster_tokens, sizes.hidden, dtype=torch.bfloat16)
    scales = torch.empty(count, wanted.cluster_tokens)
    lock = Lock()

    def observe(start: int):
        ids = torch.from_numpy(pool[start : start + rows].astype("int64")).to(ends["embedding"].device)
        local = torch.zeros(count, sizes.feed_forward, dtype=torch.float64)
        first = start * settings.sequence
        last = first + ids.numel()

        def feed_forward(index, h, residual, layer):
            active = dense_activation(h, layer["gate_up"])
            out = F.linear(active, layer["down"])
            local[index] = active.abs().sum((0, 1), dtype=torch.float32).double().cpu()
            if last <= wanted.cluster_tokens:
                inputs[index, first:last] = h.view(-1, sizes.hidden).cpu()
                scales[index, first:last] = root_mean_square(residual + out).view(-1).cpu()
            return out

        with torch.no_grad():
            dense_forward(ids, layers, ends, sizes, cos, sin, feed_forward)
        with lock:
            sums["activation"] += local
            sums["tokens"] += ids.numel()

    def feel(start: int):
        ids = torch.from_numpy(pool[start : start + rows].astype("int64")).to(ends["embedding"].device)
        draw = torch.Generator(ids.device).manual_seed(settings.seed + start)
        nudges, sizes_of = [], []

        def feed_forward(index, h, residual, layer):
            out = F.linear(dense_activation(h, layer["gate_up"]), layer["down"])
            nudge = torch.zeros_like(out, requires_grad=True)
            nudges.append(nudge)
            sizes_of.append(root_mean_square(residual.detach() + out.detach()))
            return out + nudge

        final = dense_forward(ids, layers, ends, sizes, cos, sin, feed_forward)
        logits = F.linear(final.to(COMPUTE), ends["embedding"]).view(-1, sizes.vocabulary).float()
        sampled = torch.multinomial(torch.softmax(logits.detach(), -1), 1, generator=draw).view(-1)
        F.cross_entropy(logits, sampled, reduction="sum").backward()
        scaled = [(n.grad.float() * s).view(-1, sizes.hidden) for n, s in zip(nudges, sizes_of)]
        with lock:
            for index, g in enumerate(scaled):
                sums["sensitivity"][index] += (g.t() @ g).cpu()

    starts = lambda tokens: range(0, tokens // settings.sequence, rows)
    list(workers.map(observe, starts(wanted.importance_tokens)))
    list(workers.map(feel, starts(wanted.sensitivity_tokens)))
    sums["inputs"], sums["scales"] = inputs, scales
    checkpoint.save(sums, path)
    return sums


def error_metric(sensitivity: torch.Tensor, plain_share: float) -> torch.Tensor:
    """A square root M [D, D] of the mixed metric: |e M|^2 = (1 - share) e G e^T / mean(G) + share |e|^2."""
    share = sensitivity / (sensitivity.diagonal().mean() + 1e-30)
    mixed = (1 - plain_share) * share + plain_share * torch.eye(len(share), device=share.device)
    values, vectors = torch.linalg.eigh(mixed.double())
    return (vectors * values.clamp_min(0).sqrt()).float()
