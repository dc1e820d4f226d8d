"""The generators: right answers, held-out parts, balance, reproducibility."""

import json
import random
import re
from collections import Counter
from pathlib import Path

from training.exercises import choices, turns, word_problems
from training.exercises.split import numbers_held_out, templates
from training.exercises.write import test_sets as make_sets
from training.exercises.write import open_questions, training_pieces

COMMITTED = Path(__file__).parent.parent / "exercises" / "test"


def test_enough_templates():
    for level in (1, 2):
        assert len(word_problems.LEVELS[level]) >= 30
    assert sum(len(wordings) for wordings, _ in choices.KINDS.values()) >= 30
    assert len(turns.TURNS) >= 30


def test_answers_follow_from_their_steps():
    draw = random.Random(1)
    for level, test in ((level, test) for level in (1, 2, 3) for test in (False, True)):
        for _ in range(200):
            row = word_problems.problem(level, draw, test)
            *steps, last = row["answer"].split("\n")
            assert len(steps) == level
            for step in steps:
                left, right = step.split(" = ")
                assert eval(left) == int(right) > 0
            assert last == f"#### {steps[-1].split(' = ')[1]}"
            assert "{" not in row["question"]


def test_easy_problems_are_one_operation_on_two_digit_numbers():
    draw = random.Random(2)
    for _ in range(300):
        numbers = re.findall(r"\d+", word_problems.problem(1, draw, True)["question"])
        assert len(numbers) == 2 and all(10 <= int(n) <= 99 for n in numbers)


def test_parts_share_no_template_and_no_numbers():
    everything = list(range(30))
    assert not set(templates(everything, True)) & set(templates(everything, False))
    assert len(templates(everything, True)) == 10
    draw = random.Random(3)
    for test in (True, False):
        for _ in range(200):
            numbers = re.findall(r"\d+", word_problems.problem(1, draw, test)["question"])
            assert numbers_held_out(*map(int, numbers)) == test


def test_no_test_item_in_the_training_part():
    pieces = training_pieces(20_261_125)
    training = "\n".join("".join(text for text, _ in next(pieces)) for _ in range(4_000))
    questions = {row["question"] for rows in make_sets(300).values() for row in rows}
    lines = set(training.replace("Question: ", "").split("\n"))
    asked = {q for q in questions if q in lines}
    # Questions without numbers of their own ("Choose the biggest number.") would be the same text: they are not,
    # since their wordings are held out.
    assert not asked


def test_multiple_choice_is_balanced_and_distinct():
    rows = make_sets(300)["multiple-choice"]
    counts = Counter(row["answer"] for row in rows)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert all(len(set(row["choices"])) == 4 for row in rows)


def test_right_answers_of_arithmetic_choices():
    draw = random.Random(4)
    for subject, sign in (("addition", "+"), ("subtraction", "-"), ("multiplication", "*")):
        for _ in range(100):
            row = choices.exercise(draw, False, subject)
            if match := re.match(r"What is (\d+ [-+*] \d+)\?", row["question"]):
                assert sign in match[1] and eval(match[1]) == int(row["choices"][row["answer"]])


def test_open_questions_hold_what_their_answers_need():
    draw = random.Random(5)
    for subject, best in (("largest number", max), ("smallest number", min)):
        piece = open_questions([choices.exercise(draw, False, subject) for _ in range(20)])
        assert len(piece) == 40
        for (question, _), (answer, weight) in zip(piece[::2], piece[1::2]):
            assert best(map(int, re.findall(r"\d+", question))) == int(answer) and weight > 0
    ((question, _), (answer, _)) = open_questions([choices.exercise(random.Random(6), False, "addition")])
    assert sum(map(int, re.findall(r"\d+", question))) == int(answer)


def test_same_seed_same_exercises():
    assert make_sets(40) == make_sets(40)
    first, second = training_pieces(5), training_pieces(5)
    assert [next(first) for _ in range(20)] == [next(second) for _ in range(20)]


def test_committed_sets_are_what_the_generator_writes():
    for name, rows in make_sets(1_000).items():
        lines = (COMMITTED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == rows
