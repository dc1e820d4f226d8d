"""The forward and backward pass against plain formulas; the data's form; the stage's bookkeeping."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training import data, seeding
from training.balance import Balance
from training.base import Sizes, half_split_order
from training.distill import Subset, head_gradient, rows_of_task, task_plan
from training.evaluate import LruMisses, windows
from training.mean import mean_of
from training.settings import EndToEnd
from training.student import Group
from training.model import CausalAttention, RoutedInSlots, rope_tables, rotate, routed_densely


def test_attention_matches_the_plain_formula_and_its_gradients():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, *shape, requires_grad=True) for shape in ((3, 200, 16), (200, 16), (200, 16)))
    mask = torch.full((200, 200), float("-inf")).triu(1)
    scores = torch.einsum("grld,gmd->grlm", q, k) + mask
    expected = torch.einsum("grlm,gmd->grld", torch.softmax(scores, -1), v)
    got = CausalAttention.apply(q, k, v)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(got)
    for a, b in zip(torch.autograd.grad(got, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_routed_experts_match_a_loop_and_its_gradients():
    torch.manual_seed(1)
    shapes = ((50, 16), (50, 2), (6, 16, 8), (6, 4, 16))
    x, weights, gate_up, down = (torch.randn(*shape, requires_grad=True) for shape in shapes)
    # The last expert is never chosen, the first by most.
    chosen = torch.stack([torch.randperm(5)[:2] if token % 3 else torch.tensor([0, token % 4 + 1]) for token in range(50)])
    rows = []
    for token in range(50):
        parts = [(x[token] @ gate_up[expert]).chunk(2) for expert in chosen[token]]
        rows.append(sum(w * ((F.silu(g) * u) @ down[e]) for w, e, (g, u) in zip(weights[token], chosen[token], parts)))
    expected, slope = torch.stack(rows), torch.randn(50, 16)
    learnt = (x, weights, gate_up, down)
    gradients = torch.autograd.grad(expected, learnt, slope)
    for way in (RoutedInSlots.apply, routed_densely):
        got = way(x, weights, chosen, gate_up, down)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        for mine, plain in zip(torch.autograd.grad(got, learnt, slope), gradients):
            torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


def test_half_split_rows_rotate_like_interleaved_pairs():
    sizes = Sizes(1, 8, 1, 1, 8, 8, 16, 10_000.0, 1e-5)
    cos, sin = rope_tables(sizes, 5)
    interleaved = torch.randn(8)
    order = torch.from_numpy(half_split_order(1, 8))
    got = rotate(interleaved[order].view(1, 1, 1, 8), cos[4:5], sin[4:5]).view(-1)
    a, b = interleaved[0::2], interleaved[1::2]
    expected = torch.stack([a * cos[4] - b * sin[4], b * cos[4] + a * sin[4]], 1).view(-1)
    torch.testing.assert_close(got, expected[order])


def test_head_gradient_is_that_of_the_stated_losses():
    torch.manual_seed(2)
    embedding = torch.randn(100, 8)
    student = torch.randn(20, 8, requires_grad=True)
    teacher, next_ids, weights = torch.randn(20, 8), torch.randint(0, 100, (20,)), torch.rand(20)
    # Every id is in the head, so nothing is estimated.
    subset = Subset(np.arange(90), torch.arange(90), 10, 100, np.random.default_rng(0))
    slope, kl, nll = head_gradient(student, teacher, next_ids, weights, 0.3, subset, embedding)
    log_p, log_q = (torch.log_softmax(h @ embedding.t(), -1) for h in (student, teacher))
    expected_kl = (log_q.exp() * (log_q - log_p)).sum()
    expected_nll = (F.nll_loss(log_p, next_ids, reduction="none") * weights).sum()
    (0.7 * expected_kl + 0.3 * expected_nll).backward()
    torch.testing.assert_close(kl, expected_kl)
    torch.testing.assert_close(nll, expected_nll)
    torch.testing.assert_close(slope.float(), student.grad, rtol=0.03, atol=0.03)


def test_task_plan_keeps_shares_and_reads_every_sequence():
    plan = list(islice(task_plan([0.5, 0.25, 0.25]), 40))
    assert [kind for kind, _ in plan].count(0) == 20
    assert sorted(own for kind, own in plan if kind == 1) == list(range(10))
    seen = np.concatenate([rows_of_task(12, number, 4, 1) for number in range(3)])
    assert sorted(seen) == list(range(12))


def test_balance_is_one_when_even_and_larger_when_not():
    even = torch.full((120, 60), 1 / 60)
    chosen = torch.arange(480).view(120, 4) % 60
    assert Balance(1.0, 0.0, 30).loss(even, chosen, 120).item() == pytest.approx(1.0)
    skewed = F.one_hot(torch.zeros(120, dtype=torch.long), 60).float()
    assert Balance(1.0, 0.0, 30).loss(skewed, torch.zeros(120, 4, dtype=torch.long), 120).item() > 10


def test_balanced_clusters_are_balanced():
    generator = torch.Generator().manual_seed(3)
    z = F.normalize(torch.randn(4_000, 16) + 2 * torch.randn(16), dim=-1)
    centres, offsets = seeding.balanced_centres(z, 12, 2, 20, generator)
    load = torch.bincount((z @ centres.t() + offsets).topk(2, -1).indices.reshape(-1), minlength=12).float()
    assert load.max() < 1.6 * load.mean() and load.min() > 0.5 * load.mean()


def test_lru_misses_by_hand():
    cache = LruMisses(2)
    for chosen in ([0, 1], [1, 2], [0, 2], [2, 0]):
        cache.token(chosen)
    # 0 and 1 miss; 2 misses, 0 leaves; 0 misses, 1 leaves; both hit.
    assert (cache.misses, cache.lookups) == (4, 8)


def test_windows_predict_every_token_once():
    parts = list(windows(list(range(3_000)), None))
    assert len(parts) == 2
    assert torch.cat([predicted for _, predicted in parts]).tolist() == list(range(1, 2_049))
    assert all((predicted - inputs == 1).all() for inputs, predicted in parts)


def test_spaced_text_looks_like_wikitext():
    text = 'The well-known 1,200 men (in 3.5 days) won, he said. "Yes." It\'s'
    assert data.spaced(text) == 'The well @-@ known 1 @,@ 200 men ( in 3 @.@ 5 days ) won , he said . " Yes . " It \'s'


def test_slices_cover_documents():
    rows = [{"title": "t", "text": "a\n" * 10_000}, {"title": "u", "text": "b"}]
    pieces = data.slices(rows, random.Random(0))
    got = {next(pieces)[:1] for _ in range(50)}
    assert {"a", "b"} <= got


def test_the_mean_of_models_keeps_their_codes():
    model = lambda value, code: {
        "layers": [{"router": torch.full((2, 3), value), "o_codes": torch.full((2, 32), code, dtype=torch.uint8)}],
        "output_norm": torch.full((3,), value),
    }
    mean = mean_of([model(1.0, 7), model(2.0, 7)])
    assert mean["layers"][0]["router"].eq(1.5).all() and mean["output_norm"].eq(1.5).all()
    assert mean["layers"][0]["o_codes"].eq(7).all() and mean["layers"][0]["o_codes"].dtype == torch.uint8
    with pytest.raises(ValueError, match="o_codes"):
        mean_of([model(1.0, 7), model(1.0, 8)])


def test_a_group_resumes_where_it_was():
    generator = torch.Generator().manual_seed(5)
    random_like = lambda *shape: torch.rand(*shape, generator=generator)
    tensors = {
        "qkv_codes": (random_like(6, 64) * 15).to(torch.uint8), "qkv_scales": random_like(6, 2), "qkv_minima": random_like(6, 2),
        "router": random_like(3, 4), "shared_down": random_like(4, 8),
    }
    wanted = EndToEnd(tokens=1)
    gradients = lambda: {"qkv": random_like(6, 64), "router": random_like(3, 4), "shared_down": random_like(4, 8)}
    first = Group(tensors, wanted, "cpu")
    first.add(gradients())
    first.step(1.0)
    second = Group(tensors, wanted, "cpu")
    second.restore(first.state())
    more = gradients()
    for group in (first, second):
        group.add(more)
        group.step(0.5)
    for name, master in first.masters.items():
        torch.testing.assert_close(second.masters[name], master, rtol=0, atol=0)
        assert not torch.equal(master, tensors[name])
    assert torch.equal(first.working["qkv"], second.working["qkv"])


def test_gradients_of_block_scales_are_those_of_the_decoded_matrix():
    codes = torch.randint(0, 16, (4, 64), dtype=torch.uint8)
    scales, minima = torch.rand(4, 2, requires_grad=True), torch.rand(4, 2, requires_grad=True)
    matrix = (codes.view(4, 2, 32) * scales[..., None] + minima[..., None]).view(4, 64)
    slope = torch.randn(4, 64)
    expected = torch.autograd.grad(matrix, (scales, minima), slope)
    group = Group({"o_codes": codes, "o_scales": scales.detach(), "o_minima": minima.detach()}, EndToEnd(tokens=1), "cpu")
    group.add({"o": slope})
    for name, gradient in zip(("o_scales", "o_minima"), expected):
        torch.testing.assert_close(group.masters[name].grad, gradient, rtol=1e-4, atol=1e-4)
