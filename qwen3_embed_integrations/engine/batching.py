"""Which texts run together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def groups(lengths: Sequence[int], batch_tokens: int, *, padded: bool) -> list[list[int]]:
    """Put texts of like length together within a budget of tokens.

    Args:
        lengths: tokens of each text.
        batch_tokens: the most tokens in a group; a longer text gets a group of its own.
        padded: whether each text in a group takes as many tokens as the longest.

    Returns:
        Positions in `lengths`, longest texts first, each position once.
    """
    result: list[list[int]] = []
    longest = tokens = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        tokens += longest if padded else lengths[position]
        if result and tokens <= batch_tokens:
            result[-1].append(position)
        else:
            result.append([position])
            longest = tokens = lengths[position]
    return result
