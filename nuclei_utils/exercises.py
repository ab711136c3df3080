"""Check the answers to exercises, and explain errors."""

import textwrap
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np


class WrongAnswer(AssertionError):
    """Wrong answer to an exercise, or an error in the answer."""

    def _render_traceback_(self):
        """Return the lines that IPython shows for the error."""
        lines = [f"{type(self).__name__}: {self}"]
        error = self.__cause__
        if error is None:
            return lines
        # The first frame belongs to `check` and does not help the learner.
        frames = error.__traceback__.tb_next if error.__traceback__ else None
        report = "".join(traceback.format_exception(type(error), error, frames, chain=False))
        return [*report.splitlines(), "", *lines]


def check(answer: Callable, *cases: tuple[tuple, Any, str], rtol: float = 1e-5, atol: float = 1e-8) -> None:
    """Call a learner's function with known cases, and print the outcome.

    Parameters
    ----------
    answer : callable
        The learner's function. The exercise is "not done yet" if it returns None or `...` in the first case.
    *cases : tuple of (tuple, object, str)
        Arguments of the call, the expected result, and a hint. The expected result is a number, string or array, a
        sequence of them, or a function that returns True for a right result. A tuple, a list and a one-dimensional
        array of the same values are equal.
    rtol, atol : float
        Tolerances for floating-point numbers, as in `numpy.allclose`.

    Raises
    ------
    WrongAnswer
        If a result is wrong, or if the function raises an error.

    Examples
    --------
    >>> def double(x):
    ...     return 2 * x
    >>> check(double, ((1,), 2, "multiply by two"), ((0.5,), 1.0, "numbers need not be whole"))
    Right: double passes 2 checks.
    """
    for number, (args, expected, hint) in enumerate(cases):
        call = f"{answer.__name__}({', '.join(map(_show, args))})"
        try:
            result = answer(*args)
        except Exception as error:
            raise WrongAnswer(f"{call} raised {type(error).__name__}. Hint: {hint}") from error
        if number == 0 and (result is None or result is ...):
            print(f"Not done yet: {answer.__name__} returns nothing so far. Write its body, and `return` the result.")
            return
        try:
            right = _agree(result, expected, rtol, atol)
        except Exception:  # the types cannot be compared
            right = False
        if not right:
            expectation = "" if callable(expected) else f", expected {_show(expected)}"
            raise WrongAnswer(f"{call} gave {_show(result)}{expectation}. Hint: {hint}")
    print(f"Right: {answer.__name__} passes {len(cases)} check{'s' if len(cases) != 1 else ''}.")


def _agree(result: Any, expected: Any, rtol: float, atol: float) -> bool:
    """Return True if a result is the expected result."""
    if callable(expected):
        return bool(expected(result))
    if isinstance(expected, (list, tuple)):
        if hasattr(result, "tolist") and np.ndim(result) == 1:  # array, pandas.Series, pandas.Index
            result = result.tolist()
        if not isinstance(result, (list, tuple)) or len(result) != len(expected):
            return False
        return all(_agree(*pair, rtol, atol) for pair in zip(result, expected, strict=True))
    result, expected = np.asarray(result), np.asarray(expected)
    if result.shape != expected.shape:
        return False
    if expected.dtype.kind == "f":
        return np.allclose(result, expected, rtol, atol, equal_nan=True)
    return np.array_equal(result, expected)


def _show(value: Any) -> str:
    """Return a value as text, a large array by its range."""
    if type(value) in (list, tuple):
        text = repr(type(value)(map(_Text, map(_show, value))))
    elif isinstance(value, np.generic):
        text = repr(value.item())
    elif not isinstance(value, np.ndarray):
        text = repr(value)
    elif value.size <= 16 or value.dtype.kind not in "biuf":  # text has no range
        text = f"array({value.tolist()})"
    else:
        text = f"<array {value.shape}, {value.dtype}, {value.min()} to {value.max()}>"
    return textwrap.shorten(text, 120)


class _Text(str):
    """Text without quotation marks in the repr of a list or tuple."""

    __repr__ = str.__str__
