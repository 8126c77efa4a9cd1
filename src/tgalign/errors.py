"""The one exception that is the user's to mend, and how it is printed."""


class UserError(ValueError):
    """Bad input from outside: says what was given, what was expected and how to mend it.

    The command line prints the message and exits with status 2; any other exception is a bug
    of ours and keeps its traceback.
    """


def printable(text: str) -> str:
    """What data says of itself, so that it breaks neither a terminal nor an encoding."""
    return "".join(it if it.isprintable() or it == "\n" else repr(it)[1:-1] for it in text)
