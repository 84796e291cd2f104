"""What production is set up with: the image, the worker's service, the compose file, the proxy.

Nothing is started here; each is checked by the strictest tool that needs no Docker engine and no running systemd.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deployments import pools
from tests.browser import require_program

ROOT = Path(__file__).parent.parent
DEPLOYMENTS = ROOT / "deployments"
DOCKERFILE = DEPLOYMENTS / "Dockerfile"
SERVICE = DEPLOYMENTS / "ratchet-worker@.service"


# --- the image -------------------------------------------------------------------------------------------


def _copied() -> list[str]:
    """What the Dockerfile takes from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    """The linter of Dockerfiles, with every rule on."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_builder_is_sent_what_the_dockerfile_copies_and_nothing_else() -> None:
    """State of a local stack holds keys: the ignore file names what is sent, not what is kept back."""
    first, *lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert first == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(_copied())
    assert [line for line in lines if not line.startswith("!")] == ["**/__pycache__"]


def test_the_image_runs_as_the_user_that_the_templates_name() -> None:
    """Not as root, and by number: Kubernetes cannot check a name."""
    text = DOCKERFILE.read_text()
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == [f"{pools.USER}:{pools.USER}"]
    assert f"--uid {pools.USER} --gid {pools.USER} --home-dir {pools._HOME}" in text
    assert f"-t {pools.IMAGE} " in text


def test_the_image_is_built_from_versions() -> None:
    """Base and libraries: the same Dockerfile gives the same image next month."""
    text = DOCKERFILE.read_text()
    assert re.search(r"^ARG PYTHON=3\.11\.\d+-slim-bookworm$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"python:${PYTHON}"}
    assert "PIP_CONSTRAINT=/src/requirements.lock" in text
    assert re.search("^torch==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


def test_what_is_copied_is_enough_to_build_the_package(tmp_path: Path) -> None:
    """The wheel of the image, made from those files alone, holds the modules and the files beside them."""
    source = tmp_path / "source"
    source.mkdir()
    for name in _copied():
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--wheel-dir", tmp_path, source],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {"flows/retrain.py", "deployments/prefect.yaml", "deployments/pools/gpu-kubernetes.json"} <= inside


# --- the worker's service --------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """An instance of the unit whose programs exist, as systemd looks for them."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("prefect", "ratchet"):
        (programs / name).symlink_to("/bin/true")
    unit = tmp_path / "ratchet-worker@gpu.service"
    unit.write_text(SERVICE.read_text().replace("/opt/ratchet/.venv/bin", str(programs)))
    return unit


def test_systemd_takes_the_service(service: Path) -> None:
    """Every directive is known and has a sound value."""
    done = subprocess.run(
        [require_program("systemd-analyze"), "verify", "--man=no", service], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_wrong_directive_in_the_service_would_be_noticed(service: Path) -> None:
    """The verification above can fail."""
    service.write_text(service.read_text().replace("KillMode=mixed", "KillMode=gently"))
    done = subprocess.run(
        [require_program("systemd-analyze"), "verify", "--man=no", service], capture_output=True, text=True, check=False
    )
    assert "kill mode" in done.stderr


def test_the_service_is_closed_in_by_systemd(service: Path) -> None:
    """Exposure at most 2.5 on systemd's scale from 0 to 10; a service that asks for nothing has 9.6."""
    done = subprocess.run(
        [require_program("systemd-analyze"), "security", "--no-pager", "--offline=true", "--threshold=25", service],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_service_waits_longer_than_its_drain() -> None:
    """Otherwise systemd would kill the runs that the drain waits for."""
    text = SERVICE.read_text()
    (drain,) = re.findall(r"^ExecStop=.* drain %i .*--minutes (\d+)$", text, re.MULTILINE)
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)min$", text, re.MULTILINE)
    assert int(stop) > int(drain)
    marks = re.findall(r"--mark (\S+)", text)
    assert len(marks) == 2
    assert len(set(marks)) == 1
