"""The forward pass, dense and Mixture-of-Experts, in the order of the paper; shapes in comments.

T tokens (B sequences of L), D hidden, F feed-forward, N experts, K experts a token, W expert width.
The residual stream is f32; matrix products take bf16 where the hardware has it, else f32. Weights are plain tensors in
dictionaries, so that stages decide which of them learn. No cache of keys and values here: generate.py has its own step.
"""

import math

import torch
import torch.nn.functional as F

from .base import Base, Sizes
from .settings import Shape

COMPUTE = torch.bfloat16 if torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def rope_tables(sizes: Sizes, length: int, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, each [length, head / 2], f32."""
    half = sizes.head // 2
    frequency = sizes.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency[None, :]
    return angle.cos().float().to(device), angle.sin().float().to(device)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions on [B, L, heads, head], half-split pairs."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = cos[None, :, None, :].to(x.dtype), sin[None, :, None, :].to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class CausalAttention(torch.autograd.Function):
    """softmax(q k^T) v over blocks of queries; on CPU with its backward pass faster than the built-in one in bf16.

    q [G, R, L, head] (scaled already; R query heads share one key head), k and v [G, L, head].
    """

    BLOCK = 128

    @staticmethod
    def forward(ctx, q, k, v):
        groups, repeats, length, width = q.shape
        out = torch.empty_like(q)
        weights = []
        for start in range(0, length, CausalAttention.BLOCK):
            end = min(start + CausalAttention.BLOCK, length)
            rows = q[:, :, start:end].reshape(groups, -1, width)
            scores = torch.bmm(rows, k[:, :end].transpose(1, 2)).view(groups, repeats, end - start, end)
            # Only the square on the diagonal has keys after its queries.
            scores[..., start:].add_(torch.full((end - start,) * 2, float("-inf"), dtype=q.dtype, device=q.device).triu(1))
            p = torch.softmax(scores, -1).view(groups, -1, end)
            out[:, :, start:end] = torch.bmm(p, v[:, :end]).view(groups, repeats, end - start, width)
            weights.append(p)
        ctx.save_for_backward(q, k, v, *weights)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, *weights = ctx.saved_tensors
        groups, repeats, length, width = q.shape
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for p, start in zip(weights, range(0, length, CausalAttention.BLOCK)):
            end = min(start + CausalAttention.BLOCK, length)
            rows = q[:, :, start:end].reshape(groups, -1, width)
            d_rows = grad[:, :, start:end].reshape(groups, -1, width)
            dv[:, :end] += torch.bmm(p.transpose(1, 2), d_rows)
            dp = torch.bmm(d_rows, v[:, :end].transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq[:, :, start:end] = torch.bmm(ds, k[:, :end]).view(groups, repeats, end - start, width)
            dk[:, :end] += torch.bmm(ds.transpose(1, 2), rows)
        return dq, dk, dv


def attention(x: torch.Tensor, layer: dict, sizes: Sizes, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[B, L, D] normalised input -> [B, L, D]."""
    batch, length, _ = x.shape
    heads, kv_heads, head = sizes.heads, sizes.kv_heads, sizes.head
    qkv = F.linear(x, layer["qkv"])
    if "qkv_bias" in layer:
        qkv = qkv + layer["qkv_bias"].to(qkv.dtype)
    qkv = qkv.view(batch, length, heads + 2 * kv_heads, head)
    qk = rotate(qkv[:, :, : heads + kv_heads], cos[:length], sin[:length])
    q = qk[:, :, :heads] * (1 / math.sqrt(head))
    repeats = heads // kv_heads
    q = q.view(batch, length, kv_heads, repeats, head).permute(0, 2, 3, 1, 4).reshape(-1, repeats, length, head)
    k = qk[:, :, heads:].transpose(1, 2).reshape(-1, length, head)
    v = qkv[:, :, heads + kv_heads :].transpose(1, 2).reshape(-1, length, head)
    if x.is_cuda or not q.requires_grad:
        out = F.scaled_dot_product_attention(
            q.view(batch, heads, length, head),
            k.view(batch, kv_heads, length, head),
            v.view(batch, kv_heads, length, head),
            is_causal=True,
            enable_gqa=True,
            scale=1.0,
        )
    else:
        out = CausalAttention.apply(q, k, v)
    out = out.reshape(batch, heads, length, head).transpose(1, 2).reshape(batch, length, heads * head)
    return F.linear(out, layer["o"])


def norm(x: torch.Tensor, weight: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """RMSNorm in f32."""
    return F.rms_norm(x, (sizes.hidden,), weight, sizes.norm_epsilon)


def dense_activation(x: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate x) * (up x): [T, D] -> [T, F]; gate and up rows stacked in one matrix."""
    gate, up = F.linear(x, gate_up).chunk(2, -1)
    return F.silu(gate) * up


def route(x: torch.Tensor, router: torch.Tensor, experts_per_token: int):
    """Scores over all N, softmax over all N, the K best with their weights, not renormalised."""
    p = torch.softmax(F.linear(x.float(), router), -1)
    weights, chosen = p.topk(experts_per_token, -1)
    return p, weights, chosen


def routed(x, weights, chosen, gate_up, down):
    """Sum of the chosen experts: x [T, D], weights and chosen [T, K], gate_up [N, D, 2W], down [N, W, D]."""
    if x.is_cuda:
        return routed_densely(x, weights, chosen, gate_up, down)
    return RoutedInSlots.apply(x, weights, chosen, gate_up, down)


def routed_densely(x, weights, chosen, gate_up, down):
    """All experts for all tokens, with weight 0 where not chosen: more work, in two large products without any order of tokens.

    Experts as narrow as these leave an accelerator idle otherwise, and shapes that no choice changes can be compiled.
    """
    experts, hidden, _ = gate_up.shape
    gate, up = (x @ gate_up.transpose(0, 1).reshape(hidden, -1)).view(len(x), experts, -1).chunk(2, -1)
    spread = torch.zeros(len(x), experts, dtype=x.dtype, device=x.device).scatter(1, chosen, weights.to(x.dtype))
    active = F.silu(gate) * up * spread[..., None]
    return active.flatten(1) @ down.reshape(-1, hidden)


class RoutedInSlots(torch.autograd.Function):
    """Each expert for its own tokens, in as many slots as the most wanted expert needs: two batched products for all experts.

    Every step is a gather, backward too, since each token knows its slots and each slot its token. Slots S = N * most;
    an unused slot takes the last token with weight 0.
    """

    @staticmethod
    def forward(ctx, x, weights, chosen, gate_up, down):
        experts, count = gate_up.shape[0], chosen.shape[1]
        flat = chosen.reshape(-1)
        order = torch.argsort(flat, stable=True)
        wanted = torch.bincount(flat, minlength=experts)
        most = -(-int(wanted.max()) // BLOCK_SLOTS) * BLOCK_SLOTS
        begin = wanted.cumsum(0) - wanted
        place = flat[order] * most + torch.arange(len(flat)) - begin[flat[order]]
        slots = torch.empty_like(flat).index_copy_(0, order, place).view(-1, count)  # [T, K]
        token = torch.full((experts * most,), len(x) - 1).index_copy_(0, place, order // count)  # [S]
        weight = torch.zeros(experts * most, 1, dtype=x.dtype).index_copy_(0, place, weights.reshape(-1, 1)[order].to(x.dtype))
        inputs = x.index_select(0, token).view(experts, most, -1)
        gate, up = torch.bmm(inputs, gate_up).view(experts * most, -1).chunk(2, -1)
        active = F.silu(gate) * up
        out = gathered_sum(torch.bmm((active * weight).view(experts, most, -1), down).view(experts * most, -1), slots)
        ctx.save_for_backward(inputs, gate, up, active, weight, slots, token, gate_up, down)
        return out

    @staticmethod
    def backward(ctx, grad):
        inputs, gate, up, active, weight, slots, token, gate_up, down = ctx.saved_tensors
        experts, most, _ = inputs.shape
        by_slot = grad.index_select(0, token).view(experts, most, -1)
        d_down = torch.bmm((active * weight).view(experts, most, -1).transpose(1, 2), by_slot)
        d_active = torch.bmm(by_slot, down.transpose(1, 2)).view(experts * most, -1)
        d_weights = (d_active * active).sum(-1, dtype=torch.float32)[slots]
        d_active *= weight
        d_both = torch.cat([torch.ops.aten.silu_backward(d_active * up, gate), d_active * F.silu(gate)], -1)
        d_both = d_both.view(experts, most, -1)
        d_gate_up = torch.bmm(inputs.transpose(1, 2), d_both)
        d_x = gathered_sum(torch.bmm(d_both, gate_up.transpose(1, 2)).view(experts * most, -1), slots)
        return d_x, d_weights, None, d_gate_up, d_down


# The number of an expert's slots is a multiple of this.
BLOCK_SLOTS = 128


def gathered_sum(rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Sum over k of rows[slots[:, k]]: [S, D] and [T, K] -> [T, D]."""
    total = rows.index_select(0, slots[:, 0])
    for column in slots.t()[1:]:
        total += rows.index_select(0, column)
    return total


def dense_layers(base: Base, device="cpu") -> tuple[list[dict], dict]:
    """The base's weights: one dictionary a layer, and {embedding, output_norm}."""
    layers = []
    for i in range(base.sizes.layers):
        take = lambda name: base.tensor(f"blk.{i}.{name}.weight").to(device)
        layers.append(
            {
                "attention_norm": take("attn_norm"),
                "qkv": torch.cat([take("attn_q"), take("attn_k"), take("attn_v")]).to(COMPUTE),
                "o": take("attn_output").to(COMPUTE),
                "feed_forward_norm": take("ffn_norm"),
                "gate_up": torch.cat([take("ffn_gate"), take("ffn_up")]).to(COMPUTE),
                "down": take("ffn_down").to(COMPUTE),
            }
        )
    ends = {
        "embedding": base.tensor("token_embd.weight").to(device, COMPUTE),
        "output_norm": base.tensor("output_norm.weight").to(device),
    }
    return layers, ends


def dense_forward(ids, layers, ends, sizes, cos, sin, each_layer=None):
    """[B, L] ids -> [B, L, D] normalised final state.

    `each_layer(index, x, residual, layer)` may replace the feed-forward part: it gets its normalised input in bf16
    and the residual stream before it, and returns its output [B, L, D].
    """
    x = F.embedding(ids, ends["embedding"]).float()
    for index, layer in enumerate(layers):
        x = x + attention(norm(x, layer["attention_norm"], sizes).to(COMPUTE), layer, sizes, cos, sin)
        h = norm(x, layer["feed_forward_norm"], sizes).to(COMPUTE)
        if each_layer is None:
            x = x + F.linear(dense_activation(h, layer["gate_up"]), layer["down"])
        else:
            x = x + each_layer(index, h, x, layer)
    return norm(x, ends["output_norm"], sizes)


def student_feed_forward(h, layer: dict, shape: Shape, with_routed=True, router_input=None):
    """[T, D] -> ([T, D], probabilities [T, N], chosen [T, K])."""
    p, weights, chosen = route(h if router_input is None else router_input, layer["router"], shape.experts_per_token)
    shared = F.linear(dense_activation(h, layer["shared_gate_up"]), layer["shared_down"])
    out = shared * torch.sigmoid(F.linear(h.float(), layer["shared_gate"][None, :])).to(h.dtype)
    if with_routed:
        out = out + routed(h, weights, chosen, layer["expert_gate_up"], layer["expert_down"])
    return out, p, chosen


def student_layer(x, layer: dict, sizes: Sizes, shape: Shape, cos, sin, with_routed: bool):
    """[B, L, D] residual stream -> (after the layer, probabilities [B·L, N], chosen [B·L, K])."""
    x = x + attention(norm(x, layer["attention_norm"], sizes).to(COMPUTE), layer, sizes, cos, sin)
    h = norm(x, layer["feed_forward_norm"], sizes).view(-1, sizes.hidden)
    out, p, chosen = student_feed_forward(h.to(COMPUTE), layer, shape, with_routed, h)
    return x + out.view(x.shape), p, chosen


def student_forward(ids, layers, ends, sizes, shape, cos, sin, with_routed=True, watch=None):
    """[B, L] ids -> [B, L, D] normalised final state; `watch(index, probabilities, chosen)` sees every routing."""
    x = F.embedding(ids, ends["embedding"]).float()
    # So that the first layer is compiled as the others are.
    x.requires_grad_(torch.is_grad_enabled())
    for index, layer in enumerate(layers):
        one_layer = compiled_layer if x.is_cuda and x.requires_grad else student_layer
        x, p, chosen = one_layer(x, layer, sizes, shape, cos, sin, with_routed)
        if watch is not None:
            watch(index, p, chosen)
    return norm(x, ends["output_norm"], sizes)


# One compiled layer serves all while training; a CPU gains nothing from it, nor do sequences of ever other lengths.
compiled_layer = torch.compile(student_layer, dynamic=False)
