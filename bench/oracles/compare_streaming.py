"""Compares moce and llama.cpp on a model larger than the memory both are given: decode and prompt under one cgroup limit.

    python bench/oracles/compare_streaming.py --llama-cpp llama.cpp/build/bin --moce target/release/moce MODEL.gguf \\
        --limits 4608,2970 --rounds 5

Standard library only; needs root for the memory control group (version 1 or 2), for dropping the page cache before every
run of both, and for the read-ahead of the model's disk. llama.cpp runs with its best settings for this: mapped weights, repacking off (it
doubles memory), read-ahead of 128 KiB, and the better of OMP_WAIT_POLICY passive and unset. moce gets the limit as
--memory. Its tokens are drawn almost uniformly (temperature 50), as llama-bench's are: a greedy random model repeats
itself and would hardly miss.
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from compare_llama_cpp import README, fail, summary

UNIFORM = ["--temp", 50, "--top-k", 0, "--top-p", 1, "--min-p", 0, "--seed", 1, "--ignore-eos"]


class Group:
    """A memory control group for one run after another."""

    def __init__(self, limit_bytes):
        unified = pathlib.Path("/sys/fs/cgroup/cgroup.controllers").exists()
        lines = [line.strip().split(":", 2) for line in open("/proc/self/cgroup", encoding="ascii")]
        if unified:
            own = next(path for _, controllers, path in lines if controllers == "")
            root, file, swap = pathlib.Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max"
        else:
            own = next(path for _, controllers, path in lines if "memory" in controllers.split(","))
            root, file, swap = pathlib.Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", None
        self.folder = root / own.lstrip("/") / f"compare-{os.getpid()}-{limit_bytes}"
        self.folder.mkdir()
        (self.folder / file).write_text(str(limit_bytes), encoding="ascii")
        if swap and (self.folder / swap).exists():
            (self.folder / swap).write_text("0", encoding="ascii")

    def run(self, command, environment=None):
        def enter():
            (self.folder / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")

        subprocess.run(["sync"], check=True)
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
        command = [str(part) for part in command]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, preexec_fn=enter, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            fail(f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def remove(self):
        self.folder.rmdir()


@contextlib.contextmanager
def read_ahead(path, kib):
    """Sets the read-ahead of the disk that holds `path`, and sets it back."""
    device = os.stat(path).st_dev
    disk = pathlib.Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    queue = next(folder / "queue" for folder in (disk, disk.parent) if (folder / "queue").exists())
    setting = queue / "read_ahead_kb"
    before = setting.read_text(encoding="ascii")
    setting.write_text(str(kib), encoding="ascii")
    try:
        yield
    finally:
        setting.write_text(before, encoding="ascii")


def llama_cpp(arguments, group, figure, policy):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    kind, count = figure
    command = [
        pathlib.Path(arguments.llama_cpp) / "llama-bench", "--model", arguments.model, "--threads", arguments.threads,
        "--repetitions", 1, "--load-mode", "mmap", "--repack", 0, "--output", "json",
        "--n-prompt", count if kind == "prompt" else 0, "--n-gen", count if kind == "decode" else 0,
    ]  # fmt: skip
    with read_ahead(arguments.model, 128):
        return json.loads(group.run(command, environment))[0]["avg_ts"], {}


def moce(arguments, group, figure, limit, prompt, options):
    kind, count = figure
    command = [arguments.moce, "run", arguments.model, "--threads", arguments.threads, "--ctx", 1024, "--json", *UNIFORM, *options]
    if "--capacity" not in options:
        command += ["--memory", limit]
    command += ["-f", prompt, "-n", 1] if kind == "prompt" else ["-p", "The", "-n", count + 1]
    result = json.loads(group.run(command).splitlines()[-1])
    phase = result["prompt" if kind == "prompt" else "generation"]
    if phase["tokens"] != count:
        fail(f"{count} tokens were asked for, {phase['tokens']} came")
    facts = {
        "cached": max(result["resident_capacity"]),
        "miss_rate": round(phase["miss_rate"], 3),
        "flash_MB_a_token": round(phase["flash_bytes"] / count / 1e6, 1),
        "flash_GB_a_second": round(phase["flash_bytes"] / phase["seconds"] / 1e9, 2),
        "peak_MiB": result["peak_memory_bytes"] >> 20,
        "plan_MiB": result["memory_plan_bytes"] >> 20,
    }
    return phase["tokens_per_second"], facts


def text_of(arguments, count):
    """The beginning of the text that has exactly `count` tokens, filled up with short words."""
    words = pathlib.Path(arguments.text).read_text(encoding="utf-8").split()[:count]

    def tokens(text):
        command = [str(arguments.moce), "tokenize", str(arguments.model), "--ids"]
        return len(subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout.split())

    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tokens(" ".join(words[:middle])) <= count else (low, middle - 1)
    text = " ".join(words[:low])
    # A word in most vocabularies, a letter in those of bytes.
    for filling in (" the", " a", "a"):
        while tokens(text + filling) <= count:
            text += filling
    if tokens(text) != count:
        fail(f"found no prompt of exactly {count} tokens; the last had {tokens(text)}")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--llama-cpp", required=True, help="folder that holds a built llama-bench")
    parser.add_argument("--moce", required=True)
    parser.add_argument("--limits", default="4608,2970", help="memory limits in MiB")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", type=int, default=32, help="tokens; 0 leaves decoding out")
    parser.add_argument("--prompt", type=int, default=512, help="tokens; 0 leaves prompts out")
    parser.add_argument("--text", default=README, help="where the prompt is taken from (default: the README)")
    arguments = parser.parse_args()

    samples, facts = {}, {}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as prompt:
        if arguments.prompt:
            prompt.write(text_of(arguments, arguments.prompt))
            prompt.flush()
        figures = [figure for figure in (("decode", arguments.decode), ("prompt", arguments.prompt)) if figure[1]]
        for index in range(arguments.rounds):
            for limit in [int(limit) << 20 for limit in arguments.limits.split(",")]:
                print(f"round {index + 1}, {limit >> 20} MiB, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
                group = Group(limit)
                for figure in figures:
                    engines = {
                        "llama.cpp, passive": lambda: llama_cpp(arguments, group, figure, "passive"),
                        "llama.cpp, unset": lambda: llama_cpp(arguments, group, figure, None),
                        "moce": lambda: moce(arguments, group, figure, limit, prompt.name, []),
                    }
                    for name, measure in engines.items():
                        speed, fact = measure()
                        samples.setdefault((limit, figure, name), []).append(speed)
                        facts[limit, figure, name] = fact
                group.remove()

    print(f"{arguments.model}, {arguments.threads} threads, {arguments.rounds} rounds, tokens/s: median (min to max)")
    for (limit, figure, name), speeds in samples.items():
        median, low, high = summary(speeds)
        line = f"{limit >> 20} MiB  {figure[0]} {figure[1]:<4} {name:20} {median:8.2f} ({low:.2f} to {high:.2f})"
        if name == "moce":
            others = [summary(samples[limit, figure, other])[0] for other in ("llama.cpp, passive", "llama.cpp, unset")]
            line += f"  {median / max(others):.2f} times the better  {facts[limit, figure, name]}"
        print(line)


if __name__ == "__main__":
    main()
