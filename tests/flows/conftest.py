"""One local stack for every test in this folder that needs real servers and workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deployments import local


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local.Stack]:
    """A running stack with the real deployments; its folder has a space in its name, as people's folders do."""
    with local.running(tmp_path_factory.mktemp("a stack") / "state") as running:
        yield running
