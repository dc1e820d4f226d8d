"""Text sampled from the base itself: chat answers, stories, explanations, encyclopedic articles.

The student is to write such text, and the base's own distribution over its own text is the best teacher for it.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from . import generate
from .data import chat, read_lines

TOPICS = (
    "the moon|volcanoes|bees|the Roman Empire|electricity|friendship|the ocean|bread|rivers|music|dinosaurs|rain|"
    "the human heart|trains|mountains|chess|the French Revolution|photosynthesis|bicycles|cats|dogs|gravity|"
    "gardening|libraries|tea|coffee|the desert|elephants|winter|spring|earthquakes|castles|whales|bridges|the sun|"
    "planets|paper|wool|maps|clocks|ships|horses|schools|farming|cities|forests|languages|money|medicine|weather|"
    "stars|birds|insects|fire|ice|glass|painting|dancing|cooking|sleep|memory|courage|honesty|kindness|patience|"
    "the printing press|steam engines|vaccines|the Great Wall of China|the Nile|Antarctica|coral reefs|spiders|"
    "penguins|lighthouses|windmills|the piano|football|running|swimming|reading|letters|the telephone|computers"
).split("|")

REQUESTS = (
    "Write a short story about {t}.", "Explain {t} to a child.", "Tell me three facts about {t}.",
    "Why do people care about {t}?", "Write a short poem about {t}.", "What should I know about {t}?",
    "Give me some advice about {t}.", "Describe {t} in one paragraph.", "Tell me a story with {t} in it.",
    "What is interesting about {t}?", "Write a letter to a friend about {t}.", "How would you explain {t} simply?",
    "Make a list of ideas about {t}.", "What is the history of {t}?", "Write the beginning of a tale about {t}.",
)

OPENINGS = (
    "Once upon a time", "It was a cold morning when", "The old man", "There was once a girl who", "In the year 18",
    "The history of {t}", "Scientists have found that {t}", "When we think of {t},", "# {t}\n\n", " = {t} = \n \n ",
    " = {t} = \n \n The", " = = History = = \n \n ", "{t} is", "Many people believe that {t}", "My grandmother",
)


def prompts(data: Path, tokenizer: Tokenizer, seed: str) -> Iterator[list[int]]:
    """Endless prompts as ids: half requests, a quarter openings, a quarter questions of the question sets."""
    draw = random.Random(seed)
    plain = [row["question"] for row in read_lines(data / "corpus" / "qa.jsonl.xz") if "choices" not in row]
    while True:
        kind, topic = draw.random(), draw.choice(TOPICS)
        if kind < 0.5:
            text = chat(draw.choice(REQUESTS).format(t=topic), "")
        elif kind < 0.75:
            text = draw.choice(OPENINGS).format(t=topic[0].upper() + topic[1:])
        else:
            question = draw.choice(plain)
            text = chat(question[0].upper() + question[1:] + "?" * (not question.endswith((".", "?"))), "")
        text = text.removesuffix("<|im_end|>\n")
        yield tokenizer.encode(text, add_special_tokens=False).ids


def sampled_pool(data: Path, tokenizer, base_model, batches: int, batch: int, length: int, seed: int, workers, folder):
    """[batches * batch, length] of u16; each batch is a file of its own until all are there."""
    finished = folder / "pool-sampled.npy"
    if finished.exists():
        return np.load(finished, mmap_mode="r")

    def one(index: int) -> Path:
        path = folder / f"sampled-{index}.npy"
        if not path.exists():
            source = prompts(data, tokenizer, f"{seed}-{index}")
            ids = generate.packed(source, batch, length, base_model, generate.dense_part, 0.9, 60, seed + index)
            np.save(path.with_suffix(".part.npy"), ids.numpy().astype(np.uint16))
            path.with_suffix(".part.npy").rename(path)
            print(f"sampled {path.name}: {ids.numel()} tokens", flush=True)
        return path

    paths = list(workers.map(one, range(batches)))
    np.save(finished.with_suffix(".part.npy"), np.concatenate([np.load(path) for path in paths]))
    finished.with_suffix(".part.npy").rename(finished)
    for path in paths:
        path.unlink()
    return np.load(finished, mmap_mode="r")
