"""Making the promoted version known to other registries: after the verdict, and never able to change or delay it."""

from tasks.publishing.job import FILES, Target, Targets
from tasks.publishing.publish import SECRETS, Result, publish

__all__ = ["FILES", "SECRETS", "Result", "Target", "Targets", "publish"]
