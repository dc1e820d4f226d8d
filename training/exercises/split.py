"""Which part an exercise belongs to: decided by its numbers and its template alone, so no seed can mix the parts."""

import hashlib
from collections.abc import Callable, Sequence

TEST_SHARE = 8


def numbers_held_out(*numbers: int) -> bool:
    """Whether this combination (in any order) is for tests only: one in eight."""
    text = ",".join(str(n) for n in sorted(numbers))
    return hashlib.sha256(text.encode()).digest()[0] % TEST_SHARE == 0


def templates(all_templates: Sequence, test: bool) -> list:
    """Every third template is held out for the tests."""
    return [t for i, t in enumerate(all_templates) if (i % 3 == 2) == test]


def draw_numbers(draw: Callable[[], tuple[int, ...]], test: bool) -> tuple[int, ...]:
    """Draws until the combination belongs to the wanted part."""
    while True:
        numbers = draw()
        if numbers_held_out(*numbers) == test:
            return numbers
