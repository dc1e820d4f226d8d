"""Perplexity of a GGUF model on a text by llama.cpp's logits, over the windows that `moce perplexity` uses.

    python bench/oracles/llama_cpp_perplexity.py MODEL.gguf wiki.test.raw [--limit 65536]

Needs llama-cpp-python and numpy. The text is tokenised once, without special tokens and without BOS. A window is the
last token of the one before as context and the 1,024 tokens after it, each predicted from all earlier ones of the
window; a last partial window is dropped. Prints one JSON object; `nll` is the total in nats, `words` counts the
whitespace-separated words of the scored text.
"""

import argparse
import json
import math
import sys
import time

import llama_cpp
import numpy as np


def negative_log_likelihood(logits, targets):
    """Total in f64 over the rows of `logits`, in slices that keep the f64 copy small."""
    total = 0.0
    for start in range(0, len(targets), 64):
        scores = logits[start : start + 64].astype(np.float64)
        wanted = scores[np.arange(len(scores)), targets[start : start + 64]]
        largest = scores.max(axis=1)
        total += float((np.log(np.exp(scores - largest[:, None]).sum(axis=1)) + largest - wanted).sum())
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--window", type=int, default=1024, help="predicted tokens a window")
    parser.add_argument("--limit", type=int, help="score at most this many tokens, in whole windows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv", choices=["f16", "f32"], default="f16")
    parser.add_argument("--flash-attention", action="store_true")
    arguments = parser.parse_args()

    kv = {"f16": llama_cpp.GGML_TYPE_F16, "f32": llama_cpp.GGML_TYPE_F32}[arguments.kv]
    engine = llama_cpp.Llama(
        model_path=arguments.model,
        n_ctx=arguments.window,
        n_batch=arguments.window,
        n_ubatch=min(arguments.window, 512),
        n_threads=arguments.threads,
        n_threads_batch=arguments.threads,
        logits_all=True,
        type_k=kv,
        type_v=kv,
        flash_attn=arguments.flash_attention,
        verbose=False,
    )
    with open(arguments.text, "rb") as file:
        tokens = engine.tokenize(file.read(), add_bos=False, special=False)
    windows = (len(tokens) - 1) // arguments.window
    if arguments.limit is not None:
        windows = min(windows, arguments.limit // arguments.window)
    if windows == 0:
        sys.exit(f"error: {len(tokens)} tokens and the limit leave no whole window of {arguments.window}")

    nll, started = 0.0, time.monotonic()
    for index in range(windows):
        start = index * arguments.window
        window = tokens[start : start + arguments.window + 1]
        engine.reset()
        engine.eval(window[:-1])
        nll += negative_log_likelihood(engine.scores[: arguments.window], np.array(window[1:]))
        scored = (index + 1) * arguments.window
        if index % 8 == 7:
            rate = scored / (time.monotonic() - started)
            print(f"{scored} tokens, {rate:.0f} a second, perplexity {math.exp(nll / scored):.4f}", file=sys.stderr)

    scored = windows * arguments.window
    text = engine.detokenize(tokens[1 : scored + 1]).decode("utf-8", errors="replace")
    words = len(text.split())
    print(
        json.dumps(
            {
                "engine": f"llama-cpp-python {llama_cpp.__version__}",
                "model": arguments.model,
                "kv": arguments.kv,
                "flash_attention": arguments.flash_attention,
                "text_tokens": len(tokens),
                "window": arguments.window,
                "tokens": scored,
                "words": words,
                "nll": nll,
                "perplexity": math.exp(nll / scored),
                "word_perplexity": math.exp(nll / words),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
