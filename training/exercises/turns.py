"""Short chat turns: {"question", "answer"}; the answer is one plain sentence or a short list.

Facts appear in both parts under different wordings; combinations of numbers do not.
"""

import random

from .split import draw_numbers, templates
from .words import CAPITALS, DAYS, MEMBERS, MONTHS, NUMBER_WORDS, OPPOSITES, PAST, PLURALS, YOUNG


def entry(table: dict[str, str]):
    """A key with its value."""

    def drawer(draw: random.Random, test: bool) -> dict:
        key = draw.choice(list(table))
        return {"a": key, "b": table[key]}

    return drawer


def following(ring: list[str]):
    """A name and the one after it."""

    def drawer(draw: random.Random, test: bool) -> dict:
        at = draw.randrange(len(ring))
        return {"a": ring[at], "b": ring[(at + 1) % len(ring)]}

    return drawer


def three(draw: random.Random, test: bool) -> dict:
    """A class and three of its members."""
    kind = draw.choice(list(MEMBERS))
    x, y, z = draw.sample(MEMBERS[kind], 3)
    return {"one": kind, "x": x, "y": y, "z": z}


def counting(draw: random.Random, test: bool) -> dict:
    """A short run of numbers."""

    def ends() -> tuple[int, int]:
        start = draw.randint(1, 40)
        return start, start + draw.randint(3, 6)

    start, end = draw_numbers(ends, test)
    return {"a": start, "b": end, "up": ", ".join(map(str, range(start, end + 1))),
            "down": ", ".join(map(str, range(end, start - 1, -1)))}


def word(draw: random.Random, test: bool) -> dict:
    """A number and its word."""
    at = draw.randrange(len(NUMBER_WORDS))
    return {"a": at, "b": NUMBER_WORDS[at]}


TURNS = (
    ("What is the capital of {a}?", "The capital of {a} is {b}.", entry(CAPITALS)),
    ("Tell me the capital city of {a}, please.", "The capital city of {a} is {b}.", entry(CAPITALS)),
    ("Which city is {a}'s capital?", "{a}'s capital is {b}.", entry(CAPITALS)),
    ("{b} is the capital of which country?", "{b} is the capital of {a}.", entry(CAPITALS)),
    ("Which country has {b} as its capital?", "{a} has {b} as its capital.", entry(CAPITALS)),
    ("Name the country whose capital is {b}.", "The country is {a}.", entry(CAPITALS)),
    ("What is the opposite of {a}?", "The opposite of {a} is {b}.", entry(OPPOSITES)),
    ("Give me a word that means the opposite of {a}.", "A word that means the opposite of {a} is {b}.", entry(OPPOSITES)),
    ("I need an antonym for {a}.", "An antonym for {a} is {b}.", entry(OPPOSITES)),
    ("What do you call a baby {a}?", "A baby {a} is called a {b}.", entry(YOUNG)),
    ("What is a young {a} called?", "A young {a} is called a {b}.", entry(YOUNG)),
    ("Which animal's young is called a {b}?", "A {b} is a young {a}.", entry(YOUNG)),
    ("What is the past tense of {a}?", 'The past tense of "{a}" is "{b}".', entry(PAST)),
    ("How do I say {a} in the past?", 'In the past, "{a}" becomes "{b}".', entry(PAST)),
    ("Put the verb {a} into the past tense.", 'The past tense of "{a}" is "{b}".', entry(PAST)),
    ("What is the plural of {a}?", 'The plural of "{a}" is "{b}".', entry(PLURALS)),
    ("How do I write more than one {a}?", 'You write "{b}".', entry(PLURALS)),
    ("One {a}, many what?", "One {a}, many {b}.", entry(PLURALS)),
    ("Which day comes after {a}?", "The day after {a} is {b}.", following(DAYS)),
    ("If today is {a}, what is tomorrow?", "If today is {a}, tomorrow is {b}.", following(DAYS)),
    ("What is the day after {a}?", "The day after {a} is {b}.", following(DAYS)),
    ("Which month comes after {a}?", "The month after {a} is {b}.", following(MONTHS)),
    ("What month follows {a}?", "{b} follows {a}.", following(MONTHS)),
    ("It is {a} now. What will next month be?", "Next month will be {b}.", following(MONTHS)),
    ("Name three examples of {one}.", "Three examples are {x}, {y} and {z}.", three),
    ("Can you list three examples of {one}?", "Sure: {x}, {y} and {z}.", three),
    ("Give me three words that name {one}.", "Three such words are {x}, {y} and {z}.", three),
    ("Is {x} {one}?", "Yes, {x} is {one}.", three),
    ("Would you say that {x} is {one}?", "Yes, {x} is {one}.", three),
    ("Tell me whether {x} is {one}.", "Yes, {x} is {one}.", three),
    ("Count from {a} to {b}.", "{up}", counting),
    ("Please count up from {a} to {b}.", "Sure: {up}.", counting),
    ("List the numbers from {a} to {b}.", "{up}", counting),
    ("Count backwards from {b} to {a}.", "{down}", counting),
    ("Count down from {b} to {a}, please.", "{down}", counting),
    ("Say the numbers from {b} down to {a}.", "{down}", counting),
    ("Write the number {a} as a word.", "The number {a} is written \"{b}\".", word),
    ("How is {a} written in words?", "{a} is written \"{b}\".", word),
    ("Spell the number {a}.", "\"{b}\"", word),
)


def turn(draw: random.Random, test: bool) -> dict:
    """One exchange."""
    question, answer, drawer = draw.choice(templates(TURNS, test))
    filled = drawer(draw, test)
    text = answer.format(**filled)
    return {"question": question.format(**filled), "answer": text[0].upper() + text[1:]}
