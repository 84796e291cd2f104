"""The locks: complete, with hashes, and the same everywhere."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
ALL, IMAGE, TORCH = "requirements.lock", "requirements-image.lock", "requirements-torch.lock"


def _pins(name: str) -> dict[str, str]:
    """Versions by package; every line that is no comment must belong to one."""
    entries = re.sub(r"\\\n", " ", (ROOT / name).read_text())
    pins = {}
    for line in entries.splitlines():
        if line and not line.startswith("#"):
            found = re.fullmatch(r"([\w.-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})*) *", line)
            assert found, f"{name}: {line}"
            assert bool(found[3]) == (name != TORCH), f"{name}: {found[1]} must{' not' * (name == TORCH)} have a hash"
            pins[canonicalize_name(found[1])] = found[2]
    return pins


def _project() -> dict[str, list[Requirement]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    everything = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]
    image = [*project["dependencies"], *(line for line in extras["local"] if line.startswith("gt-")), "hatchling"]
    return {ALL: list(map(Requirement, everything)), IMAGE: list(map(Requirement, image))}


@pytest.mark.parametrize("name", [ALL, IMAGE])
def test_the_lock_satisfies_every_requirement(name: str) -> None:
    """Whatever pyproject.toml asks for is pinned at a version that it allows."""
    locked = {**_pins(name), **_pins(TORCH)}
    for requirement in _project()[name]:
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in {name}: run `make lock`"
        assert requirement.specifier.contains(version), f"{requirement} but {version} is locked: run `make lock`"


@pytest.mark.parametrize("name", [ALL, IMAGE])
def test_the_lock_is_whole(name: str) -> None:
    """It is installed with --no-deps: whatever a package of it needs is in it as well. torch sees to its own."""
    locked = {**_pins(name), **_pins(TORCH)}
    installed = {canonicalize_name(one.metadata["Name"]): one for one in distributions()}
    wanted = {(canonicalize_name(one.name), extra) for one in _project()[name] for extra in {"", *one.extras}}
    pending, seen = list(wanted), set()
    while pending:
        package, extra = pending.pop()
        if (package, extra) in seen or package == "torch":
            continue
        seen.add((package, extra))
        assert package in locked, f"{package} is not in {name}: run `make lock`"
        for line in installed[package].requires or () if package in installed else ():
            needed = Requirement(line)
            environment = {**{key: str(value) for key, value in default_environment().items()}, "extra": extra}
            if needed.marker is None or needed.marker.evaluate(environment):
                pending += [(canonicalize_name(needed.name), one) for one in {"", *needed.extras}]
    assert len(seen) > 100


def test_the_images_lock_is_a_part_of_the_whole() -> None:
    """The same versions: what is tested is what runs."""
    assert _pins(IMAGE).items() <= _pins(ALL).items()
    assert "pytest" not in _pins(IMAGE)


def test_the_lock_names_versions_only() -> None:
    """No build of one machine (+cpu), no path, no address, and not the project itself; torch apart."""
    assert set(_pins(TORCH)) == {"torch"}
    for name, version in {**_pins(ALL), **_pins(TORCH)}.items():
        assert name != "ratchet"
        assert set(version) <= set("0123456789.abcdefghijklmnopqrstuvwxyz"), f"{name}=={version}"
    assert "torch" not in _pins(ALL)


OLD_ENOUGH = {
    # package: the first version without a fault that matters here, as its makers' advisories say; see docs/security.md
    "aiohttp": "3.13.3",
    "certifi": "2024.7.4",
    "cryptography": "44.0.1",
    "h11": "0.16.0",
    "jinja2": "3.1.6",
    "pillow": "11.3.0",
    "pyarrow": "14.0.1",
    "requests": "2.32.4",
    "starlette": "0.49.1",
    "torch": "2.6.0",
    "transformers": "4.53.0",
    "urllib3": "2.6.0",
}


def test_no_version_with_a_known_fault_that_matters_is_locked() -> None:
    """Those that docs/security.md names."""
    locked = {**_pins(ALL), **_pins(TORCH)}
    page = (ROOT / "docs" / "security.md").read_text()
    for name, first in OLD_ENOUGH.items():
        assert f"`{name}` {first}" in page, name
        if name in locked:
            assert Version(locked[name]) >= Version(first), f"{name} {locked[name]} is older than {first}"
