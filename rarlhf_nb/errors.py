"""The one error for bad input, so that every interface of the package reports it in the same way."""

import errno

FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
CLOSED = {errno.EROFS: "the disk is read-only", errno.EACCES: "access is denied", errno.EPERM: "access is denied"}


class UserError(ValueError):
    """Input that the user can correct; the message names the field, the value and the remedy.

    The command line prints only the message and exits with code 2; a notebook shows it as a `ValueError`.
    """


def first_line(error: BaseException) -> str:
    """The first line of a library's message, or the error's name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def storage_trouble(error: BaseException | str) -> str | None:
    """What is wrong with the disk, if that caused this error (or a library's message about one); otherwise None."""
    if isinstance(error, OSError) and error.errno in FULL | CLOSED:
        where = f": {error.filename}" if error.filename else ""
        return f"{(FULL | CLOSED)[error.errno]}{where}"
    text = str(error)
    full = "No space left on device" in text or "StorageFull" in text  # as Python and Rust say it
    return FULL[errno.ENOSPC] if full else "the disk is read-only" if "Read-only file system" in text else None
