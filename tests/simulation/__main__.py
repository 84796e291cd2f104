"""`python -m tests.simulation --schedules N [--first S] [--plant NAME]`, or `--seed S` to replay one.

Prints schedules per second, and for each failure the seed that replays it; exit status 1 when there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import traceback

from tests.simulation.planted import PLANTED, planted
from tests.simulation.world import Violation, simulate


def main() -> int:
    """Run schedules; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--schedules", type=int, default=500, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--plant", choices=sorted(PLANTED), help="with this fault in the code")
    given = parser.parse_args()
    seeds = [given.seed] if given.seed is not None else range(given.first, given.first + given.schedules)
    failed = requests = changes = 0
    began, used = time.monotonic(), time.process_time()
    with planted(given.plant) if given.plant else contextlib.nullcontext():
        for seed in seeds:
            try:
                world = simulate(seed)
            except (Violation, Exception):  # noqa: BLE001 - whatever ends a schedule is what it is for to find
                failed += 1
                print(f"--- seed {seed}: replay with `python -m tests.simulation --seed {seed}`", flush=True)
                traceback.print_exc(limit=-6, file=sys.stdout)
            else:
                requests += world.server.requests
                changes += len(set(world.told))
    seconds, processor = time.monotonic() - began, time.process_time() - used
    print(
        f"{len(seeds):,} schedules, {failed} failed, {requests:,} requests, {changes:,} changes of production: "
        f"{len(seeds) / seconds:.1f} schedules/s, {len(seeds) / processor:.1f} per CPU second"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
