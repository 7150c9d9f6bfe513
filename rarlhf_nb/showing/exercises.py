"""Checks of a learner's answers: what the check cells of the notebooks call."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np


def check(name: str, answer: Any, truth: Any, hint: str) -> None:
    """Print whether `answer`, a number or an array of any shape, equals `truth`; `hint` where it does not.

    An answer of None, or an array that holds None, has not been given yet.
    """
    print(f"{name}: {verdict(answer, truth, hint)}")


def check_function(
    name: str, answer: Callable[..., Any], reference: Callable[..., Any], cases: Sequence[tuple], hint: str
) -> None:
    """Print whether the learner's function gives what `reference` gives for the arguments of every case.

    A function that returns None has not been written yet; one that raises is told what it raised. It gets copies, so
    that one that sorts in place is judged by what it returns.
    """
    for arguments in cases:
        given = f"{name}({', '.join(map(repr, arguments))})"
        try:
            value = answer(*deepcopy(arguments))
        except Exception as error:  # whatever a learner's code may raise, the notebook goes on
            print(f"{given}: not yet, it raised {type(error).__name__}: {error}")
            return
        truth = reference(*arguments)
        found = verdict(value, truth, f"yours gives {value}, the library {truth}; {hint}")
        if found != "right":
            print(f"{given}: {found}")
            return
    print(f"{name}: right, in {len(cases)} cases of {len(cases)}")


def verdict(answer: Any, truth: Any, hint: str) -> str:
    """Right, not answered yet, or not yet and the hint; right is equal to 0.005, since answers are rounded by hand."""
    if answer is None or any(part is None for part in np.ravel(np.asarray(answer, dtype=object))):
        return "not answered yet"
    try:
        right = np.shape(answer) == np.shape(truth) and np.allclose(answer, truth, atol=5e-3)
    except (TypeError, ValueError):  # a text, or rows of different lengths
        right = False
    return "right" if right else f"not yet: {hint}"
