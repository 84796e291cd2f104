"""What a night says of its labels, besides its verdict, which nothing here can change."""

from tasks.audit.look import Night, look

__all__ = ["Night", "look"]
