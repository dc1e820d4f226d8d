"""The whole way: what each step begins with, and what it writes."""

import subprocess
import sys
from pathlib import Path

from training.make import arguments
from training.rounds import steps


def test_each_step_begins_with_what_the_one_before_wrote(tmp_path):
    made = steps({"DATA": "data", "WORK": str(tmp_path), "MIX": "270s", "LONGER": "6300s"}, "more-cpu")
    files = [str(file.relative_to(tmp_path)) for file, _ in made]
    assert files == ["beginning/demo.gguf", "round-1/demo.gguf", "round-1.gguf", "round-2/demo.gguf", "round-2.gguf"]
    begin, first, first_mean, second, second_mean = [words for _, words in made]
    given = [arguments(words[1:]) for words in (begin, first, second)]
    assert [one.get("FROM") for one in given] == [None, str(made[0][0]), str(made[2][0])]
    assert [one["WORK"] for one in given] == [str(made[at][0].parent) for at in (0, 1, 3)]
    assert [one["MIX"] for one in given] == ["270s", "6300s", "6300s"]
    assert len({one.get("SEED", "0") for one in given}) == 3, "text of its own"
    assert first_mean == ["training.mean", *(str(made[at][0]) for at in (2, 0, 1))]
    assert second_mean == ["training.mean", *(str(made[at][0]) for at in (4, 2, 3))]


def test_a_finished_model_takes_the_place_of_the_beginning(tmp_path):
    made = steps({"DATA": "data", "WORK": str(tmp_path), "FROM": "models/one.gguf", "ROUNDS": "1"}, "more")
    assert [file.name for file, _ in made] == ["demo.gguf", "round-1.gguf"]
    assert arguments(made[0][1][1:])["FROM"] == "models/one.gguf"
    assert made[1][1] == ["training.mean", str(Path(tmp_path) / "round-1.gguf"), "models/one.gguf", str(made[0][0])]


def test_lengths_of_a_beginning_that_there_is_not_are_refused(tmp_path):
    words = ["DATA=data", f"WORK={tmp_path}", "FROM=models/one.gguf", "MIX=6300s"]
    asked = subprocess.run([sys.executable, "-m", "training.rounds", *words], capture_output=True, text=True)
    assert asked.returncode == 1 and "LONGER" in asked.stderr
