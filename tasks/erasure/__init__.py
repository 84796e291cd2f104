"""Erase a text, or an object with all that came of it, from everything that the store keeps."""

from tasks.erasure.forget import Plan, StubbornError, carry_out, find
from tasks.erasure.wanted import NothingToForgetError, Wanted, select

__all__ = ["NothingToForgetError", "Plan", "StubbornError", "Wanted", "carry_out", "find", "select"]
