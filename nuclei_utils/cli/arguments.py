"""Types of arguments for `argparse`, shared by the commands; this is not a command."""

import argparse
import math
from collections.abc import Callable


def number(convert: Callable, is_valid: Callable, expected: str) -> Callable:
    """Return an argument type for numbers that meet a condition.

    `convert` turns the text into a number. `expected` describes valid numbers in the error message.
    """

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
