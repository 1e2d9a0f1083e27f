"""Errors that the user can mend or that another try may mend, and any exception in words."""

from __future__ import annotations

import logging
import re
from functools import cache

LOG = logging.getLogger("tunewright")
# of an exception's text, which is a cell of tables; crashed.log has all of it
MOST_CHARACTERS = 2_000


class UserError(Exception):
    """A mistake in a study file, a workload, a results folder or an option.

    The message is complete (place, rule, value; one line per mistake). The command line prints it
    without a traceback and exits with status 2.
    """


class UnfinishedError(Exception):
    """The work failed, and the same command tries again.

    Printed without a traceback, with exit status 1.
    """


def printable(text: str) -> str:
    """A text that UTF-8 can encode: stray bytes, as of a file name, become backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def describe_error(error: BaseException) -> str:
    """`Type: text` of any exception in one line, also of one whose text cannot be asked for or
    written.
    """
    name, text = type(error).__name__, " ".join(_text(error).split())
    return f"{name}: {text}" if text else name


def first_line(error: BaseException) -> str:
    """The first line of what an exception says; its type where it says nothing."""
    text = _text(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _text(error: BaseException) -> str:
    try:
        return printable(str(error))[:MOST_CHARACTERS]
    except Exception:
        return "its text cannot be shown"


def mask_password(text: str) -> str:
    """A text without the password and the options of a URL in it, which may hold secrets, too."""
    text = re.sub(r"(://[^:/?#@]*):.*@", r"\1:***@", text, flags=re.DOTALL)
    return re.sub(r"(://[^?]*)\?.*", r"\1?***", text, flags=re.DOTALL)


@cache
def warn_once(text: str) -> None:
    """Say something to the user, once in this process, however often it is found."""
    LOG.warning("%s", printable(text))
