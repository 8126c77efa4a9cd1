"""What is the user's to mend: bad input, and a disk that refuses."""

from __future__ import annotations

import errno
import re

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
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
    """What the disk refused and how to mend it, if an exception comes from that; else None."""
    link: BaseException | None = fault
    while link is not None:
        said = _SAID.search(str(link))
        if isinstance(link, OSError) and link.errno is not None:
            number = link.errno
            what = f"{link.strerror}: {link.filename}" if link.filename else str(link.strerror)
        else:
            number = int(said[1] or errno.ENOSPC) if said else 0
            what = f"a file could not be read or written whole ({link})"
        if number in _FULL:
            return f"{what}. Make room"
        if number in _FORBIDDEN:
            return f"no permission: {what}. Let this user read and write there"
        link = link.__cause__
    return None


def printable(text: str) -> str:
    """What data says of itself, so that it breaks neither a terminal nor an encoding."""
    return "".join(it if it.isprintable() or it == "\n" else repr(it)[1:-1] for it in text)
