"""Bad input has one name, so that every door of the package can report it the same way."""


class UserError(ValueError):
    """Input that the user can mend; the message names the field, the value and the remedy.

    The command line prints the message alone and exits with code 2; a notebook shows it as a `ValueError`.
    """
