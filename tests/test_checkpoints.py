"""Checkpoints in a real store: whole or not at all, of this run or none; and a killed fine-tune that goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.storage import Store, StoreError
from tasks.training import Trained, train
from tasks.training.checkpoints import Checkpoint, Checkpoints
from tasks.training.examples import Examples
from tasks.training.loop import Loop
from tasks.training.processes import ALONE
from tasks.training.start import FROM_BASE, open_start
from tests import tiny_models
from tests.test_training import DOCUMENTS, PAIRS, ROWS, dev_set, settings

PREFIX = "runs/one/checkpoints/"


def state(step: int, identity: str = "this run") -> Checkpoint:
    """A small checkpoint."""
    return Checkpoint({"weights": torch.full((2, 3), float(step))}, {"identity": identity, "losses": [0.1 * step]})


def test_the_newest_comes_back_exactly(store: Store) -> None:
    """Tensors and state of the last save, floats to the last bit; older ones are dropped but for one."""
    checkpoints = Checkpoints(store, PREFIX)
    assert checkpoints.latest("this run") is None
    for step in (2, 9, 10):
        checkpoints.save(step, state(step))
    found = checkpoints.latest("this run")
    assert found is not None
    assert torch.equal(found.tensors["weights"], torch.full((2, 3), 10.0))
    assert found.state["losses"] == [1.0]
    assert [entry.key.removeprefix(PREFIX)[:12] for entry in store.entries(PREFIX)] == ["000000000009", "000000000010"]


def test_a_damaged_checkpoint_is_passed_over(store: Store) -> None:
    """Bytes that do not hash to the name are not read; the one before is taken."""
    checkpoints = Checkpoints(store, PREFIX)
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    newest = max(entry.key for entry in store.entries(PREFIX))
    store.put(newest, store.get(newest).body[:-1])
    found = checkpoints.latest("this run")
    assert found is not None
    assert found.state["losses"] == [0.1]


def test_a_disk_that_takes_nothing_is_an_error_of_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it is full: the training, which goes on without a checkpoint, tells that apart from its own errors."""
    monkeypatch.setattr(tempfile, "tempdir", "/does/not/exist")
    with pytest.raises(StoreError, match="cannot put a checkpoint together in /does/not/exist"):
        Checkpoints(store, PREFIX).save(1, state(1))
    assert list(store.entries(PREFIX)) == []


def test_another_runs_checkpoint_is_not_taken(store: Store) -> None:
    """Other rows or settings: another identity, as if there were no checkpoint."""
    checkpoints = Checkpoints(store, PREFIX)
    checkpoints.save(1, state(1, "other"))
    assert checkpoints.latest("this run") is None


WORKER = """
import json, sys
from pathlib import Path
from tasks.training import Checkpoints
from tasks.storage import Store, StoreError
from tests.test_checkpoints import PREFIX, fine_tune
url, base, folder, side = sys.argv[1:]
print("ready", flush=True)
kept = Checkpoints(Store.open(url), PREFIX)
trained = fine_tune(base, Path(folder), kept, lambda *step: print(*step, flush=True), side)
print(json.dumps({"losses": trained.losses, "resumed": trained.resumed, "best_step": trained.best_step}), flush=True)
"""


def fine_tune(
    base: str, folder: Path, checkpoints: Checkpoints | None, on_progress: Any = None, side: str = "both"
) -> Trained:
    """A run of 27 steps with dev scores, and a checkpoint after each step where they are kept."""
    training = settings(base, checkpoint_minutes=1e-9, side=side)
    return train(ROWS, dev_set(PAIRS), DOCUMENTS, training, folder, checkpoints=checkpoints, on_progress=on_progress)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["both", "query"])
def test_a_fine_tune_killed_three_times_ends_as_if_undisturbed(store: Store, tmp_path: Path, side: str) -> None:
    """SIGKILL at three random steps, each time gone on by a new process: the same loss curve, choice and weights."""
    base = str(tiny_models.save(tmp_path / "base"))
    undisturbed = fine_tune(base, tmp_path / "undisturbed", None, side=side)
    command = [sys.executable, "-c", WORKER, store.url, base, str(tmp_path / "model"), side]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    kills = sorted(np.random.default_rng().choice(np.arange(1, 22), 3, replace=False).tolist())
    for kill in kills:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as worker:
            assert worker.stdout is not None
            steps = (int(line.split()[0]) for line in worker.stdout if line[0].isdigit())
            assert any(step >= kill for step in steps), f"no step {kill}"  # the one before may have run past it
            worker.send_signal(signal.SIGKILL)
        assert worker.returncode == -signal.SIGKILL
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["resumed"] >= kills[-1] - 1  # the step of the last kill may not have been stored yet
    assert found["best_step"] == undisturbed.best_step
    np.testing.assert_allclose(found["losses"], undisturbed.losses, rtol=1e-4)


def test_a_resumed_run_gives_the_same_bytes(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, stopped by an error at step 11: the model that comes out is the undisturbed one, byte by byte."""
    base = str(tiny_models.save(tmp_path / "base"))
    fine_tune(base, tmp_path / "undisturbed", None)

    def fail(step: int, *_: object) -> None:
        if step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(base, tmp_path / "model", Checkpoints(store, PREFIX), fail)
    trained = fine_tune(base, tmp_path / "model", Checkpoints(store, PREFIX))
    assert trained.resumed == 10
    for path in (tmp_path / "undisturbed").rglob("*.*"):
        assert (tmp_path / "model" / path.relative_to(tmp_path / "undisturbed")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("asked_during", "kept"), [("_gradients", 11), ("optimizer", 0)])
def test_a_run_that_is_asked_to_end_keeps_what_is_whole(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_during: str, kept: int
) -> None:
    """In step 12, with no checkpoint due: before the weights move, the 11 steps are kept; while they move, nothing."""
    base = str(tiny_models.save(tmp_path / "base"))
    undisturbed = train(ROWS, None, [], settings(base), tmp_path / "undisturbed")
    steps = 0

    def terminated(*_: object, **__: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 12:
            raise KeyboardInterrupt

    def first(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: (terminated(), function(*args, **options))[1]

    where = (torch.optim.AdamW, "step") if asked_during == "optimizer" else (Loop, "_plain_gradients")
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "estimate", lambda *_: None)  # it computes gradients as well
        patched.setattr(*where, first(getattr(*where)))
        with pytest.raises(KeyboardInterrupt):
            train(ROWS, None, [], settings(base), tmp_path / "model", checkpoints=Checkpoints(store, PREFIX))
    again = train(ROWS, None, [], settings(base), tmp_path / "model", checkpoints=Checkpoints(store, PREFIX))
    assert again.resumed == kept
    assert again.losses == undisturbed.losses


def test_other_settings_begin_at_the_beginning(store: Store, tmp_path: Path) -> None:
    """A checkpoint made with another seed is not this run's: nothing of it is used."""
    base = str(tiny_models.save(tmp_path / "base"))
    checkpoints = Checkpoints(store, PREFIX)
    for place, seed in enumerate((1, 2)):
        training = settings(base, seed=seed, checkpoint_minutes=1e-9, epochs=1)
        trained = train(ROWS, None, [], training, tmp_path / str(place), checkpoints=checkpoints)
        assert trained.resumed == 0
    assert train(ROWS, None, [], training, tmp_path / "again", checkpoints=checkpoints).resumed == trained.steps


def test_precision_and_kernel_go_on_as_they_were(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that began in bf16 goes on so, where fp32 would be chosen now."""
    base = str(tiny_models.save(tmp_path / "base"))
    training = settings(base, checkpoint_minutes=1e-9, epochs=1, precision="auto")
    checkpoints = Checkpoints(store, PREFIX)
    with monkeypatch.context() as earlier:
        earlier.setattr("tasks.training.hardware.half", lambda _: "bf16")
        first = train(ROWS, None, [], training, tmp_path / "one", checkpoints=checkpoints)
    monkeypatch.setattr("tasks.training.hardware.half", lambda _: "fp32")
    again = train(ROWS, None, [], training, tmp_path / "two", checkpoints=checkpoints)
    assert (first.precision, first.packed) == (again.precision, again.packed) == ("bf16", False)
    assert again.resumed == first.steps
    monkeypatch.setattr("tasks.training.hardware.computes", lambda *_: False)
    assert train(ROWS, None, [], training, tmp_path / "three", checkpoints=checkpoints).precision == "fp32"


def test_a_checkpoint_of_another_kind_of_device_has_another_identity(tmp_path: Path) -> None:
    """A CPU's run is not gone on with on a GPU: they compute other numbers."""
    training = settings(str(tiny_models.save(tmp_path / "base")))
    loop = Loop(open_start(training), FROM_BASE, Examples(ROWS), training, 0.0, ALONE)
    on_cpu = loop.identity
    del loop.identity  # it is computed once
    loop.model.to("meta")
    assert loop.identity != on_cpu


class Failing(Checkpoints):
    """Checkpoints of which some cannot be stored."""

    def __init__(self, store: Store, failing: set[int]) -> None:
        super().__init__(store, PREFIX)
        self.failing = failing

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Refuse the steps that are to fail."""
        if step in self.failing:
            raise StoreError("the credentials have expired")
        super().save(step, checkpoint)


def test_checkpoints_that_keep_failing_end_the_run(store: Store, tmp_path: Path) -> None:
    """Three in a row do, as an error of the store, which the step tries again; two, and two more later, do not."""
    base = str(tiny_models.save(tmp_path / "base"))
    training = settings(base, epochs=1, checkpoint_minutes=1e-9)
    seen: list[int] = []

    def run(failing: set[int]) -> Trained:
        seen.clear()
        checkpoints = Failing(store, failing)
        folder = tmp_path / str(len(failing))
        return train(
            ROWS, None, [], training, folder, checkpoints=checkpoints, on_progress=lambda step, *_: seen.append(step)
        )

    with pytest.raises(StoreError, match="3 checkpoints in a row could not be stored: the credentials have expired"):
        run({4, 5, 6, 7, 8})
    assert seen[-1] == 6
    trained = run({4, 5, 8, 9})
    assert (trained.resumed, trained.steps) == (3, 9)
