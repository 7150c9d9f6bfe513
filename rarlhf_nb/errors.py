"""The one error for bad input, so that every interface of the package reports it in the same way."""


class UserError(ValueError):
    """Input that the user can correct; the message names the field, the value and the remedy.

    The command line prints only the message and exits with code 2; a notebook shows it as a `ValueError`.
    """


def first_line(error: BaseException) -> str:
    """The first line of a library's message, or the error's name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
