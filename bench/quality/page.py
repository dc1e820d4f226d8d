"""The page of a study: tables from results, and the sentences that follow from them."""


def percent(share, digits=1, sign=False):
    return f"{100 * share:{'+' if sign else ''}.{digits}f} %"


def table(names, rows):
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def by_routing(rows, capacity=None):
    return {row["routing"]: row for row in rows if capacity in (None, row["capacity"])}


def original(rows):
    return next(row for row in rows if row["routing"] == "original")


def rise(row):
    if row["routing"] == "original":
        return ""
    interval = row.get("perplexity_rise_interval")
    shown = percent(row["perplexity_rise"], 2, sign=True)
    if interval:
        shown += f" ({100 * interval['low']:+.2f} to {100 * interval['high']:+.2f})"
    return shown


def fewer(row, base):
    """Share of the misses that are gone."""
    return "" if row is base else percent(1 - row["miss_rate"] / base["miss_rate"], 0)


def policies(rows, base=None, bound=None):
    """The usual table of a sweep's rows, and of Belady's bound where there is one."""
    base = base or original(rows)
    body = [
        (
            row["routing"], f"{row['perplexity']:.3f}", rise(row), percent(row["miss_rate"], 2), fewer(row, base),
            f"{row['misses_per_token']:.1f}", percent(row["changed_share"]), f"{row['lifetime_mean']:.0f}",
        )
        for row in rows
    ]  # fmt: skip
    if bound:
        body.append(
            (
                "original, Belady's bound", f"{base['perplexity']:.3f}", "", percent(bound["miss_rate"], 2), fewer(bound, base),
                f"{bound['misses_per_token']:.1f}", "", "",
            )
        )  # fmt: skip
    return table(["routing", "perplexity", "rise (95 %)", "misses", "misses gone", "a token", "choices changed", "lifetime, tokens"], body)


def bound_at_half(found, facts):
    """Belady's bound on the trace of the same text, half of the experts cached."""
    cells = found["evictions"]["cells"] if found["evictions"] else []
    half = facts["experts"]["count"] // 2
    return next((cell["total"] for cell in cells if cell["eviction"] == "belady" and set(cell["capacity"]) == {half}), None)


def main_part(found, facts):
    rows = found["main"]
    experts = facts["experts"]["count"]
    alone = by_routing(rows)["prune:k=0"]
    tuned, tune = found["tuned"], found["tune"]
    shown = [row for row in rows if row is not alone]
    interval = tuned["perplexity_rise_interval"]
    text = f"""## Routing policies

WikiText-2 test, {rows[0]['tokens']:,} tokens in windows of 1,024 (the last token of the one before as
context), half of the experts cached ({experts // 2} of {experts}), LRU, the policy on every token;
caches start empty in each window. Intervals by paired bootstrap over windows.

{policies(shown, bound=bound_at_half(found, facts))}

![Misses by layer, policy by policy](images/layers.svg)

`moce tune --max-loss 1%` on WikiText-2 valid chose {chosen(tuned)} ({tune['measured']['candidates_refused']} stronger ones were refused on its second
half; λ that falls or rises evenly with depth and capacities by layer were among the candidates). On the test text: misses {percent(tuned['miss_rate'], 2)} against {percent(original(rows)['miss_rate'], 2)}, perplexity
{percent(tuned['perplexity_rise'], 2, True)} ({100 * interval['low']:+.2f} to {100 * interval['high']:+.2f}), KL {tuned['kl_mean']:.4f} nats a token, the same likeliest
token in {percent(tuned['top1_agreement'])} of the cases."""
    if found["three-quarters"]:
        text += f"""

With three quarters cached ({3 * experts // 4} of {experts}), on the same text:

{policies(found["three-quarters"])}"""
    return text


def chosen(tuned):
    """The tuned policy, and its capacities where they differ by layer."""
    least, most = min(tuned["capacity"]), max(tuned["capacity"])
    return f"`{tuned['routing']}`" + ("" if least == most else f" with {least} to {most} experts cached by layer")


def divergence_part(found, facts):
    rows = [row for row in found["divergence"] if row["kl_mean"] is not None]
    body = [
        (
            row["routing"], f"{row['kl_mean']:.4f} ({row['kl_interval']['low']:.4f} to {row['kl_interval']['high']:.4f})",
            f"{percent(row['top1_agreement'])} ({span(row['top1_agreement_interval'], 1)})", rise(row),
        )
        for row in rows
    ]  # fmt: skip
    return f"""## How far the policies move what the model expects

D(original ‖ policy) on the first {rows[0]['tokens']:,} tokens.

{table(["routing", "KL, nats a token (95 %)", "same likeliest token (95 %)", "rise of perplexity (95 %)"], body)}"""


def pareto_part(found, facts):
    rows = [row for row in found["pareto"] if row["on_front"]]
    return f"""## Quality against misses

First {rows[0]['tokens']:,} tokens. Filled points are not beaten by another one: no fewer misses at lower perplexity.

![Rise of perplexity against miss rate](images/pareto.svg)

{policies(rows, original(found['pareto']))}"""


def capacity_part(found, facts):
    capacities = list(dict.fromkeys(row["capacity"] for row in found["capacity"]))
    body = []
    for capacity in capacities:
        rows = by_routing(found["capacity"], capacity)
        base = rows["original"]
        for row in rows.values():
            body.append((capacity, row["routing"], percent(row["miss_rate"], 2), fewer(row, base), rise(row), f"{row['lifetime_mean']:.0f}"))
    return f"""## Cache sizes

First {found['capacity'][0]['tokens']:,} tokens.

{table(["cached", "routing", "misses", "misses gone", "rise (95 %)", "lifetime, tokens"], body)}"""


def protected_part(found, facts):
    return f"""## Protected experts (J)

How many of the model's strongest choices always run, with cache-prior at λ = 0.2; first {found["protected"][0]['tokens']:,} tokens.

{policies(found["protected"])}"""


def evictions_part(found, facts):
    if not found["evictions"]:
        return ""
    cells = found["evictions"]["cells"]
    shares = ["12.5 %", "25 %", "50 %", "75 %"]
    capacities = sorted({tuple(cell["capacity"]) for cell in cells})
    names = list(dict.fromkeys(cell["eviction"] for cell in cells))
    rate = {(cell["eviction"], tuple(cell["capacity"])): cell["total"]["miss_rate"] for cell in cells}
    body = [(name, *(percent(rate[name, capacity], 2) for capacity in capacities)) for name in names]
    online = [name for name in names if name != "belady"]
    half = capacities[2]
    best = min(online, key=lambda name: rate[name, half])
    lru, bound = rate["lru", half], rate["belady", half]
    verdict = f"""At half cache the best online eviction here is `{best}`: {percent(rate[best, half], 2)} against LRU's {percent(lru, 2)}; of the misses that
Belady's bound ({percent(bound, 2)}) would save, it saves {percent((lru - rate[best, half]) / (lru - bound), 0)}."""
    return f"""## Evictions, without changing the text

Original routing, one trace of {cells[0]['total']['tokens']:,} tokens of the test text (`moce trace record`, `moce simulate`); miss rates. Belady knows the
future and bounds all.

{table(["eviction", *shares], body)}

{verdict}"""


def ranks_part(found, facts):
    rows = sorted((row for row in found["ranks"] if row["routing"] != "original"), key=lambda row: row["routing"])
    body = [(index, f"{row['perplexity']:.3f}", rise(row)) for index, row in enumerate(rows, 1)]
    return f"""## Which choices matter

One of the {facts['experts']['per_token']} choices of every token and layer replaced by an expert that the router did not choose (`swap`); first {rows[0]['tokens']:,} tokens.

{table(["rank replaced", "perplexity", "rise (95 %)"], body)}"""


def touch_part(found, facts):
    body, points = [], []
    for routing, weak in by_routing(found["touch"]).items():
        strong = by_routing(found["capacity"], "50%")[routing]
        points.append(f"{100 * (weak['miss_rate'] - strong['miss_rate']):+.2f} (`{routing}`)")
        body.append((routing, percent(strong["miss_rate"], 2), percent(weak["miss_rate"], 2), rise(strong), rise(weak)))
    return f"""## Touch order

The paper touches a token's experts strongest first, so that the weakest ends most recent; the other way round, on the first {found["touch"][0]['tokens']:,} tokens:

{table(["routing", "misses, strong first", "weak first", "rise, strong first", "weak first"], body)}

Weak first changes misses by {", ".join(points)} points."""


def start_part(found, facts):
    body = []
    for name, rows in (
        ("empty", by_routing(found["capacity"], "50%")), ("the first of each layer", by_routing(found["start-first"])),
        ("drawn by chance", by_routing(found["start-random"])), ("saved after another text", by_routing(found["start-saved"])),
    ):  # fmt: skip
        fast = next(row for row in rows.values() if row["routing"].startswith("cache-prior:lambda=0.2"))
        body.append((name, percent(rows["original"]["miss_rate"], 2), percent(fast["miss_rate"], 2), rise(fast)))
    return f"""## Start of the cache

What is cached where each window of 1,024 tokens begins; first {found["start-first"][0]['tokens']:,} tokens.

{table(["start", "original: misses", "fast: misses", "fast: rise"], body)}"""


def long_part(found, facts):
    short = by_routing(found["capacity"], "50%")
    body = []
    for routing, row in by_routing(found["long"]).items():
        body.append((routing, percent(short[routing]["miss_rate"], 2), percent(row["miss_rate"], 2), rise(short[routing]), rise(row)))
    return f"""## Long texts

Windows of 4,096 tokens instead of 1,024: the cache lives on, and so would any drift; first {found["long"][0]['tokens']:,} tokens.

{table(["routing", "misses, 1,024", "misses, 4,096", "rise, 1,024", "rise, 4,096"], body)}"""


def span(interval, digits=2):
    return f"{100 * interval['low']:.{digits}f} to {100 * interval['high']:.{digits}f}"


def difference(comparison):
    interval = comparison["accuracy_difference_interval"]
    return f"{100 * comparison['accuracy_difference']:+.2f} ({100 * interval['low']:+.2f} to {100 * interval['high']:+.2f})"


def tasks_part(found, facts):
    if not found["tasks"]:
        return ""
    body = []
    for report in found["tasks"].values():
        comparison = report.get("comparison")
        body.append(
            (
                report["task"], report["routing"], f"{report['questions']:,}", f"{percent(report['accuracy'], 2)} ({span(report['accuracy_interval'])})",
                percent(report["flexible_accuracy"], 2) if "flexible_accuracy" in report else "", report["cut_prompts"] or "",
                percent(report["miss_rate"], 2), difference(comparison) if comparison else "", f"{comparison['mcnemar_p']:.3f}" if comparison else "",
            )
        )  # fmt: skip
    chance = found["tasks"]["mmlu-original"]["accuracy_interval"]
    near = "includes chance: this model knows nothing of it that a policy could lose" if chance["low"] <= 0.25 <= chance["high"] else "is not chance"
    verdict = f"MMLU with original routing: the interval, {span(chance)} %, {near}."
    return f"""## Tasks

Prompts and scoring of lm-evaluation-harness. `multiple-choice` and `word-problems-1` to `-3` are generated (one, two and three operations;
training/exercises/), asked without examples; MMLU and GSM8K with five. Four choices: chance is 25 %. *Right*: by the strict rule; *by the last
number* where answers are generated. Difference (in points) and McNemar's p compare with original routing question by question; prune:k=0 runs no routed expert.

{table(["task", "routing", "questions", "right (95 %)", "by the last number", "prompts cut", "misses", "difference (95 %)", "McNemar p"], body)}

{verdict}"""


def spread(speed):
    return f"{speed['median']:.1f} ({speed['least']:.1f} to {speed['most']:.1f})"


def speed_part(found, facts):
    """Speed of a full-size shape, and how much of what fewer misses allow was reached."""
    if not found["speed"]:
        return ""
    cells = found["speed"]["cells"]
    body, sentences = [], []
    for cell in cells:
        chosen = cell["chosen"]
        capacity, routing = chosen["capacity"], chosen["routing"]
        shown = [("by chance, original", cell["chance"]), ("recorded, original", cell["original"]), (f"recorded, `{routing}`", cell["policy"])]
        for name, row in shown:
            generation = row["generation"]
            body.append(
                (
                    capacity, name, spread(generation["tokens_per_second"]), percent(generation["miss_rate"]),
                    f"{generation['flash_bytes_per_token'] / 2**20:.0f}", f"{row['bound_tokens_per_second']:.1f}", percent(row["bound_share"], 0),
                )
            )  # fmt: skip
        if peer := cell["llama.cpp"]:
            body.append((capacity, "llama.cpp, by chance", spread(peer["tokens_per_second"]), "", "", "", ""))
        own, policy = cell["original"], cell["policy"]
        median = lambda row: row["generation"]["tokens_per_second"]["median"]
        allowed, reached = policy["bound_tokens_per_second"] / own["bound_tokens_per_second"], median(policy) / median(own)
        gone = 1 - policy["generation"]["miss_rate"] / own["generation"]["miss_rate"]
        sentences.append(
            f"- {capacity}: `{routing}` (perplexity {rise(chosen)} on the validation text) takes away {percent(gone, 0)} of the misses, "
            f"{reached:.2f} times the speed of lossless LRU; the bounds allow {allowed:.2f} times, of which {percent(reached / allowed, 0)} is reached."
        )
    return f"""## Speed

Qwen1.5-MoE-A2.7B's full size (8.2 GB, {cells[0]['chance']['threads']} threads, `moce bench`), random weights, 64 tokens, 5 rounds, median (least to most). *By chance*: random
weights choose experts by chance, the worst case: misses are the share that is not cached. *Recorded*: the router's scores of this page's model on
WikiText-2 valid take the place of the random ones (`--replay`), under original routing and under the cache-prior with the fewest misses whose
perplexity is at most 1 % higher on that text, cached as much (the weakest where none is). Scores do not react to what a policy changed; quality
is in the tables above. llama.cpp: the same file under a memory limit as large as moce's plan, its own routing by chance, the better of two settings,
3 runs each. *Bound*: what flash and kernels allow at these misses, measured in the same run (bench/RESULTS.md).

{table(["cached", "routing", "tokens/s", "misses", "MiB read a token", "bound", "reached"], body)}

{chr(10).join(sentences)}

`moce bench --shape qwen1.5-moe-a2.7b --folder DIR --yes --rounds 1 -n 8` makes the file; llama.cpp is built as [bench/oracles/README.md](../bench/oracles/README.md) says."""


PARTS = [
    main_part, divergence_part, pareto_part, capacity_part, protected_part, evictions_part, ranks_part, touch_part, start_part,
    long_part, tasks_part, speed_part,
]  # fmt: skip


def write(found, facts, arguments):
    experts = facts["experts"]
    options = [f"--limit {arguments.limit}"]
    options += [f"--quoted {arguments.quoted}"] if arguments.quoted else []
    options += [f"--without {arguments.without}"] if arguments.without else []
    options += ["--shape SHAPE.gguf"] if arguments.shape else []
    options += ["--llama-cpp llama.cpp/build/bin"] if arguments.llama_cpp else []
    options += [arguments.model] if arguments.model else []
    alone = by_routing(found["main"])["prune:k=0"]
    name = arguments.model or f"the demo model ([models/README.md](../models/README.md)), {facts['name']}"
    head = f"""# What cache-aware routing costs and saves

Written by one command, from the runs it makes (`bench/quality/study.py --help`):

    python bench/quality/study.py --moce target/release/moce --data DATA -o STUDY {' '.join(options)}

The model: {name} ({facts['architecture']}, {experts['layers']} layers with {experts['count']} experts, {experts['per_token']} a token, {facts['parameters'] / 1e6:.0f} million
parameters). What holds for it need not hold for another one: `moce tune` and `moce sweep` measure yours.

**How much its routed experts matter at all:** without any of them the perplexity of the test text is {alone['perplexity']:.2f} instead of
{original(found['main'])['perplexity']:.2f}, {percent(alone['perplexity_rise'], 0, True)}. Every rise on this page has to be seen beside that."""
    return "\n\n".join([head, *filter(None, (part(found, facts) for part in PARTS))]) + "\n"
