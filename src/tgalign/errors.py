"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """Bad input from outside: says what was given, what was expected and how to mend it.

    The command line prints the message and exits with status 2; any other exception is a bug
    of ours and keeps its traceback.
    """
