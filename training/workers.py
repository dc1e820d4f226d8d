"""Two or more threads that each compute with one core, fed from a queue.

On a busy machine this beats parallel matrix products: nobody waits at a barrier inside a product, and a thread
that is starved of its core delays only its own task. PyTorch lets go of Python's lock inside its operations.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import torch


def worker_count() -> int:
    """One worker on an accelerator, else one a core."""
    if torch.cuda.is_available():
        return 1
    return int(os.environ.get("TRAINING_THREADS", os.cpu_count() or 1))


def device() -> str:
    """Where tensors live."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def start() -> ThreadPoolExecutor:
    """The pool; call once, before other PyTorch work."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    return ThreadPoolExecutor(worker_count(), initializer=lambda: torch.set_num_threads(1))
