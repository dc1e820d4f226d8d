"""Compares the speed of moce and llama.cpp on one GGUF file: prompt and decode, same threads, one run.

    python bench/oracles/compare_llama_cpp.py --llama-cpp llama.cpp/build/bin --moce target/release/moce MODEL.gguf

Standard library only; installs and builds nothing. In each of N rounds llama-bench runs twice, with OMP_WAIT_POLICY
passive and unset (its spinning threads win on a quiet machine and lose on a busy one), and moce once per figure, so
that a slow minute meets all of them. Medians of the rounds with their range; for llama.cpp the better of the two.

What is compared: prompts of 128 and 512 tokens on an empty context, and 64 and 128 tokens decoded from an empty (moce:
nearly empty) context. llama-bench feeds random token ids, moce a text of exactly as many tokens; llama-bench warms up,
moce does not.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

PROMPTS = [128, 512]
DECODES = [64, 128]
README = pathlib.Path(__file__).resolve().parents[2] / "README.md"


def fail(message):
    sys.exit(f"error: {message}")


def run(command, environment=None):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        fail(f"{' '.join(map(str, command))}: status {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


class LlamaCpp:
    """llama-bench under one OMP_WAIT_POLICY; None leaves it unset."""

    def __init__(self, folder, model, threads, wait_policy):
        self.command = [
            pathlib.Path(folder) / "llama-bench", "--model", model, "--threads", threads, "--repetitions", 1,
            "--n-prompt", ",".join(map(str, PROMPTS)), "--n-gen", ",".join(map(str, DECODES)), "--output", "json",
        ]  # fmt: skip
        self.environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        if wait_policy is not None:
            self.environment["OMP_WAIT_POLICY"] = wait_policy
        self.name = f"llama.cpp, OMP_WAIT_POLICY {wait_policy or 'unset'}"

    def measure(self):
        tests = json.loads(run(self.command, self.environment))
        figures = {}
        for test in tests:
            figure = ("prompt", test["n_prompt"]) if test["n_prompt"] else ("decode", test["n_gen"])
            figures[figure] = test["avg_ts"]
        return figures


class Moce:
    """`moce run --json`, a process per figure."""

    name = "moce"

    def __init__(self, binary, model, threads, text, options):
        self.command = [binary, "run", model, "--threads", threads, "--temp", 0, "--ignore-eos", "--json", *options]
        self.words = text.split()
        self.prompts = {count: self.prompt(count) for count in PROMPTS}

    def result(self, text, generated):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(text)
            file.flush()
            lines = run([*self.command, "-f", file.name, "-n", generated]).strip()
        # One document, or a stream of lines of which the last is the summary.
        try:
            return json.loads(lines)
        except json.JSONDecodeError:
            return json.loads(lines.splitlines()[-1])

    def prompt(self, count):
        """A text of exactly `count` tokens: words of the source, filled up with " the", a token in every vocabulary."""
        words, filling = self.words[:count], 0
        for _ in range(20):
            text = " ".join(words) + " the" * filling
            tokens = self.result(text, 1)["prompt"]["tokens"]
            if tokens == count:
                return text
            if tokens > count:
                words, filling = words[: len(words) - max(1, (tokens - count) // 2)], 0
            else:
                filling += count - tokens
        fail(f"found no prompt of exactly {count} tokens; the last had {tokens}")

    def measure(self):
        figures = {}
        for count, text in self.prompts.items():
            prompt = self.result(text, 1)["prompt"]
            if prompt["tokens"] != count:
                fail(f"a prompt of {count} tokens was counted as {prompt['tokens']}")
            figures["prompt", count] = prompt["tokens_per_second"]
        for count in DECODES:
            # The first generated token comes from the prompt's logits: one more than are run.
            generation = self.result("The", count + 1)["generation"]
            if generation["tokens"] != count:
                fail(f"{count} tokens were asked for, {generation['tokens']} came")
            figures["decode", count] = generation["tokens_per_second"]
        return figures


@contextlib.contextmanager
def busy(count):
    """So many other programs that compute all the time."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def summary(samples):
    return statistics.median(samples), min(samples), max(samples)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="one GGUF file for both")
    parser.add_argument("--llama-cpp", required=True, help="folder that holds a built llama-bench")
    parser.add_argument("--moce", help="the moce binary; without it llama.cpp is measured alone")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="N other programs compute meanwhile, as on a busy machine")
    parser.add_argument("--text", default=README, help="where prompts are taken from (default: the README)")
    parser.add_argument("--moce-option", action="append", default=[], help="passed on to moce run; may be repeated")
    parser.add_argument("--json", help="also write every sample to this file")
    arguments = parser.parse_args()

    model, threads = arguments.model, arguments.threads
    engines = [LlamaCpp(arguments.llama_cpp, model, threads, policy) for policy in ("passive", None)]
    if arguments.moce:
        text = pathlib.Path(arguments.text).read_text(encoding="utf-8")
        if len(text.split()) < max(PROMPTS):
            fail(f"{arguments.text} has fewer than {max(PROMPTS)} words")
        engines.append(Moce(arguments.moce, model, threads, text, arguments.moce_option))

    samples = {engine.name: {} for engine in engines}
    with busy(arguments.busy):
        for index in range(arguments.rounds):
            load = os.getloadavg()[0]
            print(f"round {index + 1} of {arguments.rounds}, load average {load:.1f}", file=sys.stderr)
            for engine in engines:
                for figure, speed in engine.measure().items():
                    samples[engine.name].setdefault(figure, []).append(speed)

    beside = f" beside {arguments.busy} other programs" if arguments.busy else ""
    print(f"{model}, {threads} threads{beside}, {arguments.rounds} rounds, tokens/s: median (min to max)")
    for figure in [("prompt", count) for count in PROMPTS] + [("decode", count) for count in DECODES]:
        print(f"{figure[0]} {figure[1]}")
        medians = {}
        for engine in engines:
            median, low, high = summary(samples[engine.name][figure])
            medians[engine.name] = median
            print(f"  {engine.name:38} {median:9.2f} ({low:.2f} to {high:.2f})")
        if arguments.moce:
            best = max(speed for name, speed in medians.items() if name != Moce.name)
            print(f"  {'moce / better llama.cpp':38} {medians[Moce.name] / best:9.2f}")
    if arguments.json:
        flat = {}
        for name, figures in samples.items():
            flat[name] = {f"{kind} {count}": values for (kind, count), values in figures.items()}
        pathlib.Path(arguments.json).write_text(json.dumps(flat, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
