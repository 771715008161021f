"""What an answer says that its price depends on, beside the numbers of tokens."""

from __future__ import annotations


class Billed:
    """Made by a dialect's meter, and only where an answer says any of it."""

    __slots__ = ("cache_write_long_tokens", "cache_write_tokens", "tier")

    def __init__(self, cache_write_tokens: int = 0, cache_write_long_tokens: int = -1, tier: str = "") -> None:
        self.cache_write_tokens = cache_write_tokens
        """Of the input, what the provider put into its cache."""
        self.cache_write_long_tokens = cache_write_long_tokens
        """Of these, what it keeps for longer; -1 where the answer does not say."""
        self.tier = tier
        """The tier of service; empty where the answer names none."""

    def _values(self) -> tuple[int, int, str]:
        return (self.cache_write_tokens, self.cache_write_long_tokens, self.tier)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Billed) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"Billed{self._values()}"
