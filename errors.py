"""Errors that are the user's to mend; the command line prints them as one line and exits with their code."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or usage: the message says what is wrong, where, and what to do. Exit code 2."""

    exit_code = 2


class TargetUnavailable(UserError):
    """The target cannot be used on this machine. Exit code 4."""

    exit_code = 4
