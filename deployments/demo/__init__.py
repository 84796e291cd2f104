"""The demonstration: its labels, and a week of nights on them."""

from deployments.demo.data import DemoData, build, plain_text

__all__ = ["DemoData", "build", "plain_text"]
