"""Training text: the data folder's permitted parts -> packed token sequences.

Reads only `corpus/` and `gsm8k/train.jsonl`; wikitext2, gsm8k/test and mmlu are never opened here. Every
sequence is cut from a stream of whole pieces separated by the end-of-text token, so no padding exists.
"""

import json
import lzma
import random
import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

END_OF_TEXT = 0
PIECE_CHARACTERS = 8_000

# Shares of the pool. Histories, anatomy and factbook are closest to encyclopedic text, which is measured.
SHARES = {
    "openstax": 0.22,
    "openstax_spaced": 0.16,
    "factbook": 0.05,
    "factbook_spaced": 0.03,
    "novels": 0.28,
    "questions": 0.12,
    "word_problems": 0.14,
}


def chat(user: str, answer: str) -> str:
    """One ChatML exchange, as the base's template writes it."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
        f"<|im_start|>assistant\n{answer}<|im_end|>\n"
    )


def choices_text(question: str, choices: list[str]) -> str:
    """A question with lettered choices, in the form MMLU is asked in."""
    lines = [f"{'ABCD'[i]}. {choice}" for i, choice in enumerate(choices)]
    return "\n".join([question.strip(), *lines, "Answer:"])


def spaced(text: str) -> str:
    """Text in the manner of WikiText: punctuation set apart, hyphens and separators inside numbers between @."""
    text = re.sub(r"^#+ (.*)$", r" = = \1 = = ", text, flags=re.M)
    text = re.sub(r"[“”]", '"', text).replace("’", "'")
    text = re.sub(r"(?<=\d)([.,])(?=\d)", r" @\1@ ", text)
    text = re.sub(r"(?<=\w)-(?=\w)", " @-@ ", text)
    text = re.sub(r"(?<![@ ])([,;:!?()\[\]\"])", r" \1", text)
    text = re.sub(r"([,;:!?()\[\]\"])(?![@ \n])", r"\1 ", text)
    text = re.sub(r"\.(?=\s|$)", " .", text)
    text = re.sub(r"(?<=\w)'(?=s\b)", " '", text)
    return re.sub(r"\n+", " \n ", text)


def read_lines(path: Path):
    """Rows of a .jsonl or .jsonl.xz file."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def slices(rows: list[dict], draw: random.Random, titled: bool = False):
    """Endless pieces of random documents, from line starts."""
    while True:
        row = draw.choice(rows)
        text = row["text"]
        start = max(0, draw.randrange(-PIECE_CHARACTERS, max(1, len(text) - PIECE_CHARACTERS)))
        if start:
            start = text.find("\n", start) + 1
        piece = text[start : start + PIECE_CHARACTERS]
        yield f"# {row['title']}\n\n{piece}" if titled and not start else piece


def word_problems(data: Path, draw: random.Random):
    """GSM8K train and the arithmetic rows of qa, half in the few-shot form, a third as chat."""
    rows = [(row["question"], row["answer"]) for row in read_lines(data / "gsm8k" / "train.jsonl")]
    for row in read_lines(data / "corpus" / "qa.jsonl.xz"):
        if row.get("equation"):
            number = float(row["answer"])
            rows.append((row["question"], f"#### {int(number) if number.is_integer() else number}"))
    while True:
        if draw.random() < 0.33:
            question, answer = draw.choice(rows)
            yield chat(question, re.sub(r"<<.*?>>", "", answer).replace("\n#### ", "\nThe answer is "))
        else:
            yield "\n\n".join(f"Question: {q}\nAnswer: {a}" for q, a in draw.sample(rows, 4))


def questions(data: Path, draw: random.Random):
    """Question sets with choices, by letter, several in a row; yes-no questions as chat."""
    rows = [row for row in read_lines(data / "corpus" / "qa.jsonl.xz") if not row.get("equation")]
    lettered = [row for row in rows if len(row.get("choices", [])) == 4]
    plain = [row for row in rows if "choices" not in row]
    while True:
        if draw.random() < 0.25:
            row = draw.choice(plain)
            yield chat(row["question"].capitalize() + "?" * (not row["question"].endswith("?")),
                       "Yes." if row["answer"] == "true" else "No.")
            continue
        items = []
        for row in draw.sample(lettered, 5):
            order = draw.sample(range(4), 4)
            text = choices_text(row["question"], [row["choices"][i] for i in order])
            items.append(f"{text} {'ABCD'[order.index(row['answer'])]}")
        yield "\n\n".join(["The following are multiple choice questions (with answers).", *items])


def sources(data: Path, seed: int) -> dict:
    """Endless pieces of text by source name."""
    corpus = data / "corpus"
    books = [row for path in sorted(corpus.glob("openstax-*.xz")) for row in read_lines(path)]
    facts = read_lines(corpus / "factbook.jsonl.xz")
    novels = read_lines(corpus / "novels-litbank.jsonl.xz")
    draw = lambda name: random.Random(f"{seed}-{name}")
    return {
        "openstax": slices(books, draw("openstax"), titled=True),
        "openstax_spaced": (spaced(text) for text in slices(books, draw("openstax_spaced"))),
        "factbook": slices(facts, draw("factbook"), titled=True),
        "factbook_spaced": (spaced(text) for text in slices(facts, draw("factbook_spaced"))),
        "novels": slices(novels, draw("novels")),
        "questions": questions(data, draw("questions")),
        "word_problems": word_problems(data, draw("word_problems")),
    }


def pack(pieces, tokenizer: Tokenizer, sequences: int, length: int) -> np.ndarray:
    """The first `sequences` cuts of the stream of pieces: [sequences, length] of u16."""
    out = np.empty(sequences * length, dtype=np.uint16)
    filled = 0
    while filled < len(out):
        ids = tokenizer.encode(next(pieces), add_special_tokens=False).ids + [END_OF_TEXT]
        take = min(len(ids), len(out) - filled)
        out[filled : filled + take] = ids[:take]
        filled += take
    return out.reshape(sequences, length)


def pack_weighted(pieces, tokenizer: Tokenizer, sequences: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Like `pack` for pieces that are lists of (text, weight in eighths): ids and weights, each [sequences, length]."""
    ids = np.empty(sequences * length, dtype=np.uint16)
    weights = np.empty(sequences * length, dtype=np.uint8)
    filled = 0
    while filled < len(ids):
        new_ids, new_weights = [], []
        for text, weight in next(pieces):
            part = tokenizer.encode(text, add_special_tokens=False).ids
            new_ids += part
            new_weights += [weight] * len(part)
        take = min(len(new_ids) + 1, len(ids) - filled)
        ids[filled : filled + take] = (new_ids + [END_OF_TEXT])[:take]
        weights[filled : filled + take] = (new_weights + [new_weights[-1] and 8])[:take]
        filled += take
    return ids.reshape(sequences, length), weights.reshape(sequences, length)


def text_pool(data: Path, tokenizer: Tokenizer, tokens: int, length: int, seed: int) -> np.ndarray:
    """The shuffled pool of text sequences in the shares above."""
    parts = []
    for name, pieces in sources(data, seed).items():
        count = round(tokens * SHARES[name] / length)
        parts.append(pack(pieces, tokenizer, count, length))
    pool = np.concatenate(parts)
    return pool[np.random.default_rng(seed).permutation(len(pool))]
