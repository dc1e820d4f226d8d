"""Third stage: every layer alone learns the output of the neurons that its shared expert leaves out.

Inputs are the dense model's, so layers do not wait for each other and nothing is propagated back through the
network. The error is weighted by how sensitive the dense model is to it (statistics.error_metric). The dense
model's final states are kept on the way: the next stage needs them.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import checkpoint
from .balance import Balance
from .model import COMPUTE, dense_activation, dense_forward, route, routed
from .settings import Settings
from .statistics import error_metric, root_mean_square

LEARNT = ("expert_gate_up", "expert_down", "router")


def schedule(done: float, step: int, warmup: int) -> float:
    """A cosine from 1 to 0 over the share of a stage that is done, with a linear warm-up in its first steps."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class LayerTrainer:
    """One layer's router and experts with their optimiser."""

    def __init__(self, seeded: dict, metric: torch.Tensor, settings: Settings, device: str):
        self.settings = settings
        wanted = settings.local
        self.metric = metric.to(device, COMPUTE)
        self.tensors = {name: seeded[name].to(device).float().clone().requires_grad_() for name in LEARNT}
        sizes = {name: (wanted.router_step_size if name == "router" else wanted.step_size) for name in LEARNT}
        groups = [
            {"params": [tensor], "lr": 0.0, "size": sizes[name] * tensor.detach().square().mean().sqrt().item()}
            for name, tensor in self.tensors.items()
        ]
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.98), fused=True)
        self.balance = Balance(wanted.balance, wanted.balance_within, settings.even_within_sequence)
        self.power = 0.0
        self.error = 1.0

    def step(self, x, target, scale, factor: float) -> None:
        """x and target [T, D] bf16, scale [T, 1] f32."""
        t = self.tensors
        p, weights, chosen = route(x, t["router"], self.settings.shape.experts_per_token)
        out = routed(x, weights, chosen, t["expert_gate_up"].to(COMPUTE), t["expert_down"].to(COMPUTE))
        miss = ((out.float() - target.float()) / scale).to(COMPUTE) @ self.metric
        power = ((target.float() / scale).to(COMPUTE) @ self.metric).float().square().sum().item()
        self.power = 0.95 * self.power + 0.05 * power if self.power else power
        error = miss.float().square().sum() / self.power
        loss = error + self.balance.loss(p, chosen, self.settings.sequence)
        for group in self.optimiser.param_groups:
            group["lr"] = group["size"] * factor
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.error = 0.95 * self.error + 0.05 * error.item()

    def state(self) -> dict:
        """All that a resumed run needs."""
        return {
            "tensors": {name: tensor.detach() for name, tensor in self.tensors.items()},
            "optimiser": self.optimiser.state_dict(),
            "running": [self.power, self.error],
            "balance": self.balance.state(),
        }

    def restore(self, state: dict) -> None:
        """From `state`."""
        for name, tensor in self.tensors.items():
            tensor.data.copy_(state["tensors"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.power, self.error = state["running"]
        self.balance.restore(state["balance"], self.tensors["router"].device)


def split_layers(dense_layers: list[dict], seeded: list[dict], device: str) -> list[dict]:
    """Dense layers with the shared neurons first and the left-out ones after them, in two down matrices."""
    made = []
    for layer, new in zip(dense_layers, seeded):
        order = torch.cat([new["shared_rows"], new["left_rows"]]).to(device)
        gate, up = layer["gate_up"].chunk(2)
        down = layer["down"][:, order]
        width = len(new["shared_rows"])
        made.append(
            layer
            | {
                "gate_up": torch.cat([gate[order], up[order]]).to(device),
                "shared_down": down[:, :width].contiguous().to(device),
                "left_down": down[:, width:].contiguous().to(device),
            }
        )
    return made


def teach(pool, final_states: np.ndarray | None, base_model, seeded, sums, settings: Settings, workers, folder: Path):
    """Runs or resumes the stage; returns one dictionary of learnt tensors a layer.

    `final_states` [sequences, L, D] i16 (bf16 bits), if they are kept, is filled for the sequences that the stage sees.
    """
    finished = folder / "local.pt"
    if (done := checkpoint.load(finished)) is not None:
        return done
    dense_layers, ends, sizes, cos, sin = base_model
    wanted, device = settings.local, str(ends["embedding"].device)
    layers = split_layers(dense_layers, seeded, device)
    trainers = [
        LayerTrainer(new, error_metric(sums["sensitivity"][i].to(device), wanted.plain_error), settings, device)
        for i, new in enumerate(seeded)
    ]
    chunk_rows, task_rows = wanted.chunk_tokens // settings.sequence, wanted.task_tokens // settings.sequence
    chunks = wanted.tokens // wanted.chunk_tokens
    steps_per_chunk = wanted.chunk_tokens // wanted.step_tokens
    first = 0
    progress = folder / "local-progress.pt"
    if (saved := checkpoint.load(progress)) is not None:
        first = saved["chunk"]
        for trainer, state in zip(trainers, saved["layers"]):
            trainer.restore(state)
        del saved

    def observe(start: int) -> list[tuple]:
        """Per layer (input, target, scale) for one task's sequences."""
        ids = torch.from_numpy(pool[start : start + task_rows].astype("int64")).to(device)
        seen = []

        def feed_forward(index, h, residual, layer):
            active = dense_activation(h, layer["gate_up"])
            width = layer["shared_down"].shape[1]
            left = F.linear(active[..., width:], layer["left_down"])
            out = F.linear(active[..., :width], layer["shared_down"]) + left
            scale = root_mean_square(residual + out)
            seen.append((h.flatten(0, 1), left.flatten(0, 1), scale.flatten(0, 1)))
            return out

        with torch.no_grad():
            final = dense_forward(ids, layers, ends, sizes, cos, sin, feed_forward)
        if final_states is not None:
            final_states[start : start + task_rows] = final.bfloat16().view(torch.int16).cpu().numpy()
        return seen

    def learn(index: int, parts: list[tuple], chunk: int) -> None:
        x, target, scale = (torch.cat(tensors) for tensors in zip(*parts))
        for k in range(steps_per_chunk):
            rows = slice(k * wanted.step_tokens, (k + 1) * wanted.step_tokens)
            step = chunk * steps_per_chunk + k
            factor = schedule(step / (chunks * steps_per_chunk), step, wanted.warmup_steps)
            trainers[index].step(x[rows], target[rows], scale[rows], factor)

    submit = lambda chunk: [
        workers.submit(observe, start) for start in range(chunk * chunk_rows, (chunk + 1) * chunk_rows, task_rows)
    ]
    timer = checkpoint.Timer(settings.checkpoint_seconds)
    ahead = submit(first) if first < chunks else []
    for chunk in range(first, chunks):
        parts = [future.result() for future in ahead]
        learning = [workers.submit(learn, i, [p[i] for p in parts], chunk) for i in range(len(layers))]
        ahead = submit(chunk + 1) if chunk + 1 < chunks else []
        del parts
        for future in learning:
            future.result()
        del learning
        errors = [trainer.error for trainer in trainers]
        print(
            f"local {chunk + 1}/{chunks}: error mean {sum(errors) / len(errors):.4f}, by layer",
            " ".join(f"{e:.2f}" for e in errors),
            "| within",
            " ".join(f"{trainer.balance.within:.0f}" for trainer in trainers),
            flush=True,
        )
        if timer.due():
            checkpoint.save({"chunk": chunk + 1, "layers": [trainer.state() for trainer in trainers]}, progress)
    result = [trainer.state()["tensors"] for trainer in trainers]
    checkpoint.save(result, finished)
    progress.unlink(missing_ok=True)
    return result
