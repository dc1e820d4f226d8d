"""Multiple choice in MMLU's format: {"subject", "question", "choices", "answer"}, answer 0 to 3.

A kind is three wordings, the third held out for the tests, and a drawer of (words, right answer, wrong answers).
Facts appear in both parts under different wordings; combinations of numbers do not.
"""

import random

from .split import draw_numbers
from .words import (
    CAPITALS, DAYS, MEMBERS, MONTHS, NAMES, NUMBER_WORDS, OPPOSITES, PAST, PLURALS, THINGS, YOUNG,
)


def from_table(table: dict[str, str]):
    """Wrong answers are other entries of the same table."""

    def drawer(draw: random.Random, test: bool):
        key = draw.choice(list(table))
        wrong = draw.sample([value for value in table.values() if value != table[key]], 3)
        return {"a": key}, table[key], wrong

    return drawer


def near(right: int, draw: random.Random) -> list[str]:
    """Three other numbers close to the right one."""
    offsets = [d for d in (-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20) if right + d > 0]
    return [str(right + d) for d in draw.sample(offsets, 3)]


def sums(draw: random.Random, test: bool):
    """a + b, two-digit."""
    a, b = draw_numbers(lambda: (draw.randint(10, 99), draw.randint(10, 99)), test)
    return {"a": a, "b": b, "n": draw.choice(NAMES), "t": draw.choice(THINGS)}, str(a + b), near(a + b, draw)


def differences(draw: random.Random, test: bool):
    """a - b, two-digit, a larger."""
    b, a = sorted(draw_numbers(lambda: tuple(draw.sample(range(10, 100), 2)), test))
    return {"a": a, "b": b, "n": draw.choice(NAMES), "t": draw.choice(THINGS)}, str(a - b), near(a - b, draw)


def products(draw: random.Random, test: bool):
    """Small times table."""
    a, b = draw_numbers(lambda: (draw.randint(2, 12), draw.randint(2, 12)), test)
    return {"a": a, "b": b, "t": draw.choice(THINGS)}, str(a * b), near(a * b, draw)


def extreme(largest: bool):
    """The largest or smallest of four numbers."""

    def drawer(draw: random.Random, test: bool):
        numbers = sorted(draw_numbers(lambda: tuple(draw.sample(range(10, 1000), 4)), test), reverse=largest)
        return {}, str(numbers[0]), [str(n) for n in numbers[1:]]

    return drawer


def neighbours(ring: list[str], step: int):
    """What comes before or after in a ring of names."""

    def drawer(draw: random.Random, test: bool):
        at = draw.randrange(len(ring))
        right = ring[(at + step) % len(ring)]
        return {"a": ring[at]}, right, draw.sample([w for w in ring if w not in (right, ring[at])], 3)

    return drawer


def members(draw: random.Random, test: bool):
    """Which of four words belongs to a class."""
    kind = draw.choice(list(MEMBERS))
    others = draw.sample([k for k in MEMBERS if k != kind], 3)
    return {"a": kind}, draw.choice(MEMBERS[kind]), [draw.choice(MEMBERS[k]) for k in others]


def number_words(draw: random.Random, test: bool):
    """A number's word."""
    at = draw.randrange(len(NUMBER_WORDS))
    return {"a": at}, NUMBER_WORDS[at], draw.sample([w for w in NUMBER_WORDS if w != NUMBER_WORDS[at]], 3)


# Subject: (wordings, drawer); the third wording of each is for the tests only.
KINDS = {
    "addition": (("What is {a} + {b}?", "{n} has {a} {t} and gets {b} more. How many is that?",
                  "Find the sum of {a} and {b}."), sums),
    "subtraction": (("What is {a} - {b}?", "{n} had {a} {t} and lost {b}. How many are left?",
                     "Take {b} away from {a}. What remains?"), differences),
    "multiplication": (("What is {a} * {b}?", "There are {a} boxes with {b} {t} each. How many {t} are there?",
                        "What do you get when you multiply {a} by {b}?"), products),
    "largest number": (("Which number is the largest?", "Which of these is the greatest number?",
                        "Choose the biggest number."), extreme(True)),
    "smallest number": (("Which number is the smallest?", "Which of these is the least?",
                         "Choose the lowest number."), extreme(False)),
    "capitals": (("What is the capital of {a}?", "Which city is the capital city of {a}?",
                  "The government of {a} sits in which capital?"), from_table(CAPITALS)),
    "opposites": (("What is the opposite of {a}?", "Which word means the opposite of {a}?",
                   'Choose the antonym of "{a}".'), from_table(OPPOSITES)),
    "young animals": (("What is a young {a} called?", "What is the name for a baby {a}?",
                       "The child of a {a} is a"), from_table(YOUNG)),
    "past tense": (("What is the past tense of {a}?", 'Today I {a}. Yesterday I',
                    'Choose the past form of the verb "{a}".'), from_table(PAST)),
    "plurals": (("What is the plural of {a}?", "One {a}, two",
                 'Choose the right form for more than one "{a}".'), from_table(PLURALS)),
    "groups": (("Which of these is {a}?", "Which word names {a}?", "Find {a} in the list."), members),
    "next day": (("Which day comes after {a}?", "What day follows {a}?", "Today is {a}. What day is tomorrow?"),
                 neighbours(DAYS, 1)),
    "previous day": (("Which day comes before {a}?", "What day is just before {a}?",
                      "Today is {a}. What day was yesterday?"), neighbours(DAYS, -1)),
    "next month": (("Which month comes after {a}?", "What month follows {a}?",
                    "It is {a}. What is next month?"), neighbours(MONTHS, 1)),
    "number words": (("How do you write {a} in words?", "Which word stands for {a}?",
                      "Choose the word for the number {a}."), number_words),
}


def exercise(draw: random.Random, test: bool, subject: str | None = None, position: int | None = None) -> dict:
    """One exercise; `position` fixes where the right answer stands."""
    subject = subject or draw.choice(list(KINDS))
    wordings, drawer = KINDS[subject]
    filled, right, wrong = drawer(draw, test)
    wording = wordings[2] if test else draw.choice(wordings[:2])
    position = draw.randrange(4) if position is None else position
    choices = wrong[:position] + [right] + wrong[position:]
    return {"subject": subject, "question": wording.format(**filled), "choices": choices, "answer": position}
