"""Makes the pictures of the documentation anew, all of them or those of the subjects that are named."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "screenshots"


def main(subjects: list[str]) -> None:
    """Call `take(folder)` of each subject, a module beside this one."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    if unknown := set(subjects) - set(known):
        sys.exit(f"no such subject: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    FOLDER.mkdir(exist_ok=True)
    for subject in subjects or known:
        importlib.import_module(f"tests.screenshots.{subject}").take(FOLDER)


if __name__ == "__main__":
    main(sys.argv[1:])
