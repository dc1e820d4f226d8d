"""Second stage: cuts each dense layer into a shared expert and 60 routed ones, without training.

Neurons with the largest mean contribution become the shared expert; the router is a balanced clustering of the
layer's inputs; each expert starts from the left-out neurons that matter most, and most specifically, to its
tokens; its down projection is then the least-squares answer on the sample.
"""

import torch
import torch.nn.functional as F

from .evaluate import LruMisses
from .model import dense_activation, route
from .settings import Settings


def split_neurons(activation: torch.Tensor, down: torch.Tensor, shared_width: int):
    """Indices (ascending) of shared and left-out neurons, by mean |activation| times the down column's norm."""
    score = activation.float() * down.float().norm(dim=0)
    order = score.argsort(descending=True)
    return order[:shared_width].sort().values, order[shared_width:].sort().values


def constant_direction(x: torch.Tensor) -> torch.Tensor:
    """v with x v close to 1 for every row: lets a router without bias carry one."""
    gram = x.t() @ x / len(x)
    ridge = 0.01 * gram.diagonal().mean() * torch.eye(gram.shape[0], device=x.device)
    return torch.linalg.solve(gram + ridge, x.mean(0))


def cluster_space(x: torch.Tensor, sequence: int, subject_shrink: float) -> torch.Tensor:
    """A map [D, D] after which clusters follow tokens: dimensions evened out, directions of the text's subject shrunk."""
    scale = x.std(0).clamp_min(1e-4).rsqrt()
    even = (x - x.mean(0)) * scale
    by_sequence = even.view(-1, sequence, x.shape[1])
    means = by_sequence.mean(1)
    between = means.t() @ means / len(means)
    within = (by_sequence - means[:, None]).square().mean()
    values, vectors = torch.linalg.eigh(torch.eye(x.shape[1], device=x.device) + subject_shrink / within * between)
    return scale[:, None] * (vectors * values.rsqrt()) @ vectors.t()


def balanced_centres(z: torch.Tensor, count: int, used: int, rounds: int, generator: torch.Generator):
    """Spherical k-means on rows of norm 1, with offsets that even out how often each centre is among the `used` best."""
    centres = z[torch.randperm(len(z), generator=generator)[:count].to(z.device)].clone()
    offsets = torch.zeros(count, device=z.device)
    for turn in range(rounds):
        scores = z @ centres.t()
        step = 0.3 * scores.std() * (1 - turn / rounds) + 0.01
        for _ in range(5):
            chosen = (scores + offsets).topk(used, -1).indices
            load = torch.bincount(chosen.reshape(-1), minlength=count).float() * count / chosen.numel()
            offsets -= step * 0.5 * (load - 1).clamp(-1, 1)
        if turn == rounds - 1:
            break
        best = (scores + offsets).argmax(-1)
        centres = F.normalize(torch.zeros_like(centres).index_add_(0, best, z) + 1e-3 * centres, dim=-1)
    return centres, offsets


def temperature_for(scores: torch.Tensor, used: int, mass: float) -> float:
    """The factor on scores that gives the `used` best a mean softmax mass of `mass`."""
    low, high = 0.1, 1000.0
    for _ in range(40):
        middle = (low * high) ** 0.5
        reached = torch.softmax(scores * middle, -1).topk(used, -1).values.sum(-1).mean()
        low, high = (middle, high) if reached < mass else (low, middle)
    return low


def miss_rate(x: torch.Tensor, router: torch.Tensor, settings: Settings) -> float:
    """Share of choices that an LRU cache of half the experts misses, after a quarter of each sequence."""
    shape, cold = settings.shape, settings.sequence // 4
    chosen = (x @ router.t()).topk(shape.experts_per_token, -1).indices.view(-1, settings.sequence, shape.experts_per_token)
    misses = lookups = 0
    for sequence in chosen.tolist():
        cache = LruMisses(shape.experts // 2)
        for token in sequence[:cold]:
            cache.token(token)
        warm = cache.misses
        for token in sequence[cold:]:
            cache.token(token)
        misses += cache.misses - warm
        lookups += (settings.sequence - cold) * shape.experts_per_token
    return misses / lookups


def cluster(x: torch.Tensor, subject_shrink: float, rounds: int, settings: Settings, generator) -> torch.Tensor:
    """A router [N, D] f32 of temperature 1 from balanced clusters of the inputs."""
    shape = settings.shape
    space = cluster_space(x, settings.sequence, subject_shrink)
    mean = x.mean(0)
    moved = (x - mean) @ space
    centres, offsets = balanced_centres(
        F.normalize(moved, dim=-1), shape.experts, shape.experts_per_token, rounds, generator
    )
    weight = centres @ space.t() / moved.norm(dim=-1).mean()
    # Offsets and the mean belong to a bias, which this architecture's router does not have.
    return weight + (offsets - weight @ mean)[:, None] * constant_direction(x)[None, :]


def make_router(x: torch.Tensor, settings: Settings, generator: torch.Generator) -> tuple[torch.Tensor, float]:
    """[N, D] f32 and its miss rate: the more subjects are shrunk, the more experts a text uses and the cache misses."""
    wanted, shape = settings.statistics, settings.shape
    few = x[: len(x) // 2]
    low, high = wanted.least_subject_shrink, wanted.most_subject_shrink
    for _ in range(wanted.shrink_tries):
        middle = (low * high) ** 0.5
        trial = cluster(few, middle, wanted.trial_rounds, settings, generator)
        low, high = (middle, high) if miss_rate(few[:4096], trial, settings) < wanted.miss_rate else (low, middle)
    router = cluster(x, (low * high) ** 0.5, wanted.cluster_rounds, settings, generator)
    factor = temperature_for((x @ router.t())[:4096], shape.experts_per_token, wanted.top_mass)
    return router * factor, miss_rate(x[-6144:], router, settings)


def seed_layer(dense: dict, activation, x, scale, settings: Settings, index: int) -> dict:
    """One layer's new tensors, on the CPU, and its error on the sample's held-out tenth; x [n, D] f32, scale [n]."""
    shape = settings.shape
    generator = torch.Generator().manual_seed(settings.seed + index)
    shared, left = split_neurons(activation, dense["down"], shape.shared_width)
    gate_up, down = dense["gate_up"].float(), dense["down"].float()
    feed_forward = down.shape[1]
    rows = lambda chosen: torch.cat([gate_up[chosen], gate_up[feed_forward + chosen]])

    router, misses = make_router(x, settings, generator)
    probabilities, weights, chosen = route(x, router, shape.experts_per_token)
    active = dense_activation(x, rows(left))
    target = active @ down[:, left].t()

    contribution = active.abs() * down[:, left].norm(dim=0) / scale[:, None]
    member = torch.zeros_like(probabilities).scatter_(1, chosen, 1.0)
    by_expert = member.t() @ contribution / member.sum(0).clamp_min(1)[:, None]
    specific = by_expert * (by_expert / by_expert.mean(0).clamp_min(1e-9)).sqrt()
    picked = specific.topk(shape.expert_width, -1).indices
    neurons = left[picked]

    # [n, N * W]: each expert's activations times its routing weight, zero where it was not chosen.
    weighted = torch.zeros_like(probabilities).scatter_(1, chosen, weights)
    features = (active[:, picked.reshape(-1)].view(len(x), shape.experts, -1) * weighted[..., None]).flatten(1)
    features, goal = features / scale[:, None], target / scale[:, None]
    train = len(x) * 9 // 10
    gram = features[:train].t() @ features[:train]
    gram.diagonal().mul_(1.05).add_(1e-3 * gram.diagonal().mean())
    solved = torch.linalg.solve(gram, features[:train].t() @ goal[:train])
    error = (features[train:] @ solved - goal[train:]).square().sum() / goal[train:].square().sum()

    made = {
        "shared_rows": shared,
        "left_rows": left,
        "router": router,
        "expert_gate_up": torch.cat([gate_up[neurons], gate_up[feed_forward + neurons]], 1).transpose(1, 2).contiguous(),
        "expert_down": solved.view(shape.experts, shape.expert_width, -1).contiguous(),
    }
    return {name: tensor.cpu() for name, tensor in made.items()} | {"held_out_error": error.item(), "miss_rate": misses}


def seed(statistics: dict, dense_layers: list[dict], settings: Settings, workers) -> list[dict]:
    """All layers' new tensors; about three minutes on two cores."""

    def one(index: int) -> dict:
        dense = dense_layers[index]
        here = lambda name: statistics[name][index].to(dense["down"].device, torch.float32)
        made = seed_layer(dense, here("activation"), here("inputs"), here("scales"), settings, index)
        print(
            f"layer {index:2}: held-out error of the left-out part {made['held_out_error']:.3f}, "
            f"LRU miss rate {made['miss_rate']:.3f}",
            flush=True,
        )
        return made

    return list(workers.map(one, range(len(dense_layers))))
