"""The load-balance loss of one layer: over the batch always, within sequences where a layer routes by subject.

A layer that keeps to a few experts for a whole text uses all of them over a mixed batch, so the first term alone
does not see it. The second term's share grows while the effective experts within sequences stay below the aim.
"""

import torch


def effective(share: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of usage shares [..., N] -> [...]."""
    return torch.exp(-(share * share.clamp_min(1e-12).log()).sum(-1))


class Balance:
    """One layer's balance. Figures stay on the device: reading one waits for all that was asked of it before."""

    def __init__(self, batch_weight: float, within_weight: float, aim: float):
        self.batch_weight, self.within_weight, self.aim = batch_weight, within_weight, aim
        self.pull = torch.zeros(())
        self.within = torch.zeros(())
        self.usage: torch.Tensor | None = None

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        return {"pull": self.pull} if self.usage is None else {"pull": self.pull, "usage": self.usage}

    def restore(self, state: dict[str, torch.Tensor], device: str) -> None:
        """From `state`."""
        self.pull = state["pull"].to(device)
        self.usage = state["usage"].to(device) if "usage" in state else None

    def loss(self, probabilities: torch.Tensor, chosen: torch.Tensor, sequence: int) -> torch.Tensor:
        """[T, N] and [T, K] of whole sequences -> scalar; N * sum(share of choices * mean probability), 1 when even.

        The share is half this batch's, half a running mean, so that small batches are not forced to be even.
        """
        count = probabilities.shape[1]
        p = probabilities.view(-1, sequence, count).mean(1)
        choices = chosen.view(len(p), -1)
        used = torch.zeros_like(p).scatter_add_(1, choices, torch.ones_like(choices, dtype=p.dtype))
        used /= choices.shape[1]
        self.within = effective(used).mean()
        self.pull = (self.pull.to(p.device) + 0.1 * (self.aim - self.within) / self.aim).clamp(0, 1)
        now = used.mean(0)
        self.usage = now if self.usage is None else 0.95 * self.usage + 0.05 * now
        batch = count * ((0.5 * now + 0.5 * self.usage) * p.mean(0)).sum()
        inside = count * (used * p).sum(-1).mean()
        return self.batch_weight * batch + self.within_weight * self.pull * inside
