"""The one error for bad input, so that every interface of the package reports it in the same way."""


class UserError(ValueError):
    """Input that the user can correct; the message names the field, the value and the remedy.

    The command line prints only the message and exits with code 2; a notebook shows it as a `ValueError`.
    """
