"""Finds keys that look alike: one history that a spelling or a counter has split in two."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

MAX_ALIKE = 3
"""Keys that look alike. More are no slip, but a series that somebody means: with a larger number, series are reported."""

_COPY = re.compile(r"[\W_]+(v?[2-9]|copy)$")
"""How the key of a copy ends. 1 is not among them: whoever counts from there means it."""

_SEPARATOR = re.compile(r"(?<![0-9])[\W_]+|[\W_]+(?![0-9])")
"""Separators, but for those between two digits: 1-12 is not 11-2."""


def look_alikes(keys: Iterable[str]) -> list[list[str]]:
    """Group keys that differ in case, in their separators, or in the ending of a copy (`-2`, `_v3`, `-copy`) only.

    A key with such an ending is grouped only if there is one without it.
    """
    by_form: defaultdict[str, list[str]] = defaultdict(list)
    copies: list[tuple[str, str]] = []
    for key in sorted(keys):
        name = key.lower()
        if (stem := _COPY.sub("", name)) != name:
            copies.append((key, stem))
        else:
            by_form[_form(name)].append(key)
    for key, stem in copies:
        own = _form(key.lower())
        form = _form(stem)
        by_form[form if form in by_form else own].append(key)
    return [found for found in by_form.values() if 1 < len(found) <= MAX_ALIKE]


def _form(name: str) -> str:
    return _SEPARATOR.sub("", name)
