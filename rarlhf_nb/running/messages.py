"""How the commands tell a user's error."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from rarlhf_nb.core.errors import UserError


@contextmanager
def told_errors() -> Iterator[None]:
    """Print a `UserError` as one line and end the command with status 2; Ctrl-C ends it with status 130."""
    try:
        yield
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("interrupted: the same command goes on from here", err=True)
        raise typer.Exit(130) from None
