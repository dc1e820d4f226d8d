"""Holds `moce perplexity` to an independent slow computation with `transformers`.

    python bench/reference/compare.py --moce target/release/moce demo-f32.gguf wiki.valid.raw [--windows 4]

The same text, windows, policies, capacity (half) and F32 weights, keys and values on both sides. Prints a table and fails where perplexity
differs by more than 0.3 % or the miss rate by more than 0.3 points.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys

import torch

from model import Router, load
from routing import Layer

WINDOW = 1024
POLICIES = [
    ("original", {}),
    ("cache-prior", {"lambda": 0.05}),
    ("cache-prior", {"lambda": 0.1}),
    ("cache-prior", {"lambda": 0.3}),
    ("max-rank", {}),
    ("cumulative", {}),
]
MOST_PERPLEXITY, MOST_MISSES = 0.003, 0.003


def by_reference(model, tokens, windows, policy):
    """(perplexity, miss rate, share of changed selections)"""
    config = model.config
    experts, k = config.num_experts, config.num_experts_per_tok
    layers = [Layer(policy, experts, k, experts // 2) for _ in model.model.layers]
    for block, layer in zip(model.model.layers, layers):
        block.mlp.gate = Router(block.mlp.gate, layer)
    nll = 0.0
    with torch.no_grad():
        for window in range(windows):
            piece = torch.tensor(tokens[window * WINDOW : (window + 1) * WINDOW + 1])
            for layer in layers:
                layer.new_window()
            logits = model(input_ids=piece[None, :-1], use_cache=False).logits[0]
            for start in range(0, WINDOW, 128):
                rows = torch.log_softmax(logits[start : start + 128].double(), dim=-1)
                wanted = piece[start + 1 : start + 129]
                nll -= rows.gather(1, wanted[:, None]).sum().item()
            print(f"  {policy} window {window}: {math.exp(nll / (window + 1) / WINDOW):.4f}", file=sys.stderr)
    choices = windows * WINDOW * len(layers) * k
    total = lambda name: sum(getattr(layer, name) for layer in layers) / choices
    return math.exp(nll / windows / WINDOW), total("misses"), total("changed")


def by_moce(moce, model, text, windows, policy):
    name, options = policy
    routing = ":".join([name, *[f"{key}={value}" for key, value in options.items()]])
    command = [moce, "perplexity", model, "-f", text, "--limit", windows * WINDOW, "--window", WINDOW, "--kv", "f32"]
    command += ["--capacity", "50%", "--memory", "all", "--routing", routing, "--json", "--quiet"]
    output = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE).stdout
    report = json.loads(output)
    return report["perplexity"], report["miss_rate"], report["changed_share"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path, help="an F32 GGUF file made by decode.py")
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--moce", required=True)
    parser.add_argument("--windows", type=int, default=4)
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model)
    text = arguments.text.read_bytes().decode()
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    print("| policy | perplexity: reference | moce | differs | miss rate: reference | moce | differs | changed |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    worst = (0.0, 0.0)
    for policy in POLICIES:
        reference = by_reference(model, tokens, arguments.windows, policy)
        moce = by_moce(arguments.moce, arguments.model, arguments.text, arguments.windows, policy)
        perplexity, misses = moce[0] / reference[0] - 1, moce[1] - reference[1]
        name = policy[0] + "".join(f" {key} {value}" for key, value in policy[1].items())
        print(
            f"| {name} | {reference[0]:.4f} | {moce[0]:.4f} | {perplexity:+.4%} "
            f"| {reference[1]:.3%} | {moce[1]:.3%} | {100 * misses:+.3f} points | {reference[2]:.2%}, {moce[2]:.2%} |",
            flush=True,
        )
        worst = max(worst[0], abs(perplexity)), max(worst[1], abs(misses))
    print(f"\nworst: perplexity {worst[0]:.4%}, miss rate {100 * worst[1]:.3f} points", file=sys.stderr)
    if worst[0] > MOST_PERPLEXITY or worst[1] > MOST_MISSES:
        sys.exit("too far apart")


if __name__ == "__main__":
    main()
