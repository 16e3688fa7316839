"""How messages name the texts that a caller gave."""

from __future__ import annotations


def named(first: int, of: int, count: int = 1) -> str:
    """Name some of a call's texts, one after the other.

    Args:
        first: position of the first of them.
        of: how many texts the call has; the only one needs no position.
        count: how many of them to name.

    Returns:
        "the text", "the text at index 3" or "the texts at indexes 3 to 5".
    """
    if of == 1:
        return "the text"
    return f"the text at index {first}" if count == 1 else f"the texts at indexes {first} to {first + count - 1}"
