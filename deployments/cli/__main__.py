"""`python -m deployments.cli`: the same as the command `ratchet`."""

from deployments.cli import main

main()
