"""Runs the whole quality study of a model and writes docs/RESULTS.md from it.

    python bench/quality/study.py --moce target/release/moce --data DATA -o STUDY [MODEL.gguf]

DATA holds wikitext2/wiki.test.raw, wikitext2/wiki.valid.raw, mmlu/, gsm8k/ and traces/driftwood/*.route.csv (github.com/Indoroid/DriftWood,
docs/bench-data/2026-07-15-route-trace; Apache-2.0). Figures are on the test text, every choice of a
parameter is made on the validation text. Every step keeps its result in STUDY, so that a study that was broken off goes on where it
stopped, also on another machine; with another model or limit give another folder. `demo/` beside this file holds what has been measured of the demo
model. Standard library only; several hours on two cores, of which the tasks take most (`--without tasks` leaves them out, `--limit` and
`--quoted` shorten the texts).
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import page
import read_limit

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# Generated questions, 1,000 of each kind, whose templates and numbers are held out of the demo model's training.
EXERCISES = REPOSITORY / "training" / "exercises" / "test"
KINDS = ["multiple-choice", "word-problems-1", "word-problems-2", "word-problems-3"]

# Runs no routed expert at all and tells how much they matter.
NO_EXPERTS = page.NO_EXPERTS
# The policies of the main table, the last of them NO_EXPERTS.
MAIN = "balanced;fast;max-rank;cumulative;drop-cold;prune:k=3|0"
PARETO = "cache-prior:lambda=0.05..0.5/9;cache-prior:lambda=0.2|0.3|0.5,j=3;max-rank:m=6|8|12|16;cumulative:p=0.5|0.7|0.9;drop-cold:j=1|2|3;prune:k=1|2|3"
# Where one layer keeps the model's own choice.
EXCEPT = (
    "cache-prior:lambda=0.1|0.2|0.5,j=0|1|2,except={layer};max-rank:m=8|16,j=0|1|2,except={layer};"
    "cumulative:p=0.7|0.9,j=0|2,except={layer};drop-cold:j=1|2,except={layer}"
)
# Experts a token that these are for, and the fewest of a layer: the defaults (J = 2) are those of more than 16.
PER_TOKEN, LEAST_EXPERTS = 4, 17


def write(path, text):
    """A file that is whole or not there."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


class Study:
    """Runs moce, once for each step."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.folder = pathlib.Path(arguments.output).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = [arguments.model] if arguments.model else []
        data = pathlib.Path(arguments.data).resolve()
        self.test, self.valid = (data / "wikitext2" / f"wiki.{part}.raw" for part in ("test", "valid"))
        self.data = data
        self.check()

    def check(self):
        """A folder belongs to one model, one release of moce and one set of texts; two builds of a release are not told apart."""
        self.facts = json.loads(self.moce("inspect", *self.model, "--json"))
        texts = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (self.test, self.valid)}
        model = {key: value for key, value in self.facts.items() if key != "file"}
        experts = self.facts["experts"]
        if experts["per_token"] != PER_TOKEN or experts["count"] < LEAST_EXPERTS:
            sys.exit(
                f"the grids of this study are for {PER_TOKEN} experts a token of at least {LEAST_EXPERTS} a layer; "
                f"{self.facts['name']} has {experts['per_token']} of {experts['count']}: try `moce sweep` with a grid of your own"
            )
        facts = {"moce": self.moce("--version").strip(), "model": model, "texts": texts}
        path = self.folder / "study.json"
        if not path.exists():
            write(path, json.dumps(facts, indent=1))
        elif json.loads(path.read_text(encoding="utf-8")) != facts:
            sys.exit(f"{self.folder} holds a study of another model, version or text; give another folder with -o")

    def moce(self, *command, enter=None):
        """What it prints. `enter` is called in the process before it runs."""
        command = [str(part) for part in (self.arguments.moce, *command)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, stdin=subprocess.DEVNULL, preexec_fn=enter)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: status {done.returncode}")
        return done.stdout

    def step(self, name, *command, enter=None):
        """The JSON that a command prints; from its file if the same command has run already."""
        path = self.folder / f"{name}.json"
        command = list(map(str, command))
        shown = list(map(self.shown, command))
        if path.exists():
            step = json.loads(path.read_text(encoding="utf-8"))
            if step["command"] != shown:
                sys.exit(f"{path} holds the result of another command: {' '.join(step['command'])}; give another folder with -o")
            return step["result"]
        print(f"{name}: moce {' '.join(shown)}", file=sys.stderr)
        return self.keep(path, shown, json.loads(self.moce(*command, "--json", enter=enter)))

    def has(self, name):
        """Whether a step has been done."""
        return (self.folder / f"{name}.json").exists()

    def one_machine(self, names):
        """Speeds are compared with each other, so these steps are all done by one processor: what is known of it."""
        path = self.folder / "speed-machine.json"
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts = dict(map(str.strip, line.split(":", 1)) for line in lines if line.startswith(("model", "cpu family")))
        machine = {"processor": facts.get("model name", "an unnamed processor"), "facts": facts, "processors": os.cpu_count()}
        if not path.exists():
            write(path, json.dumps(machine))
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != machine and not all(map(self.has, names)):
            sys.exit(f"{self.folder} holds speeds of another machine; delete its speed-*.json to measure all of them here")
        return found

    def window_nll(self, name, rows):
        """The negative log likelihood of every window, in nats, by the policies of a sweep with one capacity."""
        read = lambda cell: json.loads((self.folder / name / "cells" / f"{cell}.json").read_text(encoding="utf-8"))
        return {row["routing"]: read(row["name"])["report"]["window_nll"] for row in rows}

    def keep(self, path, command, result):
        write(path, self.shown(json.dumps({"command": command, "result": result})))
        return result

    def shown(self, part):
        """A text as another machine would have it."""
        names = {self.folder: "STUDY", self.data: "DATA", REPOSITORY: "."}
        if self.arguments.shape:
            names[pathlib.Path(self.arguments.shape).parent] = "SHAPE"
        for folder, name in names.items():
            part = part.replace(str(folder), name)
        return part

    def sweep(self, name, grid, *options, limit=None, capacity="50%", original=None):
        """The rows of a sweep over the test text. It resumes by itself, cell by cell.

        `original`: a sweep of this text and capacity, whose original routing need not run again.
        """
        if original and not self.has(name):
            cells = self.folder / name / "cells"
            cells.mkdir(parents=True, exist_ok=True)
            for cell in (self.folder / original / "cells").glob("*_original.json"):
                write(cells / cell.name, cell.read_text(encoding="utf-8"))
        return self.step(
            name, "sweep", *self.model, "-f", self.test, "--routing-grid", grid, "--capacity", capacity,
            *self.limited(limit), *options, "-o", self.folder / name,
        )  # fmt: skip

    @staticmethod
    def limited(limit):
        return ["--limit", limit] if limit else []


def quality(study):
    """Routing policies on text."""
    limit, quoted = study.arguments.limit, study.arguments.quoted
    found = {}
    found["main"] = study.sweep("main", MAIN, limit=quoted)
    found["window_nll"] = study.window_nll("main", found["main"])
    found["divergence"] = study.sweep("divergence", f"balanced;fast;max-rank;cumulative;prune:k=3;{NO_EXPERTS}", "--kl", limit=limit)
    profile = study.folder / "tuned.profile"
    if not study.has("tune"):
        profile.unlink(missing_ok=True)  # a search that was broken off goes on from what is beside it
    found["tune"] = study.step("tune", "tune", *study.model, "-f", study.valid, "--max-loss", "1%", *study.limited(limit // 2), "-o", profile)
    found["tuned"] = study.step(
        "tuned", "perplexity", *study.model, "-f", study.test, "--profile", profile, "--kl", *study.limited(quoted)
    )
    found["pareto"] = study.sweep("pareto", PARETO, limit=limit)
    found["except"] = study.sweep("except", f"fast;{EXCEPT.format(layer=page.dearest(found))}", limit=limit)
    found["capacity"] = study.sweep("capacity", "balanced;fast;max-rank", limit=limit, capacity="12.5%,25%,50%,75%")
    found["protected"] = study.sweep("protected", "cache-prior:lambda=0.2,j=0|1|2|3|4", limit=limit)
    found["ranks"] = study.sweep("ranks", "swap:rank=1|2|3|4,seed=1", limit=limit)
    found["ranks_nll"] = study.window_nll("ranks", found["ranks"])
    found["touch"] = study.sweep("touch", "balanced;fast", "--touch", "weak-first", limit=limit)
    found["other-evictions"] = []
    for eviction in ("lfu:memory=256", "s3fifo", "score:memory=32"):
        found["other-evictions"] += study.sweep(f"eviction-{eviction.split(':')[0]}", "fast", "--eviction", eviction, limit=limit)
    for start in ("first", "random:1"):
        name = f"start-{start.split(':')[0]}"
        found[name] = study.sweep(name, "fast", "--start", start, limit=limit)
    found["start-saved"] = study.sweep("start-saved", "fast", "--start", saved_start(study), limit=limit)
    return found


def three_quarters(study, tuned):
    """The paper's other setting, on the whole text too."""
    return study.sweep("three-quarters", f"{page.FAST};{tuned['routing']}", limit=study.arguments.quoted, capacity="75%")


def long(study):
    """Long windows on the whole text, so that drift would show."""
    window = page.LONG_WINDOW
    return study.sweep("long", f"fast;{NO_EXPERTS}", "--window", window, "--ctx", window, limit=study.arguments.quoted)


def saved_start(study):
    """What is cached after the validation text's beginning, as a file for --start: a line a layer, least recent first."""
    path = study.folder / "saved.start"
    if not path.exists():
        state = study.folder / "saved.state"
        state.unlink(missing_ok=True)  # or it would be taken up
        prompt = study.folder / "saved.txt"
        prompt.write_text(study.valid.read_text(encoding="utf-8")[:4000], encoding="utf-8")
        study.moce("run", *study.model, "-q", "-f", prompt, "-n", 1, "--capacity", "50%", "--cache-state", state)
        layers = json.loads(state.read_text(encoding="utf-8"))["layers"]
        lines = (" ".join(map(str, layer["cached"])) for layer in layers)
        write(path, "\n".join(lines) + "\n")
    return path


def simulated(study, tokens):
    """On a recorded trace of the tokens of the main table: evictions and Belady's bound, lossless; the policies of that table."""
    trace = study.folder / "test.trace"
    if not (study.has("evictions") and study.has("simulated")) and not trace.exists():
        study.moce("trace", "record", *study.model, "-f", study.test, "--limit", tokens, "-o", trace)
    policies = study.step("simulated", "simulate", trace, "--capacity", "50%", "--routing-grid", MAIN)
    return policies, study.step(
        "evictions", "simulate", trace, "--capacity", "12.5%,25%,50%,75%",
        "--eviction", "lru,lfu:memory=64,lfu:memory=256,lfu:memory=1024,s3fifo,score:memory=16,score:memory=32,score:memory=128",
    )  # fmt: skip


def public_traces(study):
    """Evictions on what other engines recorded of other models: choices alone, of one short answer each."""
    found = {}
    for name in page.PUBLIC_TRACES:
        trace = study.folder / f"{name}.trace"
        if not study.has(f"evictions-{name}"):
            study.moce("trace", "import", study.data / "traces" / "driftwood" / f"{name}.route.csv", "-o", trace, "--force")
        found[name] = study.step(
            f"evictions-{name}", "simulate", trace, "--capacity", "12.5%,25%", "--eviction", "lru,lfu:memory=64,lfu:memory=256,s3fifo"
        )
    return found


def tasks(study):
    """Accuracy by routing, question by question: generated questions without examples, MMLU and GSM8K with five."""
    found = {}
    generated = [(exercises.stem, exercises, []) for exercises in (EXERCISES / f"{kind}.jsonl" for kind in KINDS)]
    common = [(task, task, ["--data", study.data / task]) for task in ("gsm8k", "mmlu")]
    routings = {"original": "original", "fast": "fast", "no-experts": NO_EXPERTS}
    for asked, name in itertools.product((generated, common), routings):
        for task, questions, data in asked:
            baseline = ["--baseline", study.folder / f"{task}-original.jsonl"] if name != "original" else []
            answers = study.folder / f"{task}-{name}.jsonl"
            if answers.exists() and not study.has(answers.stem):
                answers.rename(answers.with_name(answers.name + ".partial"))  # all asked, but not yet counted
            found[answers.stem] = study.step(
                answers.stem, "eval", questions, *study.model, *data, "--routing", routings[name],
                "-o", answers, *baseline,
            )  # fmt: skip
    return {f"{task}-{name}": found[f"{task}-{name}"] for task, *_ in generated + common for name in routings}


def letters(study):
    """The shares of the choices of MMLU: right, and chosen by the model itself."""
    lines = (study.folder / "mmlu-original.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    answers = [json.loads(line) for line in lines]
    share = lambda name: [sum(answer[name] == choice for answer in answers) / len(answers) for choice in range(4)]
    return {"right": share("right"), "choice": share("choice")}


def speed(study, dearest):
    """A full-size shape with random weights, routed by chance and as the model was on the validation text; llama.cpp beside it."""
    shape, llama_cpp = study.arguments.shape, study.arguments.llama_cpp
    names = {capacity: f"speed-{capacity.rstrip('%')}" for capacity in ("25%", "50%", "75%")}
    kinds = ("chance", "model", "llama-cpp") if llama_cpp else ("chance", "model")
    slow = study.arguments.slow_flash
    slow_name = f"speed-50-at-{slow}-MB"
    steps = [f"{name}-{kind}" for name in names.values() for kind in kinds] + ([slow_name] if slow else [])
    machine = study.one_machine(steps)
    trace = study.folder / "valid.trace"
    replays = [f"{name}-model" for name in names.values()] + ([slow_name] if slow else [])
    if not all(map(study.has, replays)) and not trace.exists():
        study.moce("trace", "record", *study.model, "-f", study.valid, "--limit", 8192, "-o", trace)
    grid = f"cache-prior:lambda=0.05|0.1|0.2|0.3|0.5;cache-prior:lambda=0.1|0.2|0.5,j=0|2,except={dearest}"
    choice = study.step(
        "choice", "sweep", *study.model, "-f", study.valid, "--routing-grid", grid,
        "--capacity", ",".join(names), *study.limited(study.arguments.limit), "-o", study.folder / "choice",
    )  # fmt: skip
    cells = []
    for capacity, name in names.items():
        chosen = strongest_within([row for row in choice if row["capacity"] == capacity], 0.01)
        bench = ["bench", shape, "--capacity", capacity, "--prompt-tokens", 256, "-n", 128, "--ceilings"]
        chance = bench_rows(study.step(f"{name}-chance", *bench))
        replay = ["--replay", trace, "--routing-grid", f"original;{chosen['routing']}"]
        model = bench_rows(study.step(f"{name}-model", *bench, *replay))
        peer = llama_cpp and llama_cpp_beside(study, name, chance[0]["memory_plan_bytes"], chance[0]["threads"])
        rows = study.sweep(
            f"whole-{capacity.rstrip('%')}", chosen["routing"], limit=study.arguments.quoted, capacity=capacity,
            original={"50%": "main", "75%": "three-quarters"}.get(capacity),
        )  # fmt: skip
        whole = next(row for row in rows if row["routing"] == chosen["routing"])
        cells.append({"chosen": chosen, "whole": whole, "chance": chance[0], "original": model[0], "policy": model[1], "llama.cpp": peer})
    if slow:
        grid = f"original;{cells[1]['chosen']['routing']}"
        bench = ["bench", shape, "--capacity", "50%", "--prompt-tokens", 256, "-n", 128, "--ceilings", "--rounds", 3]
        done = study.has(slow_name)  # then neither root nor the file is needed
        with contextlib.nullcontext() if done else read_limit.read_limit(shape, slow * 1_000_000) as enter:
            rows = bench_rows(study.step(slow_name, *bench, "--replay", trace, "--routing-grid", grid, enter=enter))
        slow = {"megabytes": slow, "chosen": cells[1]["chosen"], "original": rows[0], "policy": rows[1]}
    return {"cells": cells, "slow": slow, "processor": machine["processor"]}


def bench_rows(result):
    """The cells of a bench, each with the machine as it was then."""
    return [{**cell, "machine": result["machine"]} for cell in result["cells"]]


def strongest_within(rows, most):
    """The row with the fewest misses whose perplexity rises by no more than `most`; the one that rises least where none is within."""
    leaning = [row for row in rows if row["routing"] != "original"]
    within = [row for row in leaning if row["perplexity_rise"] <= most]
    return min(within, key=lambda row: row["miss_rate"]) if within else min(leaning, key=lambda row: row["perplexity_rise"])


def llama_cpp_beside(study, name, plan_bytes, threads):
    """Tokens/s of llama.cpp in a memory control group as large as moce's plan: the better of two settings, each the median of three."""
    path = study.folder / f"{name}-llama-cpp.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))["result"]
    sys.path.insert(0, str(REPOSITORY / "bench" / "oracles"))
    import compare_streaming

    limit = (plan_bytes + (1 << 20) - 1) >> 20 << 20
    arguments = argparse.Namespace(llama_cpp=study.arguments.llama_cpp, model=study.arguments.shape, threads=threads)
    group = compare_streaming.Group(limit)
    run = lambda policy: compare_streaming.llama_cpp(arguments, group, ("decode", 32), policy)[0]
    speeds = {policy or "unset": sorted(run(policy) for _ in range(3)) for policy in ("passive", None)}
    group.remove()
    best = max(speeds.values(), key=lambda speeds: speeds[1])
    result = {"limit_bytes": limit, "tokens_per_second": {"median": best[1], "least": best[0], "most": best[2]}}
    return study.keep(path, ["compare_streaming.py"], result)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="GGUF file (default: the demo model)")
    parser.add_argument("--moce", required=True)
    parser.add_argument("--data", required=True, help="folder with wikitext2/, mmlu/, gsm8k/ and traces/driftwood/")
    parser.add_argument("-o", "--output", required=True, help="folder that takes the results of all steps")
    parser.add_argument("--limit", type=int, default=32768, help="tokens of the grids; tune gets half")
    parser.add_argument("--quoted", type=int, default=None, help="tokens of the main table, at least those of --limit (default: the whole text)")
    parser.add_argument("--without", default="", help="parts to leave out, with commas: " + ", ".join(page.LEFT_OUT))
    parser.add_argument("--shape", help="file that `moce bench --shape qwen1.5-moe-a2.7b` made: speed is measured too")
    parser.add_argument("--slow-flash", type=int, metavar="MB", help="speed once more, with reads held to so many megabytes a second; needs root")
    parser.add_argument("--llama-cpp", help="folder that holds a built llama-bench: measured beside it; needs root (bench/oracles/README.md)")
    parser.add_argument("--page", help="the page to write (default: docs/RESULTS.md, which is the demo model's)")
    arguments = parser.parse_args()
    if arguments.model and not arguments.page:
        parser.error("MODEL also takes --page: docs/RESULTS.md is of the demo model")
    if arguments.limit < 16384:
        parser.error("--limit of at least 16384 tokens: intervals need windows")
    if arguments.quoted is not None and arguments.quoted < arguments.limit:
        parser.error(f"--quoted of at least the {arguments.limit} tokens of --limit: the grids are priced by the main table's windows")
    left_out = [part for part in arguments.without.split(",") if part]
    if not set(left_out) <= set(page.LEFT_OUT):
        parser.error(f"--without takes {', '.join(page.LEFT_OUT)}")
    if arguments.shape:
        arguments.shape = str(pathlib.Path(arguments.shape).resolve())
    study = Study(arguments)
    found = quality(study)
    found["quoted"], found["demo"] = arguments.quoted, arguments.model is None
    on_trace = (None, None) if "evictions" in left_out else simulated(study, found["main"][0]["tokens"])
    found["simulated"], found["evictions"] = on_trace
    found["public"] = None if "evictions" in left_out else public_traces(study)
    found["three-quarters"] = None if "three-quarters" in left_out else three_quarters(study, found["tuned"])
    found["long"] = None if "long" in left_out else long(study)
    if found["long"]:
        found["long_nll"] = study.window_nll("long", found["long"])
    found["tasks"] = None if "tasks" in left_out else tasks(study)
    if found["tasks"]:
        found["mmlu-letters"] = letters(study)
    found["speed"] = speed(study, page.dearest(found)) if arguments.shape else None
    target = pathlib.Path(arguments.page or REPOSITORY / "docs" / "RESULTS.md")
    plots = target.parent / "images"
    plots.mkdir(parents=True, exist_ok=True)
    for sweep, plot in (("pareto", "pareto"), ("main", "layers")):
        shutil.copyfile(study.folder / sweep / f"{plot}-50p-lru.svg", plots / f"{plot}.svg")
    write(target, page.write(found, study.facts, arguments))


if __name__ == "__main__":
    main()
