"""The student's parameters: which are frozen, which learn, how large their steps are; checkpoints of them.

Learnt tensors have f32 masters; matrices take part in products as bf16 copies that are renewed after each step.
"""

from pathlib import Path

import torch

from . import checkpoint
from .model import COMPUTE
from .rounding import BLOCK, rounded
from .settings import EndToEnd

# Matrices that keep the base's 4-bit codes; only the blocks' scales and minima learn.
SCALED = ("qkv", "o", "shared_gate_up")
FROZEN = tuple(f"{name}_codes" for name in SCALED)
MATRICES = ("expert_gate_up", "expert_down", "shared_down")
# Bits of the codes that learnt matrices are shipped in (export.py).
BITS = {"expert_gate_up": 4, "expert_down": 4, "shared_down": 5}


def from_parts(base, dense_layers: list[dict], seeded: list[dict], learnt: list[dict], seed: int) -> list[dict]:
    """The student after the local stage: all tensors of each layer, matrices f32 where they learn."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index, (dense, new, local) in enumerate(zip(dense_layers, seeded, learnt)):
        blocks = lambda *names: [
            torch.cat(parts) for parts in zip(*(base.blocks(f"blk.{index}.{name}.weight") for name in names))
        ]
        rows = new["shared_rows"]
        both = torch.cat([rows, rows + dense["down"].shape[1]])
        kept = {
            "qkv": blocks("attn_q", "attn_k", "attn_v"),
            "o": blocks("attn_output"),
            "shared_gate_up": [part[both] for part in blocks("ffn_gate", "ffn_up")],
        }
        hidden = dense["o"].shape[0]
        made.append(
            {
                **{
                    f"{name}_{part}": tensor
                    for name, parts in kept.items()
                    for part, tensor in zip(("codes", "scales", "minima"), parts)
                },
                # The gate's sigmoid starts near a half.
                "shared_down": dense["down"][:, rows].float() * 2,
                "shared_gate": torch.randn(hidden, generator=generator) * 0.002,
                "attention_norm": dense["attention_norm"].clone(),
                "feed_forward_norm": dense["feed_forward_norm"].clone(),
                "qkv_bias": torch.zeros(dense["qkv"].shape[0]),
            }
            | {name: local[name].clone() for name in ("router", "expert_gate_up", "expert_down")}
        )
    return made


def decoded(layer: dict, name: str) -> torch.Tensor:
    """scale * code + minimum, bf16 [out, in]."""
    codes = layer[f"{name}_codes"]
    blocks = codes.view(len(codes), -1, BLOCK).float()
    return (blocks * layer[f"{name}_scales"][..., None] + layer[f"{name}_minima"][..., None]).view(codes.shape).to(COMPUTE)


def as_shipped(matrix: torch.Tensor, name: str) -> torch.Tensor:
    """A learnt matrix with the values it will have in the file, whose blocks lie along a row of [out, in]."""
    if name == "shared_down":
        return rounded(matrix, BITS[name])
    return rounded(matrix.transpose(1, 2), BITS[name]).transpose(1, 2).contiguous()


class Group:
    """One layer's learnt tensors (or the output norm) with their optimiser and gradient sums."""

    def __init__(self, tensors: dict, wanted: EndToEnd, device: str):
        self.masters = {k: v.to(device).float().clone() for k, v in tensors.items() if k not in FROZEN}
        self.frozen = {k: v.to(device) for k, v in tensors.items() if k in FROZEN}
        self.scaled = [name for name in SCALED if f"{name}_codes" in self.frozen]
        self.rounded = wanted.rounded
        self.working: dict[str, torch.Tensor] = {}
        relative = {
            "expert_gate_up": wanted.expert_step_size,
            "expert_down": wanted.expert_step_size,
            "router": wanted.router_step_size,
            "shared_down": wanted.shared_step_size,
        }
        for name in self.scaled:
            relative[f"{name}_scales"] = relative[f"{name}_minima"] = wanted.attention_step_size
        groups = []
        for name, master in self.masters.items():
            master.grad = torch.zeros_like(master)
            size = wanted.norm_step_size * (0.3 if name == "shared_gate" else 1)
            if name in relative:
                size = relative[name] * master.square().mean().sqrt().item()
            groups.append({"params": [master], "lr": 0.0, "size": size})
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.98), fused=True)
        self.renew()

    def renew(self) -> None:
        """Working copies from the masters."""
        for name, master in self.masters.items():
            if name.endswith(("_scales", "_minima")):
                continue
            copy = master.detach()
            if self.rounded and name in MATRICES:
                copy = as_shipped(copy, name)
            copy = copy.to(COMPUTE) if name in MATRICES else copy.clone()
            self.working[name] = copy.requires_grad_()
        for name in self.scaled:
            self.working[name] = decoded(self.frozen | self.masters, name).detach().requires_grad_()

    def layer(self) -> dict:
        """What model.student_forward takes."""
        return self.working

    def add(self, gradients: dict[str, torch.Tensor]) -> None:
        """Adds one task's gradients."""
        for name, gradient in gradients.items():
            if name not in self.scaled:
                self.masters[name].grad.add_(gradient)
                continue
            blocks = gradient.float().view(len(gradient), -1, BLOCK)
            codes = self.frozen[f"{name}_codes"].view(blocks.shape)
            self.masters[f"{name}_scales"].grad.add_((blocks * codes).sum(-1))
            self.masters[f"{name}_minima"].grad.add_(blocks.sum(-1))

    def step(self, factor: float) -> None:
        """One optimiser step, then fresh copies and zero sums."""
        for group in self.optimiser.param_groups:
            group["lr"] = group["size"] * factor
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=False)
        self.renew()

    def tensors(self) -> dict:
        """All tensors, learnt ones f32."""
        return self.frozen | {name: master.detach() for name, master in self.masters.items()}

    def state(self) -> dict:
        """For a checkpoint: masters and the optimiser's moments by name."""
        moments = {name: dict(self.optimiser.state[master]) for name, master in self.masters.items()}
        return {"masters": {k: v.detach() for k, v in self.masters.items()}, "moments": moments}

    def restore(self, state: dict) -> None:
        """From `state`; step sizes stay those of this run's settings."""
        for name, master in self.masters.items():
            master.copy_(state["masters"][name])
            if state["moments"][name]:
                moments = state["moments"][name].items()
                self.optimiser.state[master] = {k: v.clone().to(master.device) for k, v in moments}
        self.renew()


def ready(layers: list[dict]) -> list[dict]:
    """Tensors as model.student_forward takes them: matrices bf16, 4-bit codes decoded."""
    return [
        {k: v.to(COMPUTE) if k in MATRICES else v for k, v in layer.items()}
        | {name: decoded(layer, name) for name in SCALED}
        for layer in layers
    ]


def load_stage(work: Path, stage: str, base, base_model, settings, finished: str | None):
    """(layers, output norm) after `stage`; for a stage that still runs, its last checkpoint. `finished`: the model that the mix began with."""
    dense, ends, *_ = base_model
    seeded = checkpoint.load(work / "seeded.pt")
    if stage == "seeding":
        return ready(from_parts(base, dense, seeded, seeded, settings.seed)), ends["output_norm"]
    if stage == "local":
        learnt = checkpoint.load(work / "local.pt")
        if learnt is None:
            learnt = [layer["tensors"] for layer in checkpoint.load(work / "local-progress.pt")["layers"]]
        return ready(from_parts(base, dense, seeded, learnt, settings.seed)), ends["output_norm"]
    if (done := checkpoint.load(work / f"{stage}.pt")) is not None:
        return ready(done["layers"]), done["output_norm"]
    *groups, final = checkpoint.load(work / f"{stage}-progress.pt")["groups"]
    if finished:
        from .export import read_gguf  # which imports this module

        frozen = read_gguf(Path(finished), settings.shape)["layers"]
    else:
        frozen = from_parts(base, dense, seeded, seeded, settings.seed)
    made = [{name: layer[name] for name in FROZEN} | group["masters"] for layer, group in zip(frozen, groups)]
    return ready(made), final["masters"]["output_norm"]
