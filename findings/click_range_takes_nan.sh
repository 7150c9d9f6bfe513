#!/usr/bin/env bash
# Surprise: an option of click's type FloatRange(0, 1) accepts nan.
# Guess: nan is not in the range 0 <= x <= 1 and is refused, as infinity is, and as pydantic does with ge=0, le=1.
# Versions: click 8.5.1, pydantic 2.14.3
# Behaviour: click asks whether the number is below the minimum or above the maximum; nan is neither.
# Seen: click nan -> taken, inf -> refused; pydantic nan -> refused
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with click==8.5.1 pydantic==2.14.3 <<'PYTHON'
from typing import Annotated

import click
from click.testing import CliRunner
from pydantic import Field, TypeAdapter, ValidationError


@click.command()
@click.option("--alpha", type=click.FloatRange(0, 1))
def command(alpha):
    pass


def by_click(value):
    return "refused" if CliRunner().invoke(command, ["--alpha", value]).exit_code else "taken"


def by_pydantic(value):
    try:
        TypeAdapter(Annotated[float, Field(ge=0, le=1)]).validate_python(value)
        return "taken"
    except ValidationError:
        return "refused"


answers = [by_click("nan"), by_click("inf"), by_pydantic(float("nan"))]
print("click nan -> {}, inf -> {}; pydantic nan -> {}".format(*answers))
assert answers == ["taken", "refused", "refused"], f"behaviour changed: {answers}"
PYTHON
