"""Globs of keys: which of them can match a key of Prefect at all, and which cover others."""

from __future__ import annotations

import re
import string
from fnmatch import fnmatchcase

KEY_CHARACTERS = string.ascii_lowercase + string.digits + "-"
"""What Prefect makes keys of (`^[a-z0-9-]*$`)."""

WILDCARDS = frozenset("*?[")

_PART = re.compile(r"\[!?\]?[^\]]*\]|.", re.DOTALL)
"""A set, or a single character; as `fnmatch` reads them."""

_STARS = re.compile(r"\*+")


def impossible(glob: str) -> str | None:
    """Say why no key can match a glob, or none that is meant; None if one can."""
    if not glob:
        return "'' matches no key; * is for all keys"
    part = _impossible_part(glob)
    if part is None:
        return None
    if part.startswith("[^"):
        return f"{glob!r} has ^ in a set of characters; all but these is written [!{part[2:]}"
    return f"{glob!r} matches no key, because keys have only a-z, 0-9 and -, and no {part!r}{_hint(glob)}"


def _impossible_part(glob: str) -> str | None:
    """Return the first part of a glob that no character of a key matches, or a set that begins with ^."""
    return next(
        (
            part
            for part in _PART.findall(glob)
            if part.startswith("[^") or (part != "*" and not any(fnmatchcase(each, part) for each in KEY_CHARACTERS))
        ),
        None,
    )


def _hint(glob: str) -> str:
    if "," in glob:
        return "; each glob is an entry of its own in the list"
    likely = re.sub(r"[_. ]", "-", glob.strip().lower())
    return f"; did you mean {likely!r}?" if likely and _impossible_part(likely) is None else ""


def covers(glob: str, other: str) -> bool:
    """Whether `glob` matches every key that `other` matches; decided for equal globs, plain keys and `prefix*` only."""
    glob, other = _STARS.sub("*", glob), _STARS.sub("*", other)
    if glob.endswith("*") and not WILDCARDS & set(glob[:-1]):
        return other.startswith(glob[:-1])
    return glob == other or (not WILDCARDS & set(other) and fnmatchcase(other, glob))
