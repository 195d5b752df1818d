"""Numbers in words, the same everywhere, and text from outside as text that can be shown."""


def count(number: float, noun: str) -> str:
    """A number with its noun: 1 day, 2 days, 0.5 days."""
    digits = str(number) if isinstance(number, int) else f"{number:g}"
    return f"{digits} {noun}" if number == 1 else f"{digits} {noun}s"


def days(number: float) -> str:
    """A number of days, fractions included."""
    return count(number, "day")


def printable(text: str) -> str:
    """Text on one line, with escapes for what cannot be seen: it steers no terminal, ends no line and turns none around."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
