"""Which texts run together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def groups(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Put texts of like length together, so that little is padded, within a budget of tokens.

    Args:
        lengths: tokens of each text.
        batch_tokens: the most tokens in a group, padding included; a longer text gets a group of its own.

    Returns:
        Positions in `lengths`, longest texts first, each position once.
    """
    result: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if result and longest * (len(result[-1]) + 1) <= batch_tokens:
            result[-1].append(position)
        else:
            result.append([position])
            longest = lengths[position]
    return result
