"""How the commands report a user's error."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from rarlhf_nb.errors import UserError

STORAGE_TROUBLE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "access is denied",
    errno.EPERM: "access is denied",
}


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


def storage_trouble(error: BaseException | str) -> str | None:
    """What is wrong with the disk, if that caused this error (or a library's message about one); otherwise None."""
    if isinstance(error, OSError) and error.errno in STORAGE_TROUBLE:
        return STORAGE_TROUBLE[error.errno] + (f": {error.filename}" if error.filename else "")
    text = str(error)
    if "No space left on device" in text or "StorageFull" in text:  # as Python and Rust say it
        return STORAGE_TROUBLE[errno.ENOSPC]
    return STORAGE_TROUBLE[errno.EROFS] if "Read-only file system" in text else None
