"""Checks for the exercises: they say what is wrong with an answer, and wait for one that is not there yet."""

import textwrap
import traceback

import numpy as np

__all__ = ["WrongAnswer", "check"]


class WrongAnswer(AssertionError):
    """An answer to an exercise that is wrong, or that raises an error.

    A notebook shows one line for a wrong answer. For an answer that raises, the notebook also shows the lines of the
    learner's function. Outside of a notebook this is an ordinary `AssertionError`.
    """

    def _render_traceback_(self):
        """Return the lines that IPython shows in place of its traceback."""
        lines = [f"{type(self).__name__}: {self}"]
        error = self.__cause__
        if error is None:
            return lines
        # The first frame is that of `check`, which does not help the learner.
        inside = error.__traceback__.tb_next if error.__traceback__ else None
        shown = "".join(traceback.format_exception(type(error), error, inside, chain=False))
        return [*shown.splitlines(), "", *lines]


def check(answer, *cases, rtol=1e-5, atol=1e-8):
    """Try a learner's function on known cases, and print how far it got.

    Parameters
    ----------
    answer : callable
        The learner's function. As long as it returns nothing (or `...`) in the first case, the exercise counts as not
        done yet.
    *cases : tuple of (tuple, object, str)
        The arguments of the call, what it should give, and a hint. What it should give is a number, string or array,
        or a sequence of them, or a function that takes the result and says whether it is right. Whether several
        values come as a tuple, a list or a one-dimensional array makes no difference.
    rtol, atol : float
        How close floating-point numbers have to be, as in `numpy.allclose`.

    Raises
    ------
    WrongAnswer
        If a result is wrong, or the learner's function raises an error. The message shows the call, what it gave,
        what was expected, and the hint.
    """
    for number, (arguments, expected, hint) in enumerate(cases):
        call = f"{answer.__name__}({', '.join(map(_show, arguments))})"
        try:
            result = answer(*arguments)
        except Exception as error:
            raise WrongAnswer(f"{call} raised {type(error).__name__}. Hint: {hint}") from error
        if number == 0 and (result is None or result is ...):
            print(f"Not done yet: {answer.__name__} returns nothing so far. Write its body, and `return` the result.")
            return
        try:
            right = _agree(result, expected, rtol, atol)
        except Exception:  # a result of a type that cannot even be compared with what is expected
            right = False
        if not right:
            wanted = "" if callable(expected) else f", expected {_show(expected)}"
            raise WrongAnswer(f"{call} gave {_show(result)}{wanted}. Hint: {hint}")
    print(f"Right: {answer.__name__} passes {len(cases)} check{'s' if len(cases) != 1 else ''}.")


def _agree(result, expected, rtol, atol):
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


def _show(value):
    """Return a value as text that fits on a line: a small array in full, a large one by its shape, type and range."""
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
    """Text that stands for itself where a list or tuple is shown."""

    __repr__ = str.__str__
