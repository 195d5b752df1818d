"""Formats numbers with their nouns, and makes text from outside safe to print."""


def count(number: float, noun: str) -> str:
    """Format a number with its noun: 1 day, 2,880 days, 0.5 days."""
    digits = f"{number:,}" if isinstance(number, int) else f"{number:,g}"
    return f"{digits} {noun}" if number == 1 else f"{digits} {noun}s"


def days(number: float) -> str:
    """Format a number of days, which may have a fraction."""
    return count(number, "day")


def printable(text: str) -> str:
    """Escape every character that is not printable, so that the text stays on one line and cannot control a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
