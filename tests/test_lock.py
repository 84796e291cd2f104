"""The lock: complete, and the same everywhere."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def _locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def test_the_lock_satisfies_every_requirement() -> None:
    """Whatever pyproject.toml asks for, with all extras, is pinned at a version that it allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    locked = _locked()
    for requirement in map(Requirement, wanted):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in requirements.lock: run `make lock`"
        assert requirement.specifier.contains(version), f"{requirement} but {version} is locked: run `make lock`"


def test_the_lock_names_versions_only() -> None:
    """No build of one machine (+cpu), no path, no address, and not the project itself."""
    for name, version in _locked().items():
        assert name != "ratchet"
        assert set(version) <= set("0123456789.abcdefghijklmnopqrstuvwxyz"), f"{name}=={version}"
