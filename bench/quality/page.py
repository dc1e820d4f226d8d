"""The page of a study: tables from results, and the sentences that follow from them."""

import math
import statistics

# Tokens of a window, and of a long one.
WINDOW, LONG_WINDOW = 1024, 4096

# The largest rise of perplexity that `moce sweep` draws.
MOST_DRAWN = 0.1

# What a study may leave out, in words.
LEFT_OUT = {
    "evictions": "evictions without changing the text", "three-quarters": "three quarters cached", "long": "long windows",
    "tasks": "tasks (MMLU, GSM8K, generated questions)",
}  # fmt: skip

# Recorded by others (github.com/Indoroid/DriftWood, Apache-2.0), with what they are of.
PUBLIC_TRACES = {
    "qwen": "Qwen3-30B-A3B, 6 of 128", "gemma": "gemma-4-26B-A4B, 6 of 128", "gptoss": "gpt-oss-120b, 2 of 128",
}  # fmt: skip

# As the paper's tables are ordered; drop-cold is not in it.
FAMILIES = ["original", "prune", "max-rank", "cumulative", "cache-prior", "drop-cold"]
FAST = "cache-prior:lambda=0.2,j=2"
NAMES = {"cache-prior:lambda=0.1,j=2": "`balanced`", FAST: "`fast`"}
NO_EXPERTS = "prune:k=0"


def percent(share, digits=1, sign=False):
    return f"{100 * share:{'+' if sign else ''}.{digits}f} %"


def span(interval, digits=2, scale=100, sign=False):
    form = f"{'+' if sign else ''}.{digits}f"
    return f"{scale * interval['low']:{form}} to {scale * interval['high']:{form}}"


def table(names, rows):
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def by_routing(rows, capacity=None):
    return {row["routing"]: row for row in rows if capacity in (None, row["capacity"])}


def original(rows):
    return next(row for row in rows if row["routing"] == "original")


def fast(rows):
    return next(row for row in rows if row["routing"] == FAST)


def label(routing):
    return f"{routing} ({NAMES[routing]})" if routing in NAMES else routing


def t_quantile(freedom):
    """The 0.975 quantile of Student's t, from that of the normal distribution (Cornish and Fisher; to 1 % from five degrees of freedom on)."""
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def rise_between(windows, tokens):
    """The rise of perplexity by a mean difference of windows, in nats, of so many tokens each, with its 95 % interval: Student's t over blocks
    of neighbouring windows, as many together as moce's bootstrap draws (the cube root of their number)."""
    count = len(windows)
    length = max(n for n in range(1, count + 1) if n**3 <= count)
    blocks = [sum(windows[(first + n) % count] for n in range(length)) / length / tokens for first in range(count)]
    independent = count / length
    half = t_quantile(independent - 1) * math.sqrt(statistics.pvariance(blocks) / (independent - 1))
    mean = statistics.mean(windows) / tokens
    return math.expm1(mean), {"low": math.expm1(mean - half), "high": math.expm1(mean + half)}


def beside(found, one, other):
    """The perplexity of one policy above that of another, by the negative log likelihoods of their windows, and what it is of the experts."""
    windows = [a - b for a, b in zip(one, other)]
    value, interval = rise_between(windows, WINDOW)
    share = math.log1p(value) / nats_of_experts(found, len(windows) * WINDOW)
    return f"{percent(value, 2, True)} ({span(interval, sign=True)}), {percent(share, sign=True)} of the experts"


def points(value, base):
    """The difference of two shares as their tables show them, in points."""
    return round(100 * value, 2) - round(100 * base, 2)


def rise(row):
    if row["routing"] == "original":
        return "—"
    interval = row.get("perplexity_rise_interval")
    shown = percent(row["perplexity_rise"], 2, sign=True)
    return f"{shown} ({span(interval, sign=True)})" if interval else shown


def costs(row):
    """The price in words, nothing where the interval holds 0."""
    interval = row["perplexity_rise_interval"]
    return "costs nothing that this text can show" if interval["low"] <= 0 <= interval["high"] else f"costs {rise(row)}"


def main_text(found):
    """What the main table is of, in words."""
    return f"the first {found['main'][0]['tokens']:,} tokens of the test text" if found["quoted"] else "the whole test text"


def fewer(row, base):
    """Share of the misses that are gone."""
    return "—" if row is base else percent(1 - row["miss_rate"] / base["miss_rate"], 0)


def nats_of_experts(found, tokens):
    """Nats a token that all routed experts together bring on the first tokens of the test text."""
    whole, alone = (found["window_nll"][routing][: tokens // WINDOW] for routing in ("original", NO_EXPERTS))
    return (sum(alone) - sum(whole)) / (len(whole) * WINDOW)


def of_experts(found, row):
    """What a policy loses in nats a token, as a share of what all routed experts bring on the same text."""
    if row["routing"] == "original":
        return "—"
    return percent(math.log1p(row["perplexity_rise"]) / nats_of_experts(found, row["tokens"]))


def priced(found, row):
    """The rise, and what it is of the experts."""
    return rise(row) if row["routing"] == "original" else f"{rise(row)}, {of_experts(found, row)}"


def policies(found, rows, base=None, bound=None, names=label):
    """The usual table of rows, and of Belady's bound, behind the first, where there is one."""
    base = base or original(rows)
    body = [
        (
            names(row["routing"]), f"{row['perplexity']:.3f}", rise(row), of_experts(found, row), percent(row["miss_rate"], 2),
            fewer(row, base), f"{row['misses_per_token']:.1f}", percent(row["changed_share"]), f"{row['lifetime_mean']:.1f}",
        )
        for row in rows
    ]  # fmt: skip
    if bound:
        body.insert(
            1,
            (
                "original, Belady's bound", f"{base['perplexity']:.3f}", "—", "—", percent(bound["miss_rate"], 2), fewer(bound, base),
                f"{bound['misses_per_token']:.1f}", "—", "",
            ),
        )  # fmt: skip
    columns = ["routing", "perplexity", "rise (95 %)", "of the experts", "misses", "misses gone", "a token", "choices changed", "lifetime"]
    return table(columns, body)


def ordered(rows):
    """By family, then from weak to strong."""
    place = lambda row: (row["routing"] == NO_EXPERTS, FAMILIES.index(row["routing"].partition(":")[0]), -row["miss_rate"])
    return sorted(rows, key=place)


def short_part(found, facts):
    rows, experts = found["main"], facts["experts"]
    base, row, alone = original(rows), fast(rows), by_routing(rows)[NO_EXPERTS]
    choices = experts["per_token"] * experts["layers"]
    tuned = found["tuned"]
    names = {"original": "`original`: the model's own choice", FAST: "`fast`", tuned["routing"]: f"`{tuned['routing']}`: what `moce tune` chose on other text"}
    shown = [base, *(line for line in ordered(rows) if line["routing"] in NAMES), tuned]
    body = [
        (names.get(line["routing"], NAMES.get(line["routing"])), percent(line["miss_rate"]), fewer(line, base), rise(line), of_experts(found, line), percent(line["changed_share"]))
        for line in shown
    ]  # fmt: skip
    moved = fast(found["divergence"])
    small = (
        f"the model is small ({facts['parameters'] / 1e6:.0f} million parameters), a dense one taken apart into experts and distilled "
        "([models/README.md](../models/README.md)); " if found["demo"] else ""
    )  # fmt: skip
    return f"""Cache-aware routing lets experts in memory take the place of some of the router's weaker choices: fewer reads from flash, another text. **In short**, with
half of the experts cached, on {main_text(found)}:

{table(["routing", "misses", "misses gone", "rise of perplexity (95 %)", "of the experts", "choices changed"], body)}

Under `fast` the likeliest token is another one in {percent(1 - moved['top1_agreement'])} of the cases (first {moved['tokens']:,} tokens).{tasks_in_short(found)}{speed_in_short(found)}

Keep in mind: {small}one text.

**How much the routed experts matter**: without any of them (`{NO_EXPERTS}`) the perplexity is {alone['perplexity']:.2f} instead of {base['perplexity']:.2f},
{percent(alone['perplexity_rise'], 0, True)}. *Of the experts* in the tables: what a policy loses, in nats a token, as a share of that on the same text.

**The policies** ([exactly](METHOD.md#policies)). *cache-prior*, the paper's method: cached experts get a bonus of λ times the usual range of the scores. *max-rank*: cached ones
among the m best go first. *cumulative*: the same among the best that hold the share p of the probability. *drop-cold*: what is not cached is left out. *prune*: only
the k best run. *J*: the strongest choices, which always run. *except*: layers that keep the model's own choice. `balanced` and `fast` are cache-prior
with λ 0.1 and 0.2.

**How to read the tables.** *Misses*: of the {experts['per_token']} choices of each token and layer the share whose expert was not cached; *a token*: the same out of
{experts['per_token']} · {experts['layers']} = {choices}. Policies that run fewer experts (prune, drop-cold) are measured by all {choices}, too: part of what they save is that they ask for less.
*Misses gone*: against original routing with LRU and a cache of the same size. *Choices changed*: the model's own choices that did not run.
*Lifetime*: tokens from an expert's entry to its eviction, on average; stays that a window's end cuts off count as far as they got. It is about the size of the
cache by the misses of a layer and token: the same fact, told in tokens. *Rise*: of perplexity above original routing on the same windows, in brackets its 95 %
interval by paired bootstrap over blocks of neighbouring windows, which are alike (expanded percentiles); between two policies, and behind the first tokens of long
windows, Student's t over such blocks. Where a section says "the first tokens", they are easier than the text as a whole: compare within a table."""


def speed_in_short(found):
    """What the policy allows in speed, and no more than was reached, where it was measured."""
    if not found["speed"]:
        return ""
    half, slow = found["speed"]["cells"][1], found["speed"]["slow"]
    fair = lambda cell: f"{min(ratios(cell)):.1f} times as fast"
    price = f"perplexity {rise(half['whole'])}, {of_experts(found, half['whole'])} of the experts"
    rate = f"{half['policy']['machine']['rates']['flash'][2] / 1e9:.1f} GB/s"
    held = f", and {fair(slow)} where it reads {slow['megabytes']} MB/s" if slow else ""
    return f""" What leaning buys depends on the device: with Qwen1.5-MoE's shape (random
weights, this model's scores replayed) and `{half['chosen']['routing']}` ({price}) generation is {fair(half)} where flash reads {rate}{held}: of what was
measured and what the two bounds allow the lower ([Speed](#speed))."""


def bound_at_half(found, facts):
    """Belady's bound on the trace of the same text, half of the experts cached."""
    cells = found["evictions"]["cells"] if found["evictions"] else []
    half = facts["experts"]["count"] // 2
    return next((cell["total"] for cell in cells if cell["eviction"] == "belady" and set(cell["capacity"]) == {half}), None)


def main_part(found, facts):
    experts, tuned, measured = facts["experts"]["count"], found["tuned"], found["tune"]["measured"]
    names = lambda routing: f"{routing} (tuned)" if routing == tuned["routing"] else label(routing)
    rows = [row for row in found["main"] if row["routing"] != NO_EXPERTS]
    shown = ordered([*rows, tuned])
    bound = bound_at_half(found, facts)
    belady = "\n\nBelady's bound holds for evictions, which leave the choices alone; a policy that changes choices may go below it." if bound else ""
    high, limit = tuned["perplexity_rise_interval"]["high"], found["tune"]["max_loss"]
    kept = (
        "the limit is kept there, interval and all" if high <= limit
        else "the limit is kept there, but the interval reaches beyond it" if tuned["perplexity_rise"] <= limit
        else "the limit is not kept there"
    )  # fmt: skip
    rank = next(row for row in rows if row["routing"].startswith("max-rank"))
    beside_rank = beside(found, found["window_nll"][FAST], found["window_nll"][rank["routing"]])
    alike = (
        f"\n\n`fast` beside `{rank['routing']}`, window by window: perplexity {beside_rank}, misses "
        f"{points(fast(rows)['miss_rate'], rank['miss_rate']):+.2f} points."
    )
    text = f"""## Routing policies

WikiText-2 test, {rows[0]['tokens']:,} tokens in windows of {WINDOW:,} (the last token of the one before as
context), half of the experts cached ({experts // 2} of {experts}), LRU, the policy on every token; caches start empty in each window.

{policies(found, shown, bound=bound, names=names)}{belady}

![Misses by layer, policy by policy](images/layers.svg)

Misses by layer; white: none, dark: all.

`moce tune --max-loss {percent(limit, 0)}` chose {chosen(tuned)} on WikiText-2 valid: {measured['tokens']:,} tokens of its first half to find candidates, as many of the second to
accept one. It searched one policy for all layers; cache-prior that spares the dearest layers, with a lower J, or with λ by layer; capacities by layer. It promised {percent(measured['perplexity_rise'], 2, True)}, at most {percent(measured['perplexity_rise_upper'], 2, True)}. On the test text it
costs {rise(tuned)}, {of_experts(found, tuned)} of the experts: {kept}. KL {tuned['kl_mean']:.4f} nats a token ({span(tuned['kl_interval'], 4, 1)}), the same likeliest token in
{percent(tuned['top1_agreement'])} of the cases ({span(tuned['top1_agreement_interval'], 1)}).{alike}"""
    if found["three-quarters"]:
        text += f"""

With three quarters cached ({3 * experts // 4} of {experts}), on the same text (what was tuned for half):

{policies(found, ordered(found["three-quarters"]), names=names)}"""
    return text


def chosen(tuned):
    """The tuned policy, and its capacities where they differ by layer."""
    least, most = min(tuned["capacity"]), max(tuned["capacity"])
    return f"`{tuned['routing']}`" + ("" if least == most else f" with {least} to {most} experts cached by layer")


def paper_part(found, facts):
    rows = found["main"]
    base, row = original(rows), fast(rows)
    lifetime = f"{base['lifetime_mean']:.0f} → {row['lifetime_mean']:.0f}"
    body = [
        ("paper, Qwen1.5-MoE-A2.7B", "35 %", "16 %", "26 → 58", "about +0.5 %", "not told"),
        ("this model", percent(base["miss_rate"]), percent(row["miss_rate"]), lifetime, rise(row), of_experts(found, row)),
    ]
    seeded = f"""

The equal LRU rate confirms nothing: the routers were seeded to miss about that often ([training/README.md](../training/README.md)). What leaning saves and costs was
not tuned for. The prices compare only roughly: the paper does not tell its λ there, and a routed choice weighs less here (4 experts of 32 neurons beside a
shared one of 768; there 4 of 1,408 beside 5,632).""" if found["demo"] else ""
    return f"""## Beside the paper

arXiv 2412.00099 on WikiText-2, half cached, J = 2; here λ = 0.2:

{table(["model", "LRU misses", "cache-prior misses", "lifetime", "perplexity", "of the experts"], body)}{seeded}"""


def divergence_part(found, facts):
    rows = ordered(row for row in found["divergence"] if row["kl_mean"] is not None)
    body = [
        (
            label(row["routing"]), f"{row['kl_mean']:.4f} ({span(row['kl_interval'], 4, 1)})",
            f"{percent(row['top1_agreement'])} ({span(row['top1_agreement_interval'], 1)})", rise(row), of_experts(found, row),
        )
        for row in rows
    ]  # fmt: skip
    leaning, pruned = fast(rows), by_routing(rows)[f"prune:k={facts['experts']['per_token'] - 1}"]
    a, b = leaning["kl_interval"], pruned["kl_interval"]
    moved = "further than" if a["low"] > b["high"] else "less far than" if a["high"] < b["low"] else "about as far as"
    return f"""## How far the policies move what the model expects

D(original ‖ policy) on the first {rows[0]['tokens']:,} tokens; 0 where nothing changes. It sees changes that perplexity does not, and
the two need not order policies alike.

{table(["routing", "KL, nats a token (95 %)", "same likeliest token (95 %)", "rise of perplexity (95 %)", "of the experts"], body)}

`fast` moves what the model expects {moved} leaving out the weakest expert does (`{pruned['routing']}`), at a rise of perplexity of {rise(leaning)} instead of {rise(pruned)}."""


def pareto_part(found, facts):
    rows = [row for row in found["pareto"] if row["on_front"] and row["perplexity_rise"] <= MOST_DRAWN]
    return f"""## Quality against misses

First {rows[0]['tokens']:,} tokens, policies that are the same in all layers ([Which layers](#which-layers) has better ones). Filled points: no other has both fewer misses and
lower perplexity. Rises above {percent(MOST_DRAWN, 0)} are not drawn. Neighbours lie within each other's intervals: read the shape, not single points.

![Rise of perplexity against miss rate](images/pareto.svg)

The filled points:

{policies(found, rows, original(found['pareto']))}"""


def capacity_part(found, facts):
    rows, experts = found["capacity"], facts["experts"]["count"]
    at = {(row["capacity"], row["routing"]): row for row in rows}
    capacities = list(dict.fromkeys(row["capacity"] for row in rows))
    routings = list(dict.fromkeys(row["routing"] for row in ordered(rows)))
    cached = [f"{math.floor(float(capacity.rstrip('%')) / 100 * experts)} of {experts}" for capacity in capacities]
    by_size = lambda show: table(
        ["routing", *cached],
        [(label(routing), *(show(at[capacity, routing], at[capacity, "original"]) for capacity in capacities)) for routing in routings],
    )
    gone = lambda row, base: percent(row["miss_rate"]) + (f" ({fewer(row, base)})" if row is not base else "")
    small, large = (fast([row for row in rows if row["capacity"] == capacity]) for capacity in (capacities[0], capacities[-1]))
    saved = lambda row: fewer(row, at[row["capacity"], "original"])
    return f"""## Cache sizes

First {rows[0]['tokens']:,} tokens. Misses (of them gone):

{by_size(gone)}

Rise of perplexity (95 %), and of the experts:

{by_size(lambda row, base: priced(found, row))}

Lifetime in tokens:

{by_size(lambda row, base: f"{row['lifetime_mean']:.1f}")}

`fast` takes away {saved(small)} of the misses of the smallest cache and {saved(large)} of those of the largest. With the smallest it {costs(small)}, with the largest it {costs(large)}."""


def protected_part(found, facts):
    rows, k = found["protected"], facts["experts"]["per_token"]
    base = original(rows)
    by_j = {int(row["routing"].rsplit("j=", 1)[1]): row for row in rows if row is not base}
    last = by_j[k]
    same = last["perplexity"] == base["perplexity"] and last["miss_rate"] == base["miss_rate"]
    lines = [f"J = {j} saves {fewer(by_j[j], base)} of the misses and {costs(by_j[j])}" for j in range(k)]
    return f"""## Protected experts (J)

How many of the model's strongest choices always run, with cache-prior at λ = 0.2; first {rows[0]['tokens']:,} tokens.

{policies(found, [base, *(by_j[j] for j in sorted(by_j))])}

{"; ".join(lines)}. J = {k} {"is original routing to the last bit, as it must be" if same else "differs from original routing, which it must not"}.
In which layers leaning costs: [Which layers](#which-layers)."""


def evictions_part(found, facts):
    if not found["evictions"]:
        return ""
    cells = found["evictions"]["cells"]
    capacities = sorted({tuple(cell["capacity"]) for cell in cells})
    names = list(dict.fromkeys(cell["eviction"] for cell in cells))
    at = {(cell["eviction"], tuple(cell["capacity"])): cell for cell in cells}
    rate = lambda name, capacity: at[name, capacity]["total"]["miss_rate"]
    half = tuple([facts["experts"]["count"] // 2] * facts["experts"]["layers"])
    lifetime = lambda name: f"{at[name, half]['lifetime_mean']:.1f}" if at[name, half]["lifetime_mean"] else ""
    body = [(name, *(percent(rate(name, capacity), 2) for capacity in capacities), lifetime(name)) for name in names]
    lru, bound = rate("lru", half), rate("belady", half)
    line = lambda name: f"`{name}` {percent(rate(name, half), 2)} ({100 * (lru - rate(name, half)) / (lru - bound):+.0f} %)"
    defaults = ["score:memory=32", "lfu:memory=256", "s3fifo"]
    best = min((name for name in names if name not in ("belady", "lru")), key=lambda name: rate(name, half))
    hindsight = "" if best in defaults else f" The best of all settings, picked with hindsight on this very text: {line(best)}."
    sizes = [f"{capacity[0]} of {facts['experts']['count']}" for capacity in capacities]
    return f"""## Evictions, without changing the text

Original routing, one trace of {cells[0]['total']['tokens']:,} tokens of the test text (`moce trace record`, `moce simulate`); miss rates, and the lifetime in tokens with half
cached. Belady knows the future and bounds all.

{table(["eviction", *sizes, "lifetime"], body)}

At half cache LRU misses {percent(lru, 2)}, the bound is {percent(bound, 2)}. With their default memories (in brackets how far from LRU to the bound that is):
{", ".join(map(line, defaults))}.{hindsight}
That `score` should beat LRU was expected; at half it {"does" if rate("score:memory=32", half) < lru else "does not"}.{public_part(found)}"""


def leaning_evictions_part(found, facts):
    rows = [row for row in found["capacity"] if row["capacity"] == "50%"] + found["other-evictions"]
    body, least = [], min((row for row in rows if row["routing"] == FAST), key=lambda row: row["miss_rate"])
    for eviction in dict.fromkeys(row["eviction"] for row in rows):
        of_it = [row for row in rows if row["eviction"] == eviction]
        base, leaning = original(of_it), fast(of_it)
        body.append((
            eviction, percent(base["miss_rate"], 2), percent(leaning["miss_rate"], 2), fewer(leaning, base), fewer(leaning, original(rows)),
            rise(leaning), of_experts(found, leaning), percent(leaning["changed_share"]), f"{leaning['lifetime_mean']:.1f}",
        ))  # fmt: skip
    columns = ["eviction", "misses, original", "misses, `fast`", "gone", "gone, against LRU", "rise (95 %)", "of the experts", "choices changed", "lifetime"]
    return f"""## Evictions under cache-aware routing

What is evicted is what leaning then leans away from. `fast` with half of the experts cached, on the first {rows[0]['tokens']:,} tokens, caches empty at the start of each window; *gone*: of the misses of original
routing with the same eviction, and of those with LRU.

{table(columns, body)}

Under `fast` `{least['eviction']}` misses least here."""


def simulated_part(found, facts):
    """Misses on a trace that does not react beside those of runs."""
    if not found["simulated"]:
        return ""
    simulated = {cell["routing"]: cell for cell in found["simulated"]["cells"] if cell["eviction"] == "lru"}
    rows = [row for row in ordered(found["main"]) if row["routing"] in simulated and row["routing"] != NO_EXPERTS]
    rate = lambda row: simulated[row["routing"]]["total"]["miss_rate"]
    body = [
        (label(row["routing"]), percent(row["miss_rate"], 2), percent(rate(row), 2), percent(row["changed_share"], 2), percent(simulated[row["routing"]]["changed_share"], 2))
        for row in rows
    ]  # fmt: skip
    furthest = max(abs(rate(row) - row["miss_rate"]) for row in rows)
    return f"""## Simulated and run

A trace recorded under original routing cannot show how a policy's changes alter later scores ([METHOD.md](METHOD.md)). What `moce simulate` counts on a trace of
{main_text(found)}, beside the runs of the first table:

{table(["routing", "misses, run", "misses, simulated", "changed, run", "changed, simulated"], body)}

The two are at most {100 * furthest:.2f} points apart."""


def public_part(found):
    """The same evictions on traces of other models."""
    if not found["public"]:
        return ""
    body, changes = [], {name: [] for name in ("lfu:memory=64", "lfu:memory=256")}
    for trace, model in PUBLIC_TRACES.items():
        cells = found["public"][trace]["cells"]
        names = list(dict.fromkeys(cell["eviction"] for cell in cells))
        at = {(cell["capacity"][0], cell["eviction"]): cell["total"] for cell in cells}
        for cached in sorted({cell["capacity"][0] for cell in cells}):
            # Of the choices that are in the trace: those of the last layer are there for the last token of the prompt alone.
            missed = {name: 1 - at[cached, name]["hit_rate"] for name in names}
            body.append((model, cached, *(percent(missed[name], 2) for name in names)))
            for name, change in changes.items():
                change.append(missed[name] / missed["lru"] - 1)
    tokens = ", ".join(str(found["public"][trace]["cells"][0]["total"]["tokens"]) for trace in PUBLIC_TRACES)
    return f"""

On routing that other engines recorded of full-size models (one prompt and its answer each, {tokens} tokens, with as many experts a token as those runs used, from an empty cache; DriftWood's public traces):

{table(["model", "cached", *names], body)}

Against LRU the misses change there by {" and by ".join(f"{percent(min(change), 0, True)} to {percent(max(change), 0, True)} (`{name}`)" for name, change in changes.items())}: what `lfu` saves on this page's model
is no promise for others, and LRU stays the default."""


def dearest(found):
    """The layer in which leaning costs most beyond what the misses that it saves cost on average."""
    return found["tune"]["layer_prices"][0]["layer"]


def layers_part(found, facts):
    prices, layer = found["tune"]["layer_prices"], dearest(found)
    shown = min(5, len(prices) // 2)
    line = lambda name, values: (name, *(" to ".join(f"{value:.{digits}f}" for value in dict.fromkeys(ends)) for ends, digits in values))
    measures = (("kl", 4), ("misses_saved", 2))
    body = [line(price["layer"], [((price[name],), digits) for name, digits in measures]) for price in prices[:shown]]
    rest = {name: [price[name] for price in prices[shown:]] for name, _ in measures}
    body.append(line("the others", [((min(rest[name]), max(rest[name])), digits) for name, digits in measures]))
    base, everywhere = original(found["except"]), fast(found["except"])
    but = by_routing(found["except"])[f"{FAST},except={layer}"]
    nats = [math.log1p(row["perplexity_rise"]) for row in (everywhere, but)]
    misses = [base["misses_per_token"] - row["misses_per_token"] for row in (everywhere, but)]
    carried = f"""Layer {layer} carries {percent(1 - nats[1] / nats[0], 0)} of what `fast` costs and {percent(1 - misses[1] / misses[0], 0)} of what it saves. """ if min(nats[0], misses[0]) > 0 else ""
    spared, everywhere_by_j = by_routing(found["except"]), by_routing(found["protected"])
    pairs = [(j, *(rows.get(f"cache-prior:lambda=0.2,j={j}{end}") for rows, end in ((everywhere_by_j, ""), (spared, f",except={layer}")))) for j in (1, 0)]
    cheaper = [f"J = {j} costs {percent(with_it['perplexity_rise'], 2, True)} without layer {layer}, {percent(all_over['perplexity_rise'], 2, True)} with it" for j, all_over, with_it in pairs if all_over and with_it]
    fewer_protected = f"What is spared there may go into protecting fewer choices: at λ = 0.2, {'; '.join(cheaper)}. " if cheaper else ""
    within = [row for row in found["except"] if row not in (base, everywhere, but) and row["perplexity_rise"] <= 0.01]
    return f"""## Which layers

Leaning (`fast`) in one layer alone, in two windows of WikiText-2 valid as `moce tune` measures it: D(original ‖ policy), which shows on far fewer tokens than a rise
of perplexity does, and what is saved; first the layers that cost most beyond what their saved misses cost on average. Any change at all moves a little what follows (rounding, other
choices behind it), so that small numbers say little:

{table(["layer", "KL, nats a token", "misses saved a token"], body)}

So layer {layer} keeps the model's own choice here (`except={layer}`); first {but['tokens']:,} tokens of the test text, `fast` with and without, and, of all policies tried
with this exception, those that cost at most 1 % here (picked with hindsight):

{policies(found, [everywhere, but, *ordered(within)], base)}

{carried}{fewer_protected}`moce tune` looks for such layers; what it chose, without sight of this text, is in the first table."""


def ranks_part(found, facts):
    rows = sorted((row for row in found["ranks"] if row["routing"] != "original"), key=lambda row: row["routing"])
    body = [("none (original)", f"{original(found['ranks'])['perplexity']:.3f}", "—", "—")]
    body += [(index, f"{row['perplexity']:.3f}", rise(row), of_experts(found, row)) for index, row in enumerate(rows, 1)]
    nats = [math.log1p(row["perplexity_rise"]) for row in rows]
    falling = "" if nats == sorted(nats, reverse=True) else ", though not every rank more than the next"
    dropped = by_routing(found["pareto"])[f"prune:k={facts['experts']['per_token'] - 1}"]
    return f"""## Which choices matter

One of the {facts['experts']['per_token']} choices of every token and layer replaced by an expert that the router did not choose (`swap`); first {rows[0]['tokens']:,} tokens.

{table(["rank replaced", "perplexity", "rise (95 %)", "of the experts"], body)}

In nats a token the strongest choice matters {nats[0] / nats[-1]:.0f} times as much as the weakest{falling}; the expert that takes its place runs with its own small weight, so
that most of this is the weight that is lost. Replacing the weakest costs {rise(rows[-1])}, leaving it out (`{dropped['routing']}`) {rise(dropped)};
the former beside the latter, window by window: {beside(found, found["ranks_nll"][rows[-1]["routing"]], found["window_nll"][dropped["routing"]])}."""


def touch_part(found, facts):
    body, changes = [], []
    for row in ordered(found["touch"]):
        routing, strong = row["routing"], by_routing(found["capacity"], "50%")[row["routing"]]
        changes.append(f"{points(row['miss_rate'], strong['miss_rate']):+.2f} (`{routing}`)")
        body.append((label(routing), percent(strong["miss_rate"], 2), percent(row["miss_rate"], 2), priced(found, strong), priced(found, row)))
    return f"""## Touch order

The paper touches a token's experts strongest first, so that the weakest ends most recent; the other way round, on the first {found["touch"][0]['tokens']:,} tokens:

{table(["routing", "misses, strong first", "misses, weak first", "rise, of the experts, strong first", "weak first"], body)}

Weak first changes misses by {", ".join(changes)} points."""


def start_part(found, facts):
    empty = by_routing(found["capacity"], "50%").values()
    starts = {
        "empty": list(empty), "the experts with the lowest ids": found["start-first"],
        "drawn by chance": found["start-random"], "saved after the first 4,000 characters of WikiText-2 valid": found["start-saved"],
    }  # fmt: skip
    body = [(name, percent(original(rows)["miss_rate"], 2), percent(fast(rows)["miss_rate"], 2), priced(found, fast(rows))) for name, rows in starts.items()]
    most = (facts["experts"]["count"] // 2) / (WINDOW * facts["experts"]["per_token"])
    gain = lambda name: points(original(empty)["miss_rate"], original(found[name])["miss_rate"])
    return f"""## Start of the cache

What is cached where each window of {WINDOW:,} tokens begins; first {found["start-first"][0]['tokens']:,} tokens.

{table(["start", "original: misses", "fast: misses", "fast: rise (95 %), of the experts"], body)}

An empty cache can cost at most one miss for each of its places, {100 * most:.2f} points. With original routing a saved cache gives back {gain("start-saved"):.2f}
points of that, one drawn by chance {gain("start-random"):.2f}."""


def behind_the_first(found, routing):
    """The rise of perplexity behind the first tokens of long windows, with its 95 % interval. What the first tokens
    of a long window cost is what a short window costs that begins there."""
    short, long, each = found["window_nll"], found["long_nll"], LONG_WINDOW // WINDOW
    parts = zip(long[routing], long["original"], short[routing][::each], short["original"][::each])
    late = [(all_policy - first_policy) - (whole - first) for all_policy, whole, first_policy, first in parts]
    return rise_between(late, LONG_WINDOW - WINDOW)


def long_part(found, facts):
    if not found["long"]:
        return ""
    short, long = by_routing(found["main"]), by_routing(found["long"])
    body = [
        (
            label(routing), f"{short[routing]['perplexity']:.3f}", f"{row['perplexity']:.3f}", rise(short[routing]), rise(row),
            *("—" if routing == NO_EXPERTS else percent(of["miss_rate"], 2) for of in (short[routing], row)),
        )
        for routing, row in sorted(long.items(), key=lambda item: (item[0] == NO_EXPERTS, item[0] != "original"))
    ]  # fmt: skip
    policy = fast(found["long"])
    late, interval = behind_the_first(found, FAST)
    first = short[FAST]
    drift = "no drift shows" if interval["low"] <= first["perplexity_rise"] else "there is drift"
    return f"""## Long texts

Windows of {LONG_WINDOW:,} tokens instead of {WINDOW:,}: the cache lives on, and so would any drift. {policy['tokens']:,} tokens of the test text{"; the model was distilled on sequences of 512" if found["demo"] else ""}.

{table(["routing", "perplexity, 1,024", "4,096", "rise (95 %), 1,024", "4,096", "misses, 1,024", "4,096"], body)}

Behind the first {WINDOW:,} tokens of the long windows `fast` costs {percent(late, 2, True)} ({span(interval, sign=True)}), in short windows {percent(first['perplexity_rise'], 2, True)}: {drift}."""


def difference(comparison):
    interval = comparison["accuracy_difference_interval"]
    return f"{100 * comparison['accuracy_difference']:+.2f} ({span(interval, sign=True)})"


def probability(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def letters(found):
    """How MMLU's answers are spread over the letters: by the key, and by the model."""
    right, choice = ([100 * share for share in found["mmlu-letters"][name]] for name in ("right", "choice"))
    best = max(range(len(right)), key=right.__getitem__)
    spread = ", ".join(f"{letter} {share:.0f} %" for letter, share in zip("ABCD", choice))
    return best, right[best], spread


def fast_on_tasks(found):
    """On which tasks `fast` differs from original routing, at 5 % shared out among them."""
    reports = {name.removesuffix("-fast"): report for name, report in found["tasks"].items() if name.endswith("-fast")}
    differs = {name: report for name, report in reports.items() if report["comparison"]["mcnemar_p"] < 0.05 / len(reports)}
    moved = lambda name, report: f"`{name}` ({percent(found['tasks'][f'{name}-original']['accuracy'])} to {percent(report['accuracy'])})"
    if not differs:
        return f"Under `fast` accuracy on none of {len(reports)} tasks differs by more than chance would have it"
    others = "; on the others it differs by no more than chance would have it" if len(differs) < len(reports) else ""
    return f"Of {len(reports)} tasks `fast` changes the accuracy on {' and '.join(moved(*item) for item in differs.items())}{others}"


def tasks_in_short(found):
    return f"\n{fast_on_tasks(found)} ([Tasks](#tasks))." if found["tasks"] else ""


def tasks_part(found, facts):
    if not found["tasks"]:
        return ""
    body = []
    for report in found["tasks"].values():
        comparison, flexible = report.get("comparison"), report.get("flexible_accuracy_interval")
        body.append(
            (
                report["task"].removesuffix(".jsonl"), label(report["routing"]), f"{report['questions']:,}",
                f"{percent(report['accuracy'], 2)} ({span(report['accuracy_interval'])})",
                f"{percent(report['flexible_accuracy'], 2)} ({span(flexible)})" if flexible else "", report["cut_prompts"] or "",
                percent(report["miss_rate"], 2), difference(comparison) if comparison else "—", probability(comparison["mcnemar_p"]) if comparison else "—",
            )
        )  # fmt: skip
    mmlu, gsm8k = found["tasks"]["mmlu-original"], found["tasks"]["gsm8k-original"]
    letter, best, spread = letters(found)
    above = "above both" if 100 * mmlu["accuracy_interval"]["low"] > best else "not above them"
    return f"""## Tasks

Prompts and scoring of lm-evaluation-harness; half of the experts cached, LRU, the policy on prompt tokens too. `multiple-choice` and `word-problems-1` to `-3` are
generated (one, two and three operations; training/exercises/), asked without examples; MMLU and GSM8K with five (GSM8K: the first of its train file, the harness draws them). *Right*: by the strict rule; *by the
last number* where answers are generated. Difference (in points) and McNemar's p compare with original routing question by question.

{table(["task", "routing", "questions", "right (95 %)", "by the last number (95 %)", "prompts cut", "misses", "difference (95 %)", "McNemar p"], body)}

MMLU: guessing gives 25 %, always answering {"ABCD"[letter]} {best:.1f} %; the model, which answers {spread}, is {above} at {span(mmlu['accuracy_interval'])} %. GSM8K:
{span(gsm8k['accuracy_interval'])} %. A model of this size knows hardly anything of either, so that there is hardly anything that a policy could lose: equal
accuracy there proves nothing.

{fast_on_tasks(found)} (McNemar, 5 % shared out among them)."""


def spread(speed):
    return f"{speed['median']:.1f} ({speed['least']:.1f} to {speed['most']:.1f})"


def ratios(cell):
    """How many times as fast as original routing a policy was, and how many times its fewer misses allow."""
    own, policy = cell["original"], cell["policy"]
    reached = policy["generation"]["tokens_per_second"]["median"] / own["generation"]["tokens_per_second"]["median"]
    return reached, policy["bound_tokens_per_second"] / own["bound_tokens_per_second"]


def faster(cell):
    """What a policy reaches of what its fewer misses allow."""
    own, policy = cell["original"], cell["policy"]
    speeds = [row["generation"]["tokens_per_second"] for row in (policy, own)]
    reached, allowed = ratios(cell)
    least, most = speeds[0]["least"] / speeds[1]["most"], speeds[0]["most"] / speeds[1]["least"]
    gone = 1 - policy["generation"]["miss_rate"] / own["generation"]["miss_rate"]
    return (
        f"takes away {percent(gone, 0)} of the misses: {reached:.2f} times the speed of lossless LRU (runs: {least:.2f} to {most:.2f}). The two "
        f"bounds allow {allowed:.2f} times; {percent(reached / allowed, 0)} of that ratio is reached."
    )


def speed_part(found, facts):
    """Speed of a full-size shape, and how much of what fewer misses allow was reached."""
    if not found["speed"]:
        return ""
    cells, slow = found["speed"]["cells"], found["speed"]["slow"]
    body, sentences = [], []

    def add(cached, memory, name, row):
        generation = row["generation"]
        body.append(
            (
                cached, memory, name, spread(generation["tokens_per_second"]), percent(generation["miss_rate"]),
                f"{generation['flash_bytes_per_token'] / 2**20:.0f}", *(f"{rate / 1e9:.1f}" for rate in (row["machine"]["rates"]["flash"][2], row["machine"]["rates"]["experts"])),
                f"{row['bound_tokens_per_second']:.1f}", percent(row["bound_share"], 0),
            )
        )  # fmt: skip

    for cell in cells:
        pick = cell["chosen"]
        capacity, routing = pick["capacity"], pick["routing"]
        memory = f"{cell['chance']['memory_plan_bytes'] / 2**30:.2f}"
        add(capacity, memory, "by chance, original", cell["chance"])
        add(capacity, memory, "recorded, original", cell["original"])
        add(capacity, memory, f"recorded, `{routing}`", cell["policy"])
        peer = cell["llama.cpp"]
        if peer:
            body.append((capacity, memory, "llama.cpp, by chance", spread(peer["tokens_per_second"]), "", "", "", "", "", ""))
        beside = f" By chance moce is {cell['chance']['generation']['tokens_per_second']['median'] / peer['tokens_per_second']['median']:.1f} times as fast as llama.cpp." if peer else ""
        whole = cell["whole"]
        price = f"perplexity of this page's model {rise(whole)}, {of_experts(found, whole)} of the experts, on {whole['tokens']:,} tokens of the test text; {rise(pick)} on those that it was picked on"
        sentences.append(f"- {capacity}: `{routing}` ({price}) {faster(cell)}{beside}")
    held = ""
    if slow:
        pick, memory = slow["chosen"], f"{slow['original']['memory_plan_bytes'] / 2**30:.2f}"
        cached = f"{pick['capacity']}, flash at {slow['megabytes']} MB/s"
        add(cached, memory, "recorded, original", slow["original"])
        add(cached, memory, f"recorded, `{pick['routing']}`", slow["policy"])
        above = slow["policy"]["bound_share"] > 1
        held = f"""

The fewer bytes a second flash gives, the more it matters what is read. The last rows: half of the experts cached, all reads of the
process held to {slow['megabytes']} MB/s by the system (3 rounds). `{pick['routing']}` {faster(slow)}""" + (
            " More than the bound is possible there: the system holds\nthe mean, and what is not read while the processor computes may be read faster afterwards; a real device of that rate gives no such credit." if above else ""
        )
    return f"""## Speed

Qwen1.5-MoE-A2.7B's full size (8.2 GB) with random weights on {found["speed"]["processor"]}, {cells[0]['chance']['threads']} threads (`moce bench`): 256 prompt tokens with
original routing, then 128 tokens; 5 rounds with both routings in turn, median (least to most). *By chance*: random weights choose experts by chance, about the worst that is likely.
*Recorded*: the router's scores of this page's model on WikiText-2 valid take the place of the random ones (`--replay`), under original routing
and under the variant of cache-prior with the fewest misses among those that cost this page's model at most 1 % on that text, cached as much (else the one that costs least).
Scores do not react to what a policy changed; quality is in the tables above. llama.cpp: the same file under a memory limit as large as moce's plan,
its own routing by chance, 32 tokens, which also fill its cache, as moce's 256 prompt tokens do; the better of two settings, 3 runs each
([bench/RESULTS.md](../bench/RESULTS.md) has both under one limit). *Flash*, *kernels*: GB/s of reads of 4 experts at once, and of experts through the kernels, measured in
the same run; they swing on a shared machine, so compare the rows of one run only: original and cache-prior with as much cached. *Bound*: tokens/s if flash and kernels were used to the full at these
misses, measured in the same run ([bench/RESULTS.md](../bench/RESULTS.md)); *reached*: the share of it.

{table(["cached", "memory, GiB", "routing", "tokens/s", "misses", "MiB read a token", "flash", "kernels", "bound", "reached"], body)}

{chr(10).join(sentences)}

More than all of a ratio of bounds is noise: speeds and rates swing by more than that from run to run.{held}

`moce bench --shape qwen1.5-moe-a2.7b --folder DIR --yes --rounds 1 -n 8` makes the file; llama.cpp is built as
[bench/oracles/README.md](../bench/oracles/README.md) says."""


PARTS = [
    main_part, paper_part, divergence_part, pareto_part, capacity_part, protected_part, layers_part, evictions_part, leaning_evictions_part, simulated_part, ranks_part, touch_part,
    start_part, long_part, tasks_part, speed_part,
]  # fmt: skip


def write(found, facts, arguments):
    experts = facts["experts"]
    options = [f"--limit {arguments.limit}"]
    options += [f"--quoted {arguments.quoted}"] if arguments.quoted else []
    options += [f"--without {arguments.without}"] if arguments.without else []
    options += ["--shape SHAPE.gguf"] if arguments.shape else []
    options += [f"--slow-flash {arguments.slow_flash}"] if arguments.slow_flash else []
    options += ["--llama-cpp llama.cpp/build/bin"] if arguments.llama_cpp else []
    options += [arguments.model] if arguments.model else []
    name = arguments.model or f"the demo model ([models/README.md](../models/README.md)), {facts['name']}"
    missing = [LEFT_OUT[part] for part in arguments.without.split(",") if part]
    missing += [] if arguments.shape else ["speed"]
    gaps = f"\n\nNot measured yet: {', '.join(missing)}." if missing else ""
    head = f"""# What cache-aware routing costs and saves

{short_part(found, facts)}

This page is written by one command, from the runs it makes (`bench/quality/study.py --help`):

    python bench/quality/study.py --moce target/release/moce --data DATA -o STUDY {' '.join(options)}

The model: {name} ({facts['architecture']}, {experts['layers']} layers with {experts['count']} experts, {experts['per_token']} a token, {facts['parameters'] / 1e6:.0f} million
parameters). What holds for it need not hold for another one: `moce tune` and `moce sweep` measure yours.{gaps}"""
    return "\n\n".join([head, *filter(None, (part(found, facts) for part in PARTS))]) + "\n"
