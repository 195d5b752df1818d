"""Globs of keys: whether one can match any key that Prefect accepts."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from string import ascii_lowercase, digits

KEY_CHARACTERS = f"{ascii_lowercase}{digits}-"
"""The characters that Prefect accepts in a key."""

_ONE_CHARACTER = re.compile(r"\[!?\]?[^\]]*\]|.", re.DOTALL)
"""What a glob matches a character by: a class such as [a-z], a wildcard, or the character itself."""


def fits_prefect_keys(glob: str) -> bool:
    """Whether a glob can match a key that Prefect accepts: lowercase letters, digits and dashes, at least one of them."""
    parts = _ONE_CHARACTER.findall(glob)
    return bool(parts) and all(any(fnmatchcase(each, part) for each in KEY_CHARACTERS) for part in parts)
