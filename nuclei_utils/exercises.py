"""Checks for the exercises: they say what is wrong with an answer, and wait for one that is not there yet."""

import textwrap

import numpy as np

__all__ = ["check"]


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
    AssertionError
        If a result is wrong. The message shows the call, what it gave, what was expected, and the hint.
    """
    __tracebackhide__ = True  # the learner is to see the check and the message, not the inside of this function
    for number, (arguments, expected, hint) in enumerate(cases):
        call = f"{answer.__name__}({', '.join(map(_show, arguments))})"
        try:
            result = answer(*arguments)
        except Exception as error:
            error.add_note(f"This happened in {call}. Hint: {hint}")
            raise
        if number == 0 and (result is None or result is ...):
            print(f"Not done yet: {answer.__name__} returns nothing so far. Write its body, and `return` the result.")
            return
        cause = None
        try:
            if _agree(result, expected, rtol, atol):
                continue
        except Exception as error:  # a result of a type that cannot even be compared with what is expected
            cause = error
        wanted = "" if callable(expected) else f", expected {_show(expected)}"
        raise AssertionError(f"{call} gave {_show(result)}{wanted}. Hint: {hint}") from cause
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
