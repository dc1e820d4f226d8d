"""Text from the base or the student, many sequences at once, with a cache of keys and values.

All sequences advance together from position 0: a sequence takes its given ids while it has some and samples after
them, so no padding is needed. When one ends it goes on with the next prompt in the same context, as packed
training sequences do.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from .data import END_OF_TEXT
from .model import COMPUTE, dense_activation, norm, rotate, student_feed_forward

TURN_END = 2


def dense_part(h, layer):
    """Feed-forward of the base: [B, D] f32 -> [B, D]."""
    return F.linear(dense_activation(h.to(COMPUTE), layer["gate_up"]), layer["down"])


def student_part(shape) -> Callable:
    """Feed-forward of the student."""
    return lambda h, layer: student_feed_forward(h.to(COMPUTE), layer, shape, True, h)[0]


class Cache:
    """Keys and values of all layers: [layer][B · kv heads, length, head] bf16."""

    def __init__(self, layers: int, batch: int, length: int, sizes, device):
        shape = (layers, batch * sizes.kv_heads, length, sizes.head)
        self.keys, self.values = (torch.zeros(shape, dtype=COMPUTE, device=device) for _ in range(2))


def step(ids, position: int, cache: Cache, layers, ends, sizes, cos, sin, feed_forward):
    """One position for all sequences: ids [B] -> logits [B, V] f32."""
    batch, heads, kv_heads, head = len(ids), sizes.heads, sizes.kv_heads, sizes.head
    x = F.embedding(ids.to(cos.device), ends["embedding"]).float()
    here = slice(position, position + 1)
    for index, layer in enumerate(layers):
        qkv = F.linear(norm(x, layer["attention_norm"], sizes).to(COMPUTE), layer["qkv"])
        if "qkv_bias" in layer:
            qkv = qkv + layer["qkv_bias"].to(COMPUTE)
        qkv = qkv.view(batch, 1, heads + 2 * kv_heads, head)
        qk = rotate(qkv[:, :, : heads + kv_heads], cos[here], sin[here])[:, 0]
        cache.keys[index, :, position] = qk[:, heads:].reshape(-1, head)
        cache.values[index, :, position] = qkv[:, 0, heads + kv_heads :].reshape(-1, head)
        q = (qk[:, :heads] / math.sqrt(head)).reshape(batch * kv_heads, heads // kv_heads, head)
        keys, values = cache.keys[index, :, : position + 1], cache.values[index, :, : position + 1]
        p = torch.softmax(torch.bmm(q, keys.transpose(1, 2)).float(), -1).to(COMPUTE)
        x = x + F.linear(torch.bmm(p, values).view(batch, -1), layer["o"])
        x = x + feed_forward(norm(x, layer["feed_forward_norm"], sizes), layer)
    final = norm(x, ends["output_norm"], sizes).to(COMPUTE)
    return F.linear(final, ends["embedding"]).float()


def pick(logits, temperature: float, top_k: int, generator: torch.Generator) -> torch.Tensor:
    """[B, V] -> [B]; greedy at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1)
    values, ids = logits.topk(top_k, -1)
    drawn = torch.multinomial(torch.softmax(values / temperature, -1), 1, generator=generator)
    return ids.gather(1, drawn)[:, 0]


@torch.no_grad()
def packed(prompts: Iterator[list[int]], batch: int, length: int, model, feed_forward, temperature, top_k, seed):
    """[batch, length] ids: prompts with sampled answers, one after another in each sequence."""
    layers, ends, sizes, cos, sin = model
    generator = torch.Generator(cos.device).manual_seed(seed)
    cache = Cache(len(layers), batch, length, sizes, cos.device)
    given = [list(next(prompts)) for _ in range(batch)]
    columns = [[queue.pop(0) for queue in given]]
    for position in range(length - 1):
        ids = columns[-1]
        logits = step(torch.tensor(ids), position, cache, layers, ends, sizes, cos, sin, feed_forward)
        drawn = pick(logits, temperature, top_k, generator).tolist()
        for row, queue in enumerate(given):
            if not queue and ids[row] in (TURN_END, END_OF_TEXT):
                queue.extend([END_OF_TEXT] * (ids[row] != END_OF_TEXT) + next(prompts))
            if queue:
                drawn[row] = queue.pop(0)
        columns.append(drawn)
    return torch.tensor(columns).t()


@torch.no_grad()
def continuations(prompts: list[list[int]], limit: int, model, feed_forward, temperature, top_k, seed):
    """Ids that follow each prompt, up to an end token or `limit`."""
    layers, ends, sizes, cos, sin = model
    generator = torch.Generator(cos.device).manual_seed(seed)
    longest = max(map(len, prompts)) + limit
    cache = Cache(len(layers), len(prompts), longest, sizes, cos.device)
    made: list[list[int]] = [[] for _ in prompts]
    ids = torch.tensor([prompt[0] for prompt in prompts])
    for position in range(longest - 1):
        logits = step(ids, position, cache, layers, ends, sizes, cos, sin, feed_forward)
        drawn = pick(logits, temperature, top_k, generator).tolist()
        for row, prompt in enumerate(prompts):
            if position + 1 < len(prompt):
                drawn[row] = prompt[position + 1]
            elif len(made[row]) < limit and not (made[row] and made[row][-1] in (TURN_END, END_OF_TEXT)):
                made[row].append(drawn[row])
        ids = torch.tensor(drawn)
    return made
