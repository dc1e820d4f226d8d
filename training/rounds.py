"""The whole way to the shipped model: `python -m training.rounds DATA=FOLDER WORK=FOLDER [ROUNDS=N] [FROM=FILE] [LONGER=..] [DISTILL=..] [MIX=..]`.

First what the accelerator's settings make (make.py; DISTILL and MIX are its lengths), or FROM=FILE, a finished model. Each round then
mixes on from the model so far, on text of its own (LONGER: how long), and keeps the mean of both (mean.py), which predicts text better
than either. WORK/round-N.gguf is the model after a round; what is done is skipped, what was interrupted goes on.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

KNOWN = {"DATA", "WORK", "ROUNDS", "FROM", "BASE", "LONGER", "DISTILL", "MIX"}


def steps(given: dict[str, str], settings: str) -> list[tuple[Path, list[str]]]:
    """Each file that is made, in order, and the module and words that make it; `settings` are those of the rounds. BASE also stands in the
    environment, where mean.py looks for it."""
    work = Path(given["WORK"])
    everywhere = [f"{name}={given[name]}" for name in ("DATA", "BASE") if name in given]
    model, made = Path(given.get("FROM", work / "beginning" / "demo.gguf")), []
    if "FROM" not in given:
        lengths = [f"{name}={given[name]}" for name in ("DISTILL", "MIX") if name in given]
        made.append((model, ["training.make", *everywhere, f"WORK={model.parent}", "SETTINGS=accelerator", *lengths]))
    length = [f"MIX={given['LONGER']}"] if "LONGER" in given else []
    for number in range(int(given.get("ROUNDS", "2"))):
        mixed, mean = work / f"round-{number + 1}" / "demo.gguf", work / f"round-{number + 1}.gguf"
        own = [f"WORK={mixed.parent}", f"SETTINGS={settings}", f"FROM={model}", f"SEED={number + 1}", *length]
        made += [(mixed, ["training.make", *everywhere, *own]), (mean, ["training.mean", str(mean), str(model), str(mixed)])]
        model = mean
    return made


def main() -> None:
    given = dict(word.partition("=")[::2] for word in sys.argv[1:])
    if given.keys() - KNOWN or {"DATA", "WORK"} - given.keys() or not given.get("ROUNDS", "2").isdecimal():
        sys.exit(f"error: expected NAME=value with DATA, WORK and, as wanted, {', '.join(sorted(KNOWN - {'DATA', 'WORK'}))}")
    if "FROM" in given and {"DISTILL", "MIX"} & given.keys():
        sys.exit("error: DISTILL and MIX are lengths of the beginning, which FROM takes the place of\nhint: LONGER is that of a round's mix")
    import torch

    Path(given["WORK"]).mkdir(parents=True, exist_ok=True)
    environment = os.environ | ({"BASE": given["BASE"]} if "BASE" in given else {})
    for file, words in steps(given, "more" if torch.cuda.is_available() else "more-cpu"):
        if not file.exists():
            print(f"making {file}: python -m {' '.join(words)}", flush=True)
            step = subprocess.Popen([sys.executable, "-m", *words], env=environment)
            # Or it would go on alone.
            signal.signal(signal.SIGTERM, lambda *_: step.terminate())
            if code := step.wait():
                sys.exit(code)


if __name__ == "__main__":
    main()
