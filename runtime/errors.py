"""Errors a user can cause: each is one line that says what is wrong and what to do."""

from __future__ import annotations


class UnibrainError(Exception):
    """Base of every error shown to a user; ``str(error)`` is the one line that is printed."""

    exit_code = 1


class InputError(UnibrainError):
    """The input given (scan, option, file name) cannot be used."""

    exit_code = 2


class BundleError(UnibrainError):
    """The bundle is broken, incomplete or not one this version can run."""

    exit_code = 3
