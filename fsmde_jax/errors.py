"""The base of every error that a user can mend."""


class UserError(ValueError):
    """Wrong input, not a bug: commands print its text as one line, without a traceback."""
