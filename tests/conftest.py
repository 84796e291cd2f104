"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator

import boto3
import pytest

from deployments.stack import seaweedfs
from tasks.storage import Store


def pytest_configure(config: pytest.Config) -> None:
    """Keep all tests but those marked `gpu` off a GPU; heed SIGINT even where a shell started them in the background.

    The former is asked for by `-m gpu`: on a machine with a GPU the others would run on it by accident. That SIGINT is
    ignored would be inherited by the workers, which could then not be stopped.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweedfs.S3Server]:
    """A real S3 server (SeaweedFS) for the whole session, with a bucket named `ratchet`."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    with seaweedfs.running(folder) as server, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        for name, value in server.environment().items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="ratchet")
        yield server


@pytest.fixture(scope="session")
def bucket(s3_server: seaweedfs.S3Server) -> Store:
    """The bucket as one store: its client is shared, since making one costs more than most tests."""
    return Store.open("s3://ratchet")


@pytest.fixture
def store(bucket: Store) -> Store:
    """An empty store of its own on the real server; credentials are in the environment."""
    return Store(f"s3://ratchet/{uuid.uuid4().hex}", bucket._client)
