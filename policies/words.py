"""Numbers in words, the same everywhere."""


def count(number: float, noun: str) -> str:
    """A number with its noun: 1 day, 2 days, 0.5 days."""
    digits = str(number) if isinstance(number, int) else f"{number:g}"
    return f"{digits} {noun}" if number == 1 else f"{digits} {noun}s"


def days(number: float) -> str:
    """A number of days, fractions included."""
    return count(number, "day")
