"""Numbers in words, the same everywhere."""


def count(number: float, noun: str) -> str:
    """A number with its noun: 1 day, 2 days, 0.5 days."""
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"


def days(number: float) -> str:
    """A number of days, fractions included."""
    return count(number, "day")
