"""What is the user's to mend: bad input, and a disk that refuses."""

from __future__ import annotations

import errno
import re

_REFUSED = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM")
    if hasattr(errno, name)
}
_SAID = re.compile(
    r"os error (\d+)|PytorchStreamWriter|unexpected pos \d+ vs \d+|requested and \d+ written"
)
"""What safetensors, torch and NumPy say without an errno."""


class UserError(ValueError):
    """Bad input from outside: says what was given, what was expected and how to mend it.

    The command line prints the message and exits with status 2; any other exception is a bug
    of ours and keeps its traceback.
    """


def disk_refusal(fault: BaseException) -> str | None:
    """What the disk refused, if that is what an exception comes from: no room, no permission."""
    link: BaseException | None = fault
    while link is not None:
        if isinstance(link, OSError) and link.errno in _REFUSED:
            where = f": {link.filename}" if link.filename else ""
            return f"{link.strerror}{where}"
        said = _SAID.search(str(link))
        if said and (said[1] is None or int(said[1]) in _REFUSED):
            return f"a file could not be written whole ({link})"
        link = link.__cause__
    return None


def printable(text: str) -> str:
    """What data says of itself, so that it breaks neither a terminal nor an encoding."""
    return "".join(it if it.isprintable() or it == "\n" else repr(it)[1:-1] for it in text)
