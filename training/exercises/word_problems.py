"""Word problems in GSM8K's format: {"question", "answer"}, the answer's last line `#### number`.

Level 1: one addition or subtraction of two-digit numbers. Level 2: two operations. Level 3: three.
A template is (question, steps): each step `x op y` may name earlier results as r1, r2.
"""

import random

from .split import draw_numbers, templates
from .words import NAMES, PLACES, THINGS

LEVEL_1 = (
    ("{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have now?", ("a + b",)),
    ("{n} had {a} {t} and gave {b} of them to {m}. How many {t} are left?", ("a - b",)),
    ("There are {a} {t} in a red bag and {b} {t} in a blue bag. How many {t} are there in total?", ("a + b",)),
    ("A shop had {a} {t} and sold {b} of them. How many {t} remain in the shop?", ("a - b",)),
    ("{n} read {a} pages on Monday and {b} pages on Tuesday. How many pages did {n} read in all?", ("a + b",)),
    ("{n} needs {a} {t} for the {p} and has collected {b}. How many more {t} does {n} need?", ("a - b",)),
    ("A train carries {a} people. At the station {b} more get on. How many people are on the train?", ("a + b",)),
    ("{n} is {a} years old and {m} is {b} years younger. How old is {m}?", ("a - b",)),
    ("{n} picked {a} {t} and {m} picked {b} {t}. How many {t} did they pick together?", ("a + b",)),
    ("A rope is {a} meters long. {n} cuts off {b} meters. How many meters of rope are left?", ("a - b",)),
    ("{n} paid {a} dollars for a coat and {b} dollars for a hat. How many dollars did {n} pay?", ("a + b",)),
    ("There were {a} birds in the {p}. Then {b} flew away. How many birds stayed?", ("a - b",)),
    ("{n} drove {a} miles in the morning and {b} miles in the evening. How many miles did {n} drive?", ("a + b",)),
    ("{n} has {a} {t}, and {m} has {b} {t}. How many more {t} does {n} have than {m}?", ("a - b",)),
    ("A farmer planted {a} trees last year and {b} trees this year. How many trees did the farmer plant?", ("a + b",)),
    ("A jar held {a} {t}. {n} took out {b}. How many {t} are still in the jar?", ("a - b",)),
    ("{a} boys and {b} girls visit the {p}. How many children visit the {p}?", ("a + b",)),
    ("{n} wants to save {a} dollars and has saved {b} dollars so far. How many dollars are missing?", ("a - b",)),
    ("{n} found {a} {t} at the {p}, then {b} more on the way home. How many {t} did {n} find?", ("a + b",)),
    ("{n} baked {a} cakes and sold {b} at the {p}. How many cakes were not sold?", ("a - b",)),
    ("One shelf holds {a} {t} and another holds {b}. How many {t} do the two shelves hold?", ("a + b",)),
    ("A bus had {a} passengers. {b} got off at the {p}. How many passengers are on the bus now?", ("a - b",)),
    ("{n} scored {a} points in the first game and {b} in the second. What is the total score?", ("a + b",)),
    ("A book has {a} pages and {n} has read {b} of them. How many pages are left to read?", ("a - b",)),
    ("{m} counted {a} {t} on the left and {b} {t} on the right. How many {t} did {m} count?", ("a + b",)),
    ("Of {a} {t}, {b} are broken. How many {t} are not broken?", ("a - b",)),
    ("The {p} got {a} letters in May and {b} letters in June. How many letters did it get in both months?", ("a + b",)),
    ("{n} had {a} dollars and spent {b} dollars at the {p}. How many dollars does {n} have left?", ("a - b",)),
    ("{n} weighs {a} kilograms and {m} weighs {b} kilograms. What do they weigh together?", ("a + b",)),
    ("A class made {a} {t} and lost {b} of them on a trip. How many {t} does the class still have?", ("a - b",)),
)

LEVEL_2 = (
    ("{n} has {a} {t}. {n} gets {b} more and then gives {c} to {m}. How many {t} does {n} have?", ("a + b", "r1 - c")),
    ("{n} buys {x} bags with {y} {t} each and finds {a} more {t}. How many {t} does {n} have?", ("x * y", "r1 + a")),
    ("{n} had {s} {t}, lost {b} and then bought {c}. How many {t} does {n} have now?", ("s - b", "r1 + c")),
    ("There are {x} rows of {y} chairs at the {p}. {z} chairs are taken away. How many chairs are left?", ("x * y", "r1 - z")),
    ("A bus starts with {a} people. {b} get on and {c} get off. How many people are on the bus?", ("a + b", "r1 - c")),
    ("{n} earns {x} dollars an hour for {y} hours and gets a gift of {a} dollars. How many dollars is that?", ("x * y", "r1 + a")),
    ("{n} picked {a} {t}, {m} picked {b}, and they ate {c} together. How many {t} are left?", ("a + b", "r1 - c")),
    ("A shop had {s} {t}, sold {b}, and then received {c} new ones. How many {t} are in the shop?", ("s - b", "r1 + c")),
    ("{n} bought {x} pens for {y} dollars each and paid with {w} dollars more than the price. How much did {n} pay?", ("x * y", "r1 + w")),
    ("{n} read {a} pages on Monday, {b} on Tuesday and {d} on Wednesday. How many pages is that in all?", ("a + b", "r1 + d")),
    ("{n} makes {x} boxes of {y} {t} and gives away {z} {t}. How many {t} remain?", ("x * y", "r1 - z")),
    ("{n} has {a} dollars and {m} has {b}. Together they spend {c}. How many dollars do they have left?", ("a + b", "r1 - c")),
    ("A tank holds {s} liters. {b} liters are used, then {c} liters are added. How many liters are in the tank?", ("s - b", "r1 + c")),
    ("There are {x} tables with {y} people each and {a} people standing. How many people are there?", ("x * y", "r1 + a")),
    ("The {p} had {a} visitors on Friday, {b} on Saturday and {d} on Sunday. How many visitors came?", ("a + b", "r1 + d")),
    ("{n} planted {x} rows of {y} flowers, but {z} did not grow. How many flowers grew?", ("x * y", "r1 - z")),
    ("{n} had {s} {t}. {n} gave {b} to {m} and {e} to a friend. How many {t} are left?", ("s - b", "r1 - e")),
    ("A baker made {a} rolls in the morning, {b} at noon and sold {c}. How many rolls are left?", ("a + b", "r1 - c")),
    ("{n} walks {x} miles a day for {y} days and then {a} miles more. How many miles does {n} walk?", ("x * y", "r1 + a")),
    ("{n} scored {a} points, then {b}, and lost {c} for a mistake. What is the score?", ("a + b", "r1 - c")),
    ("A truck carries {s} boxes. It drops {b} at the {p} and picks up {c}. How many boxes are on the truck?", ("s - b", "r1 + c")),
    ("{x} children have {y} {t} each. They lose {z} {t}. How many {t} do they have now?", ("x * y", "r1 - z")),
    ("{n} saves {a} dollars, {m} saves {b} and a friend saves {d}. How much do they save together?", ("a + b", "r1 + d")),
    ("{n} packs {x} {t} into each of {y} boxes and has {a} left over. How many {t} were there?", ("x * y", "r1 + a")),
    ("There are {s} seats. {b} are taken by adults and {e} by children. How many seats are free?", ("s - b", "r1 - e")),
    ("{n} collected {a} {t} in spring and {b} in summer, then sold {c}. How many {t} are left?", ("a + b", "r1 - c")),
    ("{n} fills {x} shelves with {y} books each; {z} books are then lent out. How many books are on the shelves?", ("x * y", "r1 - z")),
    ("A farm has {a} cows and {b} sheep and sells {c} animals. How many animals are left?", ("a + b", "r1 - c")),
    ("{n} had {s} dollars, paid {b} for shoes and then earned {c}. How many dollars does {n} have?", ("s - b", "r1 + c")),
    ("{n} sends {x} letters a week for {y} weeks, and {m} sends {a} letters. How many letters is that?", ("x * y", "r1 + a")),
)

LEVEL_3 = (
    ("{n} has {a} {t} and gets {b} more. {n} gives {c} away and buys {d}. How many {t} does {n} have?", ("a + b", "r1 - c", "r2 + d")),
    ("{n} buys {x} bags of {y} {t} and finds {a}. Then {n} loses {z}. How many {t} are left?", ("x * y", "r1 + a", "r2 - z")),
    ("A shop had {s} {t}, sold {b} on Monday and {e} on Tuesday, and received {d}. How many are there now?", ("s - b", "r1 - e", "r2 + d")),
    ("{x} teams have {y} players each and {u} teams have {v}. How many players are there?", ("x * y", "u * v", "r1 + r2")),
    ("{n} reads {a} pages, then {b}, then {d}, and skips back {z}. On which page is {n} now?", ("a + b", "r1 + d", "r2 - z")),
    ("{n} sells {x} cakes for {y} dollars and {u} pies for {v} dollars each. How many dollars is that?", ("x * y", "u * v", "r1 + r2")),
    ("A bus has {a} people. {b} get on, {c} get off, and {d} get on. How many are on the bus?", ("a + b", "r1 - c", "r2 + d")),
    ("There are {x} rows of {y} seats and {a} extra seats. {z} are broken. How many seats can be used?", ("x * y", "r1 + a", "r2 - z")),
    ("{n} had {s} dollars, spent {b}, spent {e} more, and earned {d}. How many dollars does {n} have?", ("s - b", "r1 - e", "r2 + d")),
    ("{n} packs {x} boxes of {y} {t}, {m} packs {u} boxes of {v}. How many {t} do they pack?", ("x * y", "u * v", "r1 + r2")),
    ("The {p} gets {a} letters, then {b}, sends {c} back, and gets {d}. How many letters does it hold?", ("a + b", "r1 - c", "r2 + d")),
    ("{n} plants {x} rows of {y} trees and {a} more; {z} die. How many trees live?", ("x * y", "r1 + a", "r2 - z")),
)

LEVELS = {1: LEVEL_1, 2: LEVEL_2, 3: LEVEL_3}


def draw_values(steps: tuple[str, ...], draw: random.Random, test: bool) -> dict[str, int]:
    """Numbers for a template: two-digit terms, factors from 2 to 12, and no result below zero."""
    names = sorted({word for step in steps for word in step.split() if word.isalpha()})

    def once() -> tuple[int, ...]:
        value = {}
        for name in names:
            if name in "xyuv":
                value[name] = draw.randint(2, 12)
            elif name == "s":
                value[name] = draw.randint(50, 99)
            elif name in "ez":
                value[name] = draw.randint(2, 19)
            else:
                value[name] = draw.randint(10, 99)
        return tuple(value[name] for name in names)

    while True:
        value = dict(zip(names, draw_numbers(once, test)))
        if all(result >= 1 for _, result in solve(steps, value)):
            return value


def solve(steps: tuple[str, ...], value: dict[str, int]) -> list[tuple[str, int]]:
    """Each step as text with its result."""
    known, lines = dict(value), []
    for index, step in enumerate(steps):
        left, operation, right = step.split()
        a, b = known[left], known[right]
        result = {"+": a + b, "-": a - b, "*": a * b}[operation]
        known[f"r{index + 1}"] = result
        lines.append((f"{a} {operation} {b} = {result}", result))
    return lines


def problem(level: int, draw: random.Random, test: bool) -> dict:
    """One exercise."""
    question, steps = draw.choice(templates(LEVELS[level], test))
    value = draw_values(steps, draw, test)
    n, m = draw.sample(NAMES, 2)
    text = question.format(n=n, m=m, t=draw.choice(THINGS), p=draw.choice(PLACES), **value)
    lines = solve(steps, value)
    return {"question": text, "answer": "\n".join(line for line, _ in lines) + f"\n#### {lines[-1][1]}"}
