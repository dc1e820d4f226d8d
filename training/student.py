"""The student's parameters: which are frozen, which learn, how large their steps are; checkpoints of them.

Learnt tensors have f32 masters; matrices take part in products as bf16 copies that are renewed after each step.
"""

import torch

from .model import COMPUTE
from .settings import EndToEnd

FROZEN = ("qkv", "o", "shared_gate_up")
MATRICES = ("expert_gate_up", "expert_down", "shared_down")
RELATIVE_STEPS = ("expert_gate_up", "expert_down", "shared_down", "router")


def from_parts(dense_layers: list[dict], seeded: list[dict], learnt: list[dict], seed: int) -> list[dict]:
    """The student after the local stage: all tensors of each layer, matrices f32 where they learn."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for dense, new, local in zip(dense_layers, seeded, learnt):
        rows = new["shared_rows"]
        gate, up = dense["gate_up"].chunk(2)
        hidden = dense["o"].shape[0]
        made.append(
            {
                "qkv": dense["qkv"],
                "o": dense["o"],
                "shared_gate_up": torch.cat([gate[rows], up[rows]]),
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


class Group:
    """One layer's learnt tensors (or the output norm) with their optimiser and gradient sums."""

    def __init__(self, tensors: dict, wanted: EndToEnd, device: str):
        self.masters = {k: v.to(device).float().clone() for k, v in tensors.items() if k not in FROZEN}
        self.frozen = {k: v.to(device) for k, v in tensors.items() if k in FROZEN}
        self.working: dict[str, torch.Tensor] = {}
        sizes = {
            "expert_gate_up": wanted.expert_step_size,
            "expert_down": wanted.expert_step_size,
            "router": wanted.router_step_size,
            "shared_down": wanted.shared_step_size,
            "shared_gate": wanted.norm_step_size * 0.3,
        }
        groups = []
        for name, master in self.masters.items():
            master.grad = torch.zeros_like(master)
            size = sizes.get(name, wanted.norm_step_size)
            if name in RELATIVE_STEPS:
                size *= master.square().mean().sqrt().item()
            groups.append({"params": [master], "lr": 0.0, "size": size})
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.98), fused=True)
        self.renew()

    def renew(self) -> None:
        """Working copies from the masters."""
        for name, master in self.masters.items():
            copy = master.detach().to(COMPUTE) if name in MATRICES else master.detach().clone()
            self.working[name] = copy.requires_grad_()

    def layer(self) -> dict:
        """What model.student_forward takes."""
        return self.frozen | self.working

    def add(self, gradients: dict[str, torch.Tensor]) -> None:
        """Adds one task's gradients."""
        for name, gradient in gradients.items():
            self.masters[name].grad.add_(gradient)

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
        """For a checkpoint."""
        return {"masters": {k: v.detach() for k, v in self.masters.items()}, "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict) -> None:
        """From `state`; step sizes stay those of this run's settings."""
        sizes = [group["size"] for group in self.optimiser.param_groups]
        for name, master in self.masters.items():
            master.copy_(state["masters"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        for group, size in zip(self.optimiser.param_groups, sizes):
            group["size"] = size
        self.renew()


def ready(layers: list[dict]) -> list[dict]:
    """Tensors as model.student_forward takes them: matrices bf16."""
    return [{k: v.to(COMPUTE) if k in MATRICES else v for k, v in layer.items()} for layer in layers]


def load_stage(work, stage: str, base_model, settings):
    """(layers, output norm) after `stage`; for a stage that still runs, its last checkpoint."""
    from . import checkpoint

    dense, ends, *_ = base_model
    seeded = checkpoint.load(work / "seeded.pt")
    if stage == "local":
        learnt = checkpoint.load(work / "local.pt")
        if learnt is None:
            learnt = [layer["tensors"] for layer in checkpoint.load(work / "local-progress.pt")["layers"]]
        return ready(from_parts(dense, seeded, learnt, settings.seed)), ends["output_norm"]
    if (done := checkpoint.load(work / f"{stage}.pt")) is not None:
        return ready(done["layers"]), done["output_norm"]
    *groups, final = checkpoint.load(work / f"{stage}-progress.pt")["groups"]
    frozen = from_parts(dense, seeded, seeded, settings.seed)
    made = [{name: layer[name] for name in FROZEN} | group["masters"] for layer, group in zip(frozen, groups)]
    return ready(made), final["masters"]["output_norm"]
