from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from nuclei_utils import exercises

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CASES = [
    ((np.zeros((2, 2), int),), 0.0, "an empty image has no foreground"),
    ((np.array([[0, 1], [0, 2]]),), 0.5, "every label counts, not only 1"),
]


def share(labels):
    return (labels > 0).mean()


def test_right_answer(capsys):
    exercises.check(share, *CASES)
    assert capsys.readouterr().out == "Right: share passes 2 checks.\n"


@pytest.mark.parametrize("value", [None, ...])
def test_missing_answer_is_waited_for(capsys, value):
    exercises.check(lambda labels: value, *CASES)
    assert capsys.readouterr().out.startswith("Not done yet")


@pytest.mark.parametrize("expected", [0.5, "half", np.ones(2), (1, 2), lambda result: list(result) == []])
def test_answer_that_returns_nothing_in_a_later_case_is_wrong(expected):
    def answer(number):
        if number == 1:
            return 1

    with pytest.raises(AssertionError, match=r"answer\(2\) gave None.* Hint: two"):
        exercises.check(answer, ((1,), 1, "one"), ((2,), expected, "two"))


def test_wrong_answer_is_explained():
    def share(labels):
        return (labels == 1).mean()

    with pytest.raises(AssertionError) as caught:
        exercises.check(share, *CASES)
    assert (
        str(caught.value)
        == "share(array([[0, 1], [0, 2]])) gave 0.25, expected 0.5. Hint: every label counts, not only 1"
    )


def test_error_in_the_answer_says_in_which_call():
    def share(labels):
        return labels / "2"

    with pytest.raises(exercises.WrongAnswer) as caught:
        exercises.check(share, *CASES)
    assert "share(array([[0, 0], [0, 0]])) raised TypeError. Hint: an empty image" in str(caught.value)
    assert isinstance(caught.value.__cause__, TypeError)


SETUP = "from nuclei_utils import exercises\n"
CHECK = "exercises.check(double, ((1,), 2, 'one hint'), ((2,), 4, 'another hint'))"


def shown_by_ipython(body, capsys):
    """Return what IPython prints where a learner's function with this body is checked."""
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    shell.run_cell(f"{SETUP}def double(number):\n    {body}")
    result = shell.run_cell(CHECK)
    assert isinstance(result.error_in_exec, AssertionError)
    return capsys.readouterr().out


def test_a_wrong_answer_shows_one_line(capsys):
    assert shown_by_ipython("return number + 1", capsys).splitlines() == [
        "WrongAnswer: double(2) gave 3, expected 4. Hint: another hint"
    ]


def test_a_result_that_cannot_be_compared_shows_one_line(capsys):
    body = "return 2 if number == 1 else [[1], [1, 2]]"
    (line,) = shown_by_ipython(body, capsys).splitlines()
    assert line.endswith("Hint: another hint")


def test_an_error_in_the_answer_shows_the_learners_line_and_the_hint_but_not_the_check(capsys):
    shown = shown_by_ipython("return number / 'two'", capsys)
    assert "return number / 'two'" in shown
    assert "TypeError" in shown
    assert shown.splitlines()[-1].endswith("Hint: one hint")
    assert "exercises.py" not in shown


@pytest.mark.parametrize(
    ("result", "expected", "agree"),
    [
        (0.1 + 0.2, 0.3, True),
        (np.float32(0.5), 0.5, True),
        (2, 3, False),
        (True, True, True),
        ("disc", "disc", True),
        (np.array([1, 2]), (1, 2), True),  # right in another container
        (np.array([1.0, 2.0]), [1, 2], True),
        ([256, 320], (256, 320), True),
        ((1, 2), np.array([1, 2]), True),
        (pd.Series(["x", "y"]), ["x", "y"], True),
        (np.array([]), [], True),
        (np.array([1, 3]), (1, 2), False),
        (np.array([1, 2, 3]), (1, 2), False),
        (np.array([[1, 2]]), (1, 2), False),
        ("xy", ["x", "y"], False),
        ([[1], [1, 2]], np.ones(2), False),  # no array can be made of it
        ("0.5", 0.5, False),
        ((1, np.ones(2)), (1, np.ones(2)), True),
        ((1,), (1, 2), False),
        (np.ones((2, 1)), np.ones((2,)), False),
        (np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), True),
        (4, lambda result: result % 2 == 0, True),
        (5, lambda result: result % 2 == 0, False),
        ("even", lambda result: result / 2 == 1, False),
    ],
)
def test_agreement(result, expected, agree):
    def answer():
        return result

    if agree:
        exercises.check(answer, ((), expected, "a hint"))
    else:
        with pytest.raises(AssertionError, match="a hint"):
            exercises.check(answer, ((), expected, "a hint"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array([256, 320]), "array([256, 320])"),
        ([256, 320], "[256, 320]"),
        ((np.int64(256), 320), "(256, 320)"),
        ((np.array([1]), "one"), "(array([1]), 'one')"),
        (np.array(["x", "y"] * 9), "array(" + str(["x", "y"] * 9) + ")"),
        (("one",), "('one',)"),
        ([np.zeros((64, 64), np.uint8)], "[<array (64, 64), uint8, 0 to 0>]"),
    ],
)
def test_values_are_shown_in_their_container(value, text):
    with pytest.raises(AssertionError) as caught:
        exercises.check(lambda _: value, ((value,), "something else", "none"))
    assert str(caught.value) == f"<lambda>({text}) gave {text}, expected 'something else'. Hint: none"


def cells(path, tag):
    """Return the cells with a tag, by the exercise they belong to."""
    tagged = [cell for cell in nbformat.read(path, as_version=4).cells if tag in cell.metadata.get("tags", [])]
    found = {cell.metadata["exercise"]: cell for cell in tagged}
    assert len(found) == len(tagged), f"{path.name}: two cells tagged {tag!r} carry the same exercise name"
    return found


def signature(cell):
    return next(line for line in cell.source.splitlines() if line.startswith("def "))


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_exercise_has_a_solution_under_the_same_check(path):
    # That the solutions pass their checks is seen by nbval, which executes both notebooks and compares what is printed.
    solutions_path = path.parent / "solutions" / f"{path.name[:2]}_solutions.ipynb"
    exercise, check = cells(path, "exercise"), cells(path, "check")
    solution, solution_check = cells(solutions_path, "solution"), cells(solutions_path, "check")
    assert list(exercise) == list(check) == list(solution) == list(solution_check)
    assert 2 <= len(exercise) <= 4
    assert f"(solutions/{solutions_path.name})" in path.read_text(encoding="utf-8"), "no link to the solutions"
    for name in exercise:
        assert name.startswith(path.name[:2] + "-")
        assert signature(exercise[name]) == signature(solution[name]), (
            f"{name}: another signature than in the solutions"
        )
        assert check[name].source == solution_check[name].source, f"{name}: another check than in the solutions"
        assert printed(check[name]).startswith("Not done yet"), f"{name}: the answer is filled in"
        assert printed(solution_check[name]).startswith("Right"), f"{name}: the solution does not pass"
