"""Runs benchmarks one after another, each in a process of its own, and prints one table of all their figures.

`python -m tests.benchmarks [NAME ...] [--quick] [--json FILE] [--publish]`. Without names: all of them. The results
are put into one file beside those of benchmarks that were not run, so that a long run can be split. Status 1 when one
fails; a goal that is missed is shown, and is no failure.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks import page, report

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NAMES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run those that are named; returns how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="small: does every benchmark still run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the file of results; .cache/benchmarks.json if not")
    parser.add_argument("--publish", action="store_true", help=f"write {page.DATA.name} and the page in docs/")
    chosen = parser.parse_args(argv)
    if unknown := sorted(set(chosen.names) - set(NAMES)):
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if chosen.publish and (chosen.quick or chosen.json):
        parser.error("--publish writes figures at full size to their own file: not with --quick or --json")
    cache = ROOT / ".cache" / ("benchmarks-quick.json" if chosen.quick else "benchmarks.json")
    path = page.DATA if chosen.publish else (chosen.json or cache).absolute()

    environment = dict(os.environ) | {"TQDM_DISABLE": "1"}  # figures, not bars
    failed = []
    for name in chosen.names or NAMES:
        print(f"\n== {name}", flush=True)
        start = time.monotonic()
        command = [sys.executable, "-m", f"tests.benchmarks.bench_{name}", "--json", str(path)]
        command += ["--quick"] * chosen.quick
        if subprocess.run(command, check=False, cwd=ROOT, env=environment).returncode:
            failed.append(name)
        print(f"-- {name}: {time.monotonic() - start:.0f} s", flush=True)
    found = {name: one for name, one in report.read(path).items() if name in (chosen.names or NAMES)}
    print(f"\n{page.summary(found)}\n{path}")
    if chosen.publish:
        page.publish()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
