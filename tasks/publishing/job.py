"""What is published where, as records; and the files of a run that say it was done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Self

from tasks.records import Published
from tasks.runs import PUBLISHED_HUGGINGFACE, PUBLISHED_MLFLOW, File

Target = Literal["mlflow", "huggingface"]

FILES: Final[Mapping[Target, File[Published]]] = {"mlflow": PUBLISHED_MLFLOW, "huggingface": PUBLISHED_HUGGINGFACE}
"""Per target the file in the folder of the run that changed production; it is there once that change is published."""

MODEL: Final = "model"
"""Folder of the version's files, beside `job.json`."""

REPORT: Final = "report.html"


@dataclass(frozen=True)
class Targets:
    """Where to publish: a registered model of MLflow, a repository `owner/name` of Hugging Face; empty: not there."""

    mlflow: str = ""
    huggingface: str = ""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """The targets that an environment names: `RATCHET_MLFLOW_MODEL` and `RATCHET_HF_REPO`."""
        return cls(environment.get("RATCHET_MLFLOW_MODEL", ""), environment.get("RATCHET_HF_REPO", ""))

    def named(self) -> Iterator[tuple[Target, str]]:
        """The targets that are wanted, each with the name there."""
        if self.mlflow:
            yield "mlflow", self.mlflow
        if self.huggingface:
            yield "huggingface", self.huggingface


@dataclass(frozen=True)
class Job:
    """One change of production for one target: all that the process that publishes it has to know.

    Attributes:
        name: Of the registered model or repository.
        version: What serves; None: the base model, which has no files.
        promotion: Number of the change.
        title, reason: One line, and why production changed.
        metrics: Scores of the night that promoted the version, by name.
        parameters: Its settings and counts.
        tags: Where it came from.
    """

    target: Target
    name: str
    version: str | None
    promotion: int
    title: str
    reason: str
    metrics: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
