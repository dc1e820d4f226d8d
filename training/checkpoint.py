"""Files that a killed run can trust: written beside, flushed, then renamed."""

import os
import time
from pathlib import Path

import torch


def save(value, path: Path) -> None:
    """Writes `value`; the old file stays whole until the new one is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(path.suffix + ".part")
    with open(beside, "wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def load(path: Path):
    """What `save` wrote, or None."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=False) if path.exists() else None


class Timer:
    """True once every `seconds` of wall time."""

    def __init__(self, seconds: float):
        self.seconds, self.last = seconds, time.monotonic()

    def due(self) -> bool:
        """Whether the time is up; if so it starts anew."""
        if time.monotonic() - self.last < self.seconds:
            return False
        self.last = time.monotonic()
        return True
