"""The base of every error that a user can mend, and how differences are named in them."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(ValueError):
    """Wrong input, not a bug: commands print its text as one line, without a traceback."""


def differences(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> str:
    """In words, the keys of `expected` that `found` has otherwise; "" where there are none."""
    return "; ".join(
        f"{key} is {found.get(key)!r} {where}, {value!r} in the config"
        for key, value in expected.items()
        if found.get(key) != value
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name that is not known: the nearest one, if any is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
