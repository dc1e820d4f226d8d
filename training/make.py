"""All stages: `python -m training.make DATA=FOLDER WORK=FOLDER [SETTINGS=cpu|accelerator|more|more-cpu] [UNTIL=stage]`.

Runs every stage in order; a stage that is done is skipped, one that was interrupted goes on from its last
checkpoint. The process id is in WORK/pid, so that SIGSTOP and SIGCONT can pause it. BASE=FILE names the base model, where
its package is not installed. DISTILL and MIX are the lengths of those stages: tokens, or seconds (`DISTILL=240s`) where an
accelerator is lent for a time. FROM=FILE takes a finished model (any part of a split one) instead of the stages up to
distill: its mix goes on from there (mean.py makes one of two). SEED=N is another run of the same
settings: other text, exercises and order. WORK/settings.json keeps SETTINGS, FROM, SEED and lengths, so that a run goes on without them.
"""

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

LENGTHS = {"DISTILL", "MIX"}
STAGES = ("data", "statistics", "seeding", "local", "distill", "mix", "export")


def arguments(words: list[str]) -> dict[str, str]:
    """NAME=value words."""
    known = {"DATA", "WORK", "UNTIL", "SETTINGS", "BASE", "FROM", "SEED", *LENGTHS}
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if unknown := [word for word in words if word.split("=", 1)[0] not in known]:
        sys.exit(f"error: unknown argument {unknown[0]!r}; expected NAME=value with {', '.join(sorted(known))}")
    if given.get("UNTIL", STAGES[-1]) not in STAGES:
        sys.exit(f"error: no stage {given['UNTIL']!r}; expected one of {', '.join(STAGES)}")
    if missing := {"DATA", "WORK"} - given.keys():
        sys.exit(f"error: {', '.join(sorted(missing))} missing\nhint: python -m training.make DATA=shared/data WORK=work")
    return {"UNTIL": STAGES[-1]} | given


def length(stage: str, text: str) -> dict[str, float]:
    """A stage's length, as its settings have it: tokens, or seconds (`240s`)."""
    try:
        unit, value = ("seconds", float(text[:-1])) if text.endswith("s") else ("tokens", int(text))
        if 0 < value < math.inf:
            return {unit: value}
    except ValueError:
        pass
    sys.exit(f"error: {stage}={text} is no length\nhint: tokens ({stage}=900000) or seconds ({stage}=240s)")


def finished_model(text: str, work: Path, kept: str | None) -> str:
    """The file of FROM. A folder keeps to the one it was begun with, and to its own stages where they have begun."""
    file = Path(text).resolve()
    if not file.is_file():
        sys.exit(f"error: FROM: there is no file {file}")
    if kept != str(file) if kept else any((work / name).exists() for name in ("statistics.pt", "distill.pt")):
        begun = f"FROM={kept}" if kept else "stages of its own"
        sys.exit(f"error: {work} was begun with {begun}\nhint: give another folder with WORK")
    return str(file)


def wanted_seed(text: str, work: Path, begun: int | None) -> int:
    """The number of SEED. A folder keeps to the one it was begun with."""
    if not text.isdecimal():
        sys.exit(f"error: SEED={text} is no number\nhint: SEED=1, SEED=2, ...")
    if begun not in (None, int(text)):
        sys.exit(f"error: {work} was begun with SEED={begun}\nhint: give another folder with WORK")
    return int(text)


def wanted_settings(given: dict[str, str], work: Path, device: str):
    """The settings of a run, and the finished model that its mix begins with: what its folder was begun with, else what is asked for, else
    the settings for this machine and none.

    Lengths of stages may be given anew; the folder keeps them too.
    """
    from .settings import CHOICES

    path = work / "settings.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    begun = kept.get("SETTINGS")
    name = given.get("SETTINGS") or begun or ("accelerator" if device == "cuda" else "cpu")
    if name not in CHOICES:
        sys.exit(f"error: no settings {name!r}; expected one of {', '.join(CHOICES)}")
    if begun not in (None, name):
        sys.exit(f"error: {work} was begun with SETTINGS={begun}\nhint: give another folder with WORK")
    kept |= {"SETTINGS": name} | {key: given[key] for key in LENGTHS if key in given}
    if given.get("FROM"):
        kept["FROM"] = finished_model(given["FROM"], work, kept.get("FROM"))
    seed = kept.get("SEED", 0 if begun else None)
    kept["SEED"] = wanted_seed(given.get("SEED") or str(seed or 0), work, seed)
    settings = CHOICES[name]()
    settings = replace(settings, seed=settings.seed + kept["SEED"])
    for stage in LENGTHS.intersection(kept):
        wanted = getattr(settings, stage.lower())
        settings = replace(settings, **{stage.lower(): replace(wanted, **length(stage, kept[stage]))})
    path.write_text(json.dumps(kept) + "\n")
    return settings, kept.get("FROM")


def final_states_file(path: Path, pool: np.ndarray, hidden: int, settings) -> np.ndarray | None:
    """The memory-mapped file of the dense model's final states, zeros where not yet known."""
    if not settings.keep_states:
        return None
    shape = (*pool.shape, hidden)
    if path.exists():
        return np.lib.format.open_memmap(path, mode="r+")
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.int16, shape=shape)


def exercise_pool(work: Path, tokenizer, settings) -> tuple[np.ndarray, np.ndarray]:
    """Packed exercises of the training part and the weights of their tokens."""
    from .data import pack_weighted
    from .exercises.write import training_pieces

    path = work / "pool-exercises.npz"
    if not path.exists():
        count = settings.exercise_tokens // settings.sequence
        ids, weights = pack_weighted(training_pieces(settings.seed), tokenizer, count, settings.sequence)
        beside = path.with_suffix(".part.npz")
        np.savez(beside, ids=ids, weights=weights)
        beside.rename(path)
    kept = np.load(path)
    return kept["ids"], kept["weights"]


def main() -> None:
    given = arguments(sys.argv[1:])
    data_folder, work = Path(given["DATA"]), Path(given["WORK"])
    work.mkdir(parents=True, exist_ok=True)
    (work / "pid").write_text(f"{os.getpid()}\n")

    import torch

    from . import checkpoint, data, distill, export, local, model, sample, seeding, statistics, student
    from . import workers as worker_pool
    from .base import Base

    workers, device = worker_pool.start(), worker_pool.device()
    settings, finished = wanted_settings(given, work, device)
    base = Base(Path(given["BASE"]) if "BASE" in given else None)
    last = STAGES.index(given["UNTIL"])

    pool_path = work / "pool-text.npy"
    if not pool_path.exists():
        pool = data.text_pool(data_folder, base.tokenizer(), settings.pool_tokens, settings.sequence, settings.seed)
        beside = pool_path.with_suffix(".part.npy")
        np.save(beside, pool)
        beside.rename(pool_path)
    pool = np.load(pool_path, mmap_mode="r")
    exercise_ids, weights = exercise_pool(work, base.tokenizer(), settings)
    if last < STAGES.index("statistics"):
        return

    dense_layers, ends = model.dense_layers(base, device)
    cos, sin = model.rope_tables(base.sizes, base.sizes.context, device)
    base_model = (dense_layers, ends, base.sizes, cos, sin)
    final_states = final_states_file(work / "pool-text-final.npy", pool, base.sizes.hidden, settings)
    common = distill.common_ids(pool, settings.distill.common_ids)
    text = distill.Sequences(pool, final_states)
    run = lambda name, layers, output_norm: distill.Run(
        name, layers, output_norm, base_model, getattr(settings, name), settings, workers, work
    )

    def from_dense() -> dict | None:
        """The stages from statistics to distill; None if they end before."""
        sums = statistics.gather(pool, base_model, settings, workers, work / "statistics.pt")
        if last < STAGES.index("seeding"):
            return None
        if (seeded := checkpoint.load(work / "seeded.pt")) is None:
            seeded = seeding.seed(sums, dense_layers, settings, workers)
            checkpoint.save(seeded, work / "seeded.pt")
        if last < STAGES.index("local"):
            return None
        sums.pop("inputs"), sums.pop("scales")
        learnt = local.teach(pool, final_states, base_model, seeded, sums, settings, workers, work)
        if last < STAGES.index("distill"):
            return None
        stage = run("distill", student.from_parts(base, dense_layers, seeded, learnt, settings.seed), ends["output_norm"])
        del learnt
        stage.train([(text, 1.0)], common)
        return stage.result()

    def begun() -> dict | None:
        """What the mix begins with; None if the stages end before."""
        if finished:
            return export.read_gguf(Path(finished), settings.shape)
        return checkpoint.load(work / "distill.pt") or from_dense()

    if (mixed := checkpoint.load(work / "mix.pt")) is None:
        done = begun()
        if done is None or last < STAGES.index("mix"):
            return
        sampled_ids = sample.sampled_pool(
            data_folder, base.tokenizer(), base_model, settings.sampled_batches, settings.sampled_batch,
            settings.sequence, settings.seed, workers, work,
        )
        states = final_states_file(work / "pool-sampled-final.npy", sampled_ids, base.sizes.hidden, settings)
        parts = [
            (text, settings.text_share),
            (distill.Sequences(sampled_ids, states), settings.sampled_share),
            (distill.Sequences(exercise_ids, weights=weights), settings.exercise_share),
        ]
        stage = run("mix", done["layers"], done["output_norm"])
        del done
        stage.train(parts, common)
        mixed = stage.result()
    if last < STAGES.index("export"):
        return

    export.write_gguf(work / "demo.gguf", base, mixed["layers"], mixed["output_norm"], settings.shape, settings.name)
    print(f"wrote {work / 'demo.gguf'}: {(work / 'demo.gguf').stat().st_size} bytes", flush=True)
    export.write_hugging_face(work / "hugging-face", base, mixed["layers"], mixed["output_norm"], settings.shape)


if __name__ == "__main__":
    main()
