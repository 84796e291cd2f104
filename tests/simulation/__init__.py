"""A deterministic simulation of everything that happens to a store, driven by one seed.

`server` is a model of an S3 server in memory, `actors` takes turns at every request, `world` lets uploads, nights,
rollbacks, releases, erasures and retention run on the real code and holds what must stay true, `planted` breaks the
code in known ways. `python -m tests.simulation --schedules N` runs N seeds; `--seed S` replays one.
"""
