"""Types of command-line arguments."""

import argparse
import math
from collections.abc import Callable


def number(convert: Callable, is_valid: Callable, expected: str) -> Callable:
    """Return an argument type: numbers that `convert` makes of a text and that meet a condition."""

    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not is_valid(value):
            raise argparse.ArgumentTypeError(f"{text!r} must be {expected}")
        return value

    return parse


positive_integer = number(int, lambda value: value >= 1, "a whole number, 1 or more")
