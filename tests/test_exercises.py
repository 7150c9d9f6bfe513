"""The message that a learner gets for an answer that is missing, right, wrong, or broken."""

import numpy as np
import pytest
import torch

from rarlhf_nb.lab.exercises import check, check_function


def answered(capsys, call, *arguments):
    call(*arguments)
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        (0.33, 1 / 3),  # rounded by hand
        (26, np.int64(26)),
        (True, np.True_),
        ([1, 0, 2], torch.tensor([1, 0, 2])),
        (torch.tensor([0.0, -0.1, 2.0]), [0.0, -0.1, 2.0]),
        ((True, False), [True, False]),
    ],
)
def test_what_equals_the_truth_is_right(capsys, answer, truth):
    assert answered(capsys, check, "my_x", answer, truth, "look") == "my_x: right"


@pytest.mark.parametrize("answer", [0.34, 27, "a third", [1 / 3], [[1], [2, 3]], np.nan, {}])
def test_anything_else_is_not_yet_with_the_hint(capsys, answer):
    assert answered(capsys, check, "my_x", answer, 1 / 3, "look") == "my_x: not yet: look"


@pytest.mark.parametrize("answer", [None, [None, None], [1.0, None], np.array([None])])
def test_none_is_no_answer(capsys, answer):
    assert answered(capsys, check, "my_x", answer, [1.0, 2.0], "look") == "my_x: not answered yet"


def in_place(values):
    values.sort()
    return values[0]


def lowest(values):
    return min(values)


def first(values):
    return values[0]


def raising(values):
    raise KeyError("oh")


CASES = [([1.0, 2.0],), ([3.0, 0.5],)]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lowest, "f: right in 2 of 2 cases"),
        (lambda values: None, "f([1.0, 2.0]): not answered yet"),
        (first, "f([3.0, 0.5]): not yet: yours gives 3.0, the library 0.5; look"),
        (raising, "f([1.0, 2.0]): not yet, it raised KeyError: 'oh'"),
    ],
)
def test_a_function_is_told_its_first_case_that_is_not_right(capsys, answer, words):
    assert answered(capsys, check_function, "f", answer, lowest, CASES, "look") == words


def test_a_function_that_changes_its_arguments_changes_no_case(capsys):
    assert "right" in answered(capsys, check_function, "f", in_place, lambda values: min(values), CASES, "look")
    assert "not yet" in answered(capsys, check_function, "f", in_place, first, CASES, "look")
    assert CASES == [([1.0, 2.0],), ([3.0, 0.5],)]
