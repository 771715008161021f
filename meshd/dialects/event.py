"""What a meter understood of an answer, a piece at a time."""

from __future__ import annotations


class Event:
    """One piece of an answer that the meter understood. One object per meter, valid until the next `read`."""

    __slots__ = ("begun", "choice", "ended", "has_content", "output_estimate", "raw", "text", "tool_names")

    def __init__(self) -> None:
        self.raw = b""
        """The bytes to forward; the meter may have rewritten them, a ticket may too."""
        self.text = ""
        """Where a piece of the answer's text is all that it says: that, so that nobody need decode it again."""
        self.choice = 0
        """Of which choice `text` is."""
        self.tool_names: tuple[str, ...] = ()
        """Names of the tools that this piece begins to call."""
        self.has_content = False
        """The piece carries output that was generated (not a ping, role or usage alone)."""
        self.output_estimate = 0
        """`Meter.output_estimate` with this piece counted in, for those who see events and not the meter."""
        self.begun = ""
        """The id of work that goes on at the provider when this reply has ended, for a later call to read."""
        self.ended = ""
        """The id of such work, where the reply says that it is over."""
