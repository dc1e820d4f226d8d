"""Writes the held-out test sets and yields training pieces: `python -m training.exercises.write FOLDER [COUNT]`."""

import json
import random
import sys
from pathlib import Path

from ..data import chat, choices_text
from .choices import KINDS, exercise
from .turns import turn
from .word_problems import LEVELS, problem

TEST_SEED = 7

# Subjects whose answers have to be worked out: harder than facts, so there are more of them in training.
COMPARISONS = ("largest number", "smallest number")
NUMBERS = ("addition", "subtraction", "multiplication", *COMPARISONS)


def test_sets(count: int, seed: int = TEST_SEED) -> dict[str, list[dict]]:
    """By file name, `count` distinct exercises each; right answers of multiple choice balanced over A to D."""
    made = {}
    for level in LEVELS:
        draw = random.Random(f"{seed}-level-{level}")
        made[f"word-problems-{level}"] = distinct(lambda *_: problem(level, draw, True), count)
    draw = random.Random(f"{seed}-choices")
    subjects = list(KINDS)
    made["multiple-choice"] = distinct(
        lambda attempt, made: exercise(draw, True, subjects[attempt % len(subjects)], made % 4), count
    )
    draw_turns = random.Random(f"{seed}-turns")
    made["chat"] = distinct(lambda *_: turn(draw_turns, True), count)
    return made


def distinct(make, count: int) -> list[dict]:
    """`count` exercises that differ in question or right answer, from `make(attempt, made so far)`; fewer where a kind has no more.

    Other wrong answers to the same question make no new exercise.
    """
    seen, rows = set(), []
    for attempt in range(50 * count):
        row = make(attempt, len(rows))
        right = row["choices"][row["answer"]] if "choices" in row else row["answer"]
        if (key := (row["question"], right)) not in seen:
            seen.add(key)
            rows.append(row)
        if len(rows) == count:
            break
    return rows


def few_shot_choices(rows: list[dict], head_only: bool = False) -> str:
    """Several exercises of one subject in the form MMLU is asked in, answers given."""
    head = f"The following are multiple choice questions (with answers) about {rows[0]['subject']}."
    if head_only:
        return head
    return "\n\n".join([head, *(f"{choices_text(r['question'], r['choices'])} {'ABCD'[r['answer']]}" for r in rows)])


def few_shot_problems(rows: list[dict]) -> str:
    """Several word problems in the form GSM8K is asked in."""
    return "\n\n".join(f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows)


def open_questions(rows: list[dict]) -> list[tuple[str, int]]:
    """Exercises answered in full, with choices only where the question is about them: a number says more than a letter."""
    piece = []
    for row in rows:
        listed = f" {', '.join(row['choices'])}" if row["subject"] in COMPARISONS else ""
        gap = "\n\n" if piece else ""
        piece += [(f"{gap}Question: {row['question']}{listed}\nAnswer:", 0), (f" {row['choices'][row['answer']]}", 8)]
    return piece


def training_pieces(seed: int):
    """Endless pieces as lists of (text, weight in eighths): answers count fully, questions little.

    A letter is one token in forty and carries all that is to be learnt, so it counts double.
    """
    draw = random.Random(f"{seed}-exercises")
    while True:
        kind = draw.random()
        if kind < 0.35:
            levels = draw.choices((1, 2, 3), (45, 47, 8), k=draw.randint(1, 6))
            if draw.random() < 0.5:
                levels = [levels[0]] * len(levels)
            piece = []
            for row in (problem(level, draw, False) for level in levels):
                gap = "\n\n" if piece else ""
                piece += [(f"{gap}Question: {row['question']}\nAnswer:", 1), (f" {row['answer']}", 8)]
            yield piece
        elif kind < 0.5:
            yield open_questions([exercise(draw, False, draw.choice(NUMBERS)) for _ in range(draw.randint(2, 12))])
        elif kind < 0.92:
            subject = draw.choice(NUMBERS if draw.random() < 0.6 else list(KINDS))
            piece = [(few_shot_choices([{"subject": subject}], head_only=True), 0)]
            for _ in range(draw.randint(1, 7)):
                row = exercise(draw, False, subject)
                piece += [("\n\n" + choices_text(row["question"], row["choices"]), 0), (f" {'ABCD'[row['answer']]}", 16)]
            yield piece
        else:
            row = turn(draw, False)
            question, answer = chat(row["question"], row["answer"]).split(row["answer"] + "<|im_end|>")
            yield [(question, 0), (f"{row['answer']}<|im_end|>", 8), (answer, 0)]


def main() -> None:
    """Writes FOLDER/NAME.jsonl."""
    if not 2 <= len(sys.argv) <= 3:
        sys.exit("usage: python -m training.exercises.write FOLDER [COUNT]")
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 1_000
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in test_sets(count).items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows)}")


if __name__ == "__main__":
    main()
