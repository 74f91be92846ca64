"""The base of every error that a user can mend, and how differences are named in them."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(ValueError):
    """Wrong input, not a bug: commands print its text as one line, without a traceback."""


def differences(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> str:
    """In words, the keys of `expected` that `found` has otherwise; "" where there are none.

    Numbers that differ by rounding alone are the same.
    """
    return "; ".join(
        f"{key} is {found.get(key)!r} {where}, {value!r} in the config"
        for key, value in expected.items()
        if not _is_same(found.get(key), value)
    )


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12)
    return a == b


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name that is not known: the nearest one, if any is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
