from contextlib import nullcontext
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


def foreground(label_map):
    return (label_map > 0).mean()


def test_right_answer(capsys):
    exercises.check(foreground, *CASES)
    assert capsys.readouterr().out == "Right: foreground passes 2 checks.\n"


@pytest.mark.parametrize("value", [None, ...])
def test_missing_answer_is_not_an_error(capsys, value):
    exercises.check(lambda label_map: value, *CASES)
    assert capsys.readouterr().out.startswith("Not done yet")


@pytest.mark.parametrize("expected", [0.5, "half", np.ones(2), (1, 2), lambda result: list(result) == []])
def test_none_in_a_later_case_is_wrong(expected):
    def answer(number):
        return 1 if number == 1 else None

    with pytest.raises(exercises.WrongAnswer, match=r"answer\(2\) gave None.* Hint: two"):
        exercises.check(answer, ((1,), 1, "one"), ((2,), expected, "two"))


def test_wrong_answer_shows_call_result_expectation_and_hint():
    def first_label(label_map):
        return (label_map == 1).mean()

    with pytest.raises(exercises.WrongAnswer) as caught:
        exercises.check(first_label, *CASES)
    call, _, text = str(caught.value).partition(" gave ")
    assert call == "first_label(array([[0, 1], [0, 2]]))"
    assert text == f"0.25, expected 0.5. Hint: {CASES[1][2]}"


def test_error_in_the_answer_names_the_call():
    def divide(label_map):
        return label_map / "2"

    with pytest.raises(exercises.WrongAnswer, match=r"divide\(array.* raised TypeError.* empty image") as caught:
        exercises.check(divide, *CASES)
    assert isinstance(caught.value.__cause__, TypeError)


def ipython_output(body, capsys):
    """Return the text that IPython prints if a learner's function with this body is checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VIRTUAL_ENV", raising=False)  # IPython warns if another environment is active
        shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    shell.run_cell(f"from nuclei_utils import exercises\ndef double(number):\n    {body}")
    result = shell.run_cell("exercises.check(double, ((1,), 2, 'first hint'), ((2,), 4, 'second hint'))")
    assert isinstance(result.error_in_exec, AssertionError)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("body", ["return number + 1", "return 2 if number == 1 else [[1], [1, 2]]"])
def test_notebook_shows_one_line_for_a_wrong_answer(body, capsys):
    (line,) = ipython_output(body, capsys)
    assert line.startswith("WrongAnswer: double(2) gave ")
    assert line.endswith("Hint: second hint")


def test_notebook_shows_the_line_of_the_learner_that_raises(capsys):
    lines = ipython_output("return number / 'two'", capsys)
    assert any("return number / 'two'" in line for line in lines)
    assert any("TypeError" in line for line in lines)
    assert not any("exercises.py" in line for line in lines)
    assert lines[-1].endswith("Hint: first hint")


@pytest.mark.parametrize(
    ("result", "expected", "agree"),
    [
        (0.1 + 0.2, 0.3, True),
        (np.float32(0.5), 0.5, True),
        (np.array([1, 2]), (1, 2), True),  # the type of the container does not matter
        (np.array([1.0, 2.0]), [1, 2], True),
        ([256, 320], (256, 320), True),
        ((1, 2), np.array([1, 2]), True),
        (pd.Series(["x", "y"]), ["x", "y"], True),
        (np.array([]), [], True),
        (np.array([1, 3]), (1, 2), False),
        (np.array([1, 2, 3]), (1, 2), False),
        (np.array([[1, 2]]), (1, 2), False),
        ("xy", ["x", "y"], False),
        ([[1], [1, 2]], np.ones(2), False),  # no array has this shape
        ("0.5", 0.5, False),
        ((1, np.ones(2)), (1, np.ones(2)), True),
        (np.ones((2, 1)), np.ones((2,)), False),
        (np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), True),
        (4, lambda result: result % 2 == 0, True),
        (5, lambda result: result % 2 == 0, False),
        ("even", lambda result: result / 2 == 1, False),
    ],
)
def test_comparison(result, expected, agree):
    def answer():
        return result

    with nullcontext() if agree else pytest.raises(exercises.WrongAnswer, match="a hint"):
        exercises.check(answer, ((), expected, "a hint"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array([256, 320]), "array([256, 320])"),
        ((np.int64(256), 320), "(256, 320)"),
        (np.array(["x", "y"] * 9), "array(" + str(["x", "y"] * 9) + ")"),
        (("one",), "('one',)"),
        ([np.zeros((64, 64), np.uint8)], "[<array (64, 64), uint8, 0 to 0>]"),
    ],
)
def test_message_shows_values(value, text):
    with pytest.raises(AssertionError) as caught:
        exercises.check(lambda _: value, ((value,), "something else", "none"))
    assert str(caught.value).startswith(f"<lambda>({text}) gave {text}, expected")


def cells(path, tag):
    """Return the cells with a tag by the name of their exercise."""
    tagged = [cell for cell in nbformat.read(path, as_version=4).cells if tag in cell.metadata.get("tags", [])]
    by_name = {cell.metadata["exercise"]: cell for cell in tagged}
    assert len(by_name) == len(tagged), f"{path.name}: two cells tagged {tag!r} have the same exercise name"
    return by_name


def signature(cell):
    return next(line for line in cell.source.splitlines() if line.startswith("def "))


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_exercise_has_a_solution_with_the_same_check(path):
    # nbval executes both notebooks and compares the output, so a solution that fails its check fails there.
    solutions_path = path.parent / "solutions" / f"{path.name[:2]}_solutions.ipynb"
    exercise, check = cells(path, "exercise"), cells(path, "check")
    solution, solution_check = cells(solutions_path, "solution"), cells(solutions_path, "check")
    assert list(exercise) == list(check) == list(solution) == list(solution_check)
    assert 2 <= len(exercise) <= 4
    assert f"(solutions/{solutions_path.name})" in path.read_text(encoding="utf-8"), "no link to the solutions"
    for name in exercise:
        assert name.startswith(path.name[:2] + "-")
        assert signature(exercise[name]) == signature(solution[name]), f"{name}: the signatures differ"
        assert check[name].source == solution_check[name].source, f"{name}: the checks differ"
        assert printed(check[name]).startswith("Not done yet"), f"{name}: the exercise has an answer"
        assert printed(solution_check[name]).startswith("Right"), f"{name}: the solution does not pass"
