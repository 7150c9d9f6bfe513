"""How the commands report a user's error."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from rarlhf_nb.errors import UserError, storage_trouble


@contextmanager
def reported_errors() -> Iterator[None]:
    """Print a `UserError` or trouble with the disk as one line and end with status 2; Ctrl-C ends with status 130."""
    try:
        yield
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        trouble = storage_trouble(error)
        if trouble is None:
            raise
        typer.echo(f"error: {trouble}; what is finished is kept, and the same command goes on from there", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("interrupted: the same command goes on from here", err=True)
        raise typer.Exit(130) from None
