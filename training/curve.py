"""Draws a run's losses from what it printed: `python -m training.curve LOG PICTURE.svg [SETTINGS]`. Needs matplotlib.

LOG may hold several runs, one behind the other.
"""

import re
import sys
from pathlib import Path

LINE = re.compile(r"^(distill|mix) (\d+), [\d.]+%: KL (\S+) NLL (\S+) exercises (\S+) (\d+) tokens/s")
NAMES = ("KL to the base, nats a token", "loss on text, nats a token", "loss on exercises, nats a weighted token")


def read(log: str, step_tokens: dict[str, int]) -> tuple[list[tuple[float, ...]], list[float]]:
    """(million tokens since the first step, KL, NLL, exercises) of every step, and after how many million tokens another stage begins."""
    rows, begins, tokens = [], [], 0
    for found in filter(None, map(LINE.match, log.splitlines())):
        if rows and found[2] == "1":
            begins.append(tokens / 1e6)
        tokens += step_tokens[found[1]]
        rows.append((tokens / 1e6, *map(float, found.groups()[2:5])))
    return rows, begins


def smooth(values: list[float], width: int) -> list[float]:
    """Running means over `width` steps, without steps that have no value."""
    means = []
    for end in range(len(values)):
        near = [value for value in values[max(0, end - width + 1) : end + 1] if value == value]
        means.append(sum(near) / len(near) if near else float("nan"))
    return means


def main() -> None:
    """Writes the picture."""
    import matplotlib

    from .settings import CHOICES

    if not 3 <= len(sys.argv) <= 4:
        sys.exit("usage: python -m training.curve LOG PICTURE.svg [SETTINGS]")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "moce"
    from matplotlib import pyplot

    settings = CHOICES[sys.argv[3] if len(sys.argv) > 3 else "accelerator"]()
    steps = {stage: getattr(settings, stage).step_tokens for stage in ("distill", "mix")}
    log = Path(sys.argv[1]).read_text(encoding="utf-8")
    rows, begins = read(log, steps)
    tokens, *curves = zip(*rows)
    figure, panels = pyplot.subplots(1, 3, figsize=(10, 3), constrained_layout=True)
    for panel, name, curve in zip(panels, NAMES, curves):
        panel.plot(tokens, curve, linewidth=0.4, alpha=0.4)
        panel.plot(tokens, smooth(list(curve), 25), linewidth=1.5, color="C0")
        for begin in begins:
            panel.axvline(begin, linewidth=0.8, color="grey", linestyle=":")
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("million tokens")
    panels[0].set_yscale("log")
    figure.savefig(sys.argv[2], metadata={"Date": None})


if __name__ == "__main__":
    main()
