"""The base of every error that a user can mend, and how differences are named in them."""

from collections.abc import Mapping
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
