"""Where things are, and the two names that every part of a deployment shares."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
"""The folder that holds the packages: a checkout, or site-packages."""

DEPLOYMENTS: Final = ROOT / "deployments" / "prefect.yaml"

POOLS: Final = ("cpu", "gpu")
"""The work pools."""
