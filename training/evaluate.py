"""Measures a model: perplexity and routing under METHOD.md's windows, exercises by exact greedy answers.

`python -m training.evaluate DATA=FOLDER WORK=FOLDER [WINDOWS=n] [TEXT=valid|test] [STAGE=local|distill|mix] [BASE=FILE]`.
Settings are chosen on valid; test is for the model card's figures.
"""

import json
import math
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .balance import effective
from .model import COMPUTE, dense_forward, student_forward
from .settings import Shape

WINDOW = 1_024


class LruMisses:
    """One layer's least-recently-used cache, strongest choice touched first (METHOD.md)."""

    def __init__(self, capacity: int):
        self.capacity, self.cache, self.misses, self.lookups = capacity, OrderedDict(), 0, 0

    def empty(self) -> None:
        """At the start of a window."""
        self.cache.clear()

    def token(self, chosen: list[int]) -> None:
        """One token's choices by rank."""
        self.lookups += len(chosen)
        self.misses += sum(expert not in self.cache for expert in chosen)
        for expert in chosen:
            self.cache[expert] = None
            self.cache.move_to_end(expert)
        while len(self.cache) > self.capacity:
            self.cache.popitem(last=False)


def windows(ids: list[int], count: int | None):
    """(inputs, predicted) of each window: 1,024 predicted ids after the one before them as context; partial dropped."""
    whole = (len(ids) - 1) // WINDOW
    for index in range(whole if count is None else min(count, whole)):
        start = index * WINDOW
        yield torch.tensor(ids[start : start + WINDOW]), torch.tensor(ids[start + 1 : start + WINDOW + 1])


def window_nll(final: torch.Tensor, predicted: torch.Tensor, embedding: torch.Tensor) -> float:
    """Sum of -log p, f32 logits from bf16 products."""
    logits = F.linear(final.to(COMPUTE), embedding).float()
    return F.cross_entropy(logits, predicted, reduction="sum").item()


def perplexity(forward, ids: list[int], embedding, count: int | None, workers, each_window=None) -> float:
    """exp(mean NLL) of `forward(ids [1, L], window index) -> [1, L, D]`."""

    def one(item):
        index, (inputs, predicted) = item
        with torch.no_grad():
            return window_nll(forward(inputs[None], index)[0], predicted, embedding), len(predicted)

    results = list(workers.map(one, enumerate(windows(ids, count))))
    return math.exp(sum(nll for nll, _ in results) / sum(n for _, n in results))


def measure_routing(choices: dict[int, list[torch.Tensor]], shape: Shape) -> list[tuple[float, float]]:
    """(effective experts, LRU miss rate at half cache) by layer, from {window: [K choices of each token] by layer}."""
    layers = len(next(iter(choices.values())))
    figures = []
    for layer in range(layers):
        counts, cache = torch.zeros(shape.experts), LruMisses(shape.experts // 2)
        for index in sorted(choices):
            chosen = choices[index][layer]
            counts += torch.bincount(chosen.reshape(-1), minlength=shape.experts)
            cache.empty()
            for token in chosen.tolist():
                cache.token(token)
        figures.append((effective(counts / counts.sum()).item(), cache.misses / cache.lookups))
    return figures


def measure_text(student, base_model, shape: Shape, ids, count, workers, with_routed=True):
    """(perplexity, routing figures by layer)."""
    _, ends, sizes, cos, sin = base_model
    layers, output_norm = student
    ends = ends | {"output_norm": output_norm}
    seen: dict[int, list] = {}

    def forward(inputs, index):
        seen[index] = [None] * len(layers)

        def watch(layer, probabilities, chosen):
            seen[index][layer] = chosen

        return student_forward(inputs, layers, ends, sizes, shape, cos, sin, with_routed, watch)

    value = perplexity(forward, ids, ends["embedding"], count, workers)
    return value, measure_routing(seen, shape)


def few_shot(row: dict, shots: str) -> tuple[str, str]:
    """(prompt, answer) in the form the tasks are asked in."""
    from .data import choices_text

    if "choices" in row:
        return f"{shots}\n\n{choices_text(row['question'], row['choices'])}", f" {'ABCD'[row['answer']]}"
    return f"{shots}\n\nQuestion: {row['question']}\nAnswer:", f" {row['answer']}"


def greedy_share(forward, rows: list[dict], shots, tokenizer, embedding, workers) -> float:
    """Share of exercises whose greedy continuation is the expected answer, token for token.

    Greedy text equals the expected one exactly when each expected token is the likeliest after those before it,
    so one pass suffices. Among choices the likeliest of the four letters counts, as the harness does.
    """
    letters = torch.tensor([tokenizer.encode(f" {letter}").ids[0] for letter in "ABCD"])

    def one(row: dict) -> bool:
        prompt, answer = few_shot(row, shots(row))
        before = tokenizer.encode(prompt, add_special_tokens=False).ids
        after = tokenizer.encode(answer, add_special_tokens=False).ids
        with torch.no_grad():
            final = forward(torch.tensor([before + after]))[0, len(before) - 1 : -1].to(COMPUTE)
        if "choices" in row:
            return int((final[:1] @ embedding[letters].t()).float().argmax()) == row["answer"]
        return F.linear(final, embedding).argmax(-1).tolist() == after

    return float(np.mean(list(workers.map(one, rows))))


def measure_exercises(forward, tokenizer, embedding, workers, count: int, shots: int = 3) -> dict[str, float]:
    """Share right by test set; shots come from the training part."""
    import random

    from .exercises.choices import exercise
    from .exercises.word_problems import problem
    from .exercises.write import few_shot_choices, few_shot_problems, test_sets

    figures = {}
    for name, rows in test_sets(count).items():
        if name == "chat":
            continue
        draw = random.Random(name)
        if name == "multiple-choice":
            by_subject = {row["subject"]: [exercise(draw, False, row["subject"]) for _ in range(shots)] for row in rows}
            shots_of = lambda row: few_shot_choices(by_subject[row["subject"]])
        else:
            level = int(name[-1])
            text = few_shot_problems([problem(level, draw, False) for _ in range(shots)])
            shots_of = lambda row, text=text: text
        figures[name] = greedy_share(forward, rows, shots_of, tokenizer, embedding, workers)
    return figures


def main() -> None:
    """Prints everything for the base and one stage's student."""
    from . import student, workers as worker_pool
    from .base import Base
    from .make import wanted_settings
    from .model import dense_layers, rope_tables

    given = {"WINDOWS": "16", "TEXT": "valid", "STAGE": "distill", "EXERCISES": "100"}
    given |= dict(word.split("=", 1) for word in sys.argv[1:])
    work = Path(given["WORK"])
    workers = worker_pool.start()
    settings, finished = wanted_settings({}, work, "cpu")
    base = Base(Path(given["BASE"]) if "BASE" in given else None)
    tokenizer = base.tokenizer()
    dense, ends = dense_layers(base)
    cos, sin = rope_tables(base.sizes, base.sizes.context)
    base_model = (dense, ends, base.sizes, cos, sin)
    text = (Path(given["DATA"]) / "wikitext2" / f"wiki.{given['TEXT']}.raw").read_text(encoding="utf-8")
    count = None if given["WINDOWS"] == "all" else int(given["WINDOWS"])
    if count is not None:
        text = text[: count * WINDOW * 8]
    ids = tokenizer.encode(text, add_special_tokens=False).ids

    layers, output_norm = student.load_stage(work, given["STAGE"], base, base_model, settings, finished)
    dense_run = lambda inputs, index=0: dense_forward(inputs, dense, ends, base.sizes, cos, sin)
    student_ends = ends | {"output_norm": output_norm}
    run = lambda inputs, index=0: student_forward(inputs, layers, student_ends, base.sizes, settings.shape, cos, sin)
    base_value = perplexity(dense_run, ids, ends["embedding"], count, workers)
    value, routing = measure_text((layers, output_norm), base_model, settings.shape, ids, count, workers)
    without, _ = measure_text((layers, output_norm), base_model, settings.shape, ids, count, workers, False)
    print(f"perplexity, wiki.{given['TEXT']}, {given['WINDOWS']} windows: base {base_value:.3f}, student {value:.3f} "
          f"({value / base_value:.4f}x), without routed experts {without:.3f} ({without / value:.3f}x)", flush=True)
    print("effective experts:", " ".join(f"{e:.1f}" for e, _ in routing))
    print("LRU miss rate, %:", " ".join(f"{100 * m:.1f}" for _, m in routing))
    if exercises := int(given["EXERCISES"]):
        for name, forward in (("base", dense_run), ("student", run)):
            print(name, json.dumps(measure_exercises(forward, tokenizer, ends["embedding"], workers, exercises)), flush=True)


if __name__ == "__main__":
    main()
