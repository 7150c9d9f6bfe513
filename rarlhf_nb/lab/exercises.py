"""Checks of a learner's answers, called by the check cells of the notebooks."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np


def check(name: str, answer: Any, truth: Any, hint: str) -> None:
    """Print whether `answer`, a number or an array of any shape, equals `truth`, and `hint` if it does not.

    None, or an array with a None in it, counts as not answered yet.
    """
    print(f"{name}: {verdict(answer, truth, hint)}")


def check_function(
    name: str, answer: Callable[..., Any], reference: Callable[..., Any], cases: Sequence[tuple], hint: str
) -> None:
    """Print whether the learner's function returns the same as `reference` for the arguments of every case.

    A function that returns None counts as not written yet. If the function raises, the error is shown. It gets copies
    of the arguments, so that sorting in place does no harm.
    """
    for arguments in cases:
        given = f"{name}({', '.join(map(repr, arguments))})"
        try:
            value = answer(*deepcopy(arguments))
        except Exception as error:  # whatever the learner's code raises, the notebook must go on
            print(f"{given}: not yet, it raised {type(error).__name__}: {error}")
            return
        truth = reference(*arguments)
        found = verdict(value, truth, f"yours gives {value}, the library {truth}; {hint}")
        if found != "right":
            print(f"{given}: {found}")
            return
    print(f"{name}: right in {len(cases)} of {len(cases)} cases")


def verdict(answer: Any, truth: Any, hint: str) -> str:
    """Returns "right", "not answered yet", or "not yet" with the hint. A tolerance of 0.005 allows rounding by hand."""
    if answer is None or any(part is None for part in np.ravel(np.asarray(answer, dtype=object))):
        return "not answered yet"
    try:
        right = np.shape(answer) == np.shape(truth) and np.allclose(answer, truth, atol=5e-3)
    except (TypeError, ValueError):  # a text, or rows of different lengths
        right = False
    return "right" if right else f"not yet: {hint}"
