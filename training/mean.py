"""The mean of finished models that went different ways from one beginning: `python -m training.mean OUT.gguf FILE FILE [FILE...]`.

Weights that lie between those of two such models often predict better than either. FILE is any part of a split model, with the
shape of the settings `accelerator`; BASE in the environment names the base model, where its package is not installed.
"""

import os
import sys
from pathlib import Path


def mean_of(models: list[dict]) -> dict:
    """The mean of models that went different ways from one beginning: all of them keep the base's 4-bit codes."""

    def mean(name: str, tensors: list):
        if tensors[0].is_floating_point():
            return sum(tensors) / len(tensors)
        if any(not tensors[0].equal(other) for other in tensors[1:]):
            raise ValueError(f"{name} differs: these models do not come from one beginning")
        return tensors[0]

    by_layer = zip(*(model["layers"] for model in models))
    layers = [{name: mean(name, [layer[name] for layer in same]) for name in same[0]} for same in by_layer]
    return {"layers": layers, "output_norm": mean("output_norm", [model["output_norm"] for model in models]), "curve": []}


def main() -> None:
    """Writes the mean."""
    from . import export
    from .base import Base
    from .settings import for_accelerator

    if len(sys.argv) < 4:
        sys.exit("usage: python -m training.mean OUT.gguf FILE FILE [FILE...]")
    out, *files = map(Path, sys.argv[1:])
    settings = for_accelerator()
    try:
        mean = mean_of([export.read_gguf(file, settings.shape) for file in files])
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    base = Base(Path(os.environ["BASE"]) if "BASE" in os.environ else None)
    export.write_gguf(out, base, mean["layers"], mean["output_norm"], settings.shape, settings.name)


if __name__ == "__main__":
    main()
