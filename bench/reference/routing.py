"""Cache-aware routing, slow and plain: one layer's policy state, one token at a time.

Written from the published method (Skliar et al., TMLR 2025, arXiv 2412.00099) and the project's own decisions where that is silent, which are
stated at each step. No code of moce is used.
"""

import numpy as np


class Layer:
    """A layer's logical cache with least-recently-used eviction, and the running range of its scores."""

    def __init__(self, policy, experts, chosen, capacity):
        self.policy, self.experts, self.k, self.capacity = policy, experts, chosen, capacity
        self.recency = []  # cached experts, least recent first
        self.range_sum, self.tokens = 0.0, 0
        self.misses = self.changed = 0

    def new_window(self):
        """The cache is emptied; the range goes on."""
        self.recency = []

    def route(self, scores):
        """The experts of one token, strongest first by the original scores. `scores`: f32 [experts]."""
        self.range_sum += float(scores.max()) - float(scores.min())
        self.tokens += 1
        rank = sorted(range(self.experts), key=lambda e: (-scores[e], e))
        chosen = self.choose(scores, rank)
        cached = set(self.recency)
        self.misses += sum(expert not in cached for expert in chosen)
        self.changed += len(set(rank[: self.k]) - set(chosen))
        for expert in chosen:  # the strongest is touched first
            if expert in cached:
                self.recency.remove(expert)
            self.recency.append(expert)
        while len(self.recency) > self.capacity:
            self.recency.remove(next(e for e in self.recency if e not in chosen))
        return chosen

    def choose(self, scores, rank):
        name, options = self.policy
        cached, j = set(self.recency), options.get("j", 2 if self.experts > 16 else 1)
        if name == "original":
            return rank[: self.k]
        if name == "cache-prior":
            bonus = np.float32(options["lambda"] * (self.range_sum / self.tokens))
            lifted = scores.copy()
            for expert in cached | set(rank[:j]):
                lifted[expert] = np.float32(scores[expert] + bonus)
            place = {expert: at for at, expert in enumerate(rank)}
            best = sorted(range(self.experts), key=lambda e: (-lifted[e], place[e]))[: self.k]
            return sorted(best, key=place.get)
        if name == "max-rank":
            most = options.get("m", 2 * self.k)
        elif name == "cumulative":
            z = scores.astype(np.float64)
            p = np.exp(z - z.max())
            p /= p.sum()
            total, most = 0.0, self.experts
            for at, expert in enumerate(rank):
                total += p[expert]
                if total >= options.get("p", 0.7):
                    most = at + 1
                    break
        else:
            raise ValueError(name)
        most = max(most, self.k)
        promoted = [e for e in rank[j:most] if e in cached]
        rest = [e for e in rank[j:] if e not in promoted]
        chosen = (rank[:j] + promoted + rest)[: self.k]
        return [e for e in rank if e in chosen]
