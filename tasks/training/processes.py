"""One training run in several processes, under torch's elastic launcher.

All processes plan the same batches. Each encodes its share of a batch's texts; the vectors are gathered, so every
process computes the loss of the whole batch, with all its negatives; each carries the gradient back through its own
share, and the parameters' gradients are summed. The result is that of one process up to rounding, whatever the
number. When a worker dies the launcher starts all again, and they go on from the last checkpoint.

Several nodes: each runs the same training, with the same rows and settings, and they find each other at a rendezvous,
which is an address (host and port) on one of them and a name for the run (`Rendezvous`). Which process leads is for
the rendezvous to say, so any node may turn out to be the one that saves; the others see that nothing was saved.
On the node of the night's flow nothing changes but `RATCHET_RENDEZVOUS` and `training.nodes`; on each further node
`ratchet join RUN_ID` with the same `RATCHET_RENDEZVOUS` does the same step of the night (`night.join`). Restarts after
a dead worker work across nodes too. Tested with two launchers on one machine, not on two.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Result = TypeVar("Result")

_RESTARTS: Final = 3
"""How often all workers are started again after one has died."""

_POLL: Final = 0.2
"""Seconds between looks at the workers and at their progress."""


@dataclass(frozen=True)
class Group:
    """This process's place among those that train together; alone by default."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that reports and saves."""
        return self.rank == 0

    def gather(self, own: Tensor, rows: int) -> Tensor:
        """Put together rows that were dealt out one by one (rank r has rows r, r + size, ...).

        Args:
            own: this process's rows, shape (its share, d), with or without gradients.
            rows: how many there are in all.

        Returns:
            All rows in order, shape (rows, d); gradients flow back into this process's own.
        """
        if self.size == 1:
            return own
        gathered: Tensor = _Gather.apply(own, rows, self)  # type: ignore[no-untyped-call]
        return gathered

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each parameter's gradient by the sum over all processes."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def agree(self, value: float) -> float:
        """The leader's value, in all processes: for what each might measure or see otherwise."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=_device())
        dist.broadcast(shared, src=0)
        return float(shared.item())

    def total(self, value: int) -> int:
        """The sum of a count over all processes."""
        if self.size == 1:
            return value
        summed = torch.tensor([value], dtype=torch.int64, device=_device())
        dist.all_reduce(summed)
        return int(summed.item())


ALONE: Final = Group()
"""The group of a single process."""


class _Gather(torch.autograd.Function):
    """All-gather whose backward takes this process's rows: the loss is the same in all, so nothing is to be summed."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: int, group: Group) -> Tensor:
        ctx.group = group
        share = -(-rows // group.size)
        padded = own.new_zeros(share, own.shape[1])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(group.size)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:rows]  # (share, size, d) -> (rows, d)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.group.rank :: ctx.group.size].contiguous(), None, None


@dataclass(frozen=True)
class Rendezvous:
    """Where the nodes of one run meet.

    Attributes:
        nodes: how many there are; all must join before the first step.
        endpoint: host:port of one of them, the same on all; that host opens the port. Nobody else may reach it.
        run_id: the run's name, the same on all: two runs at one address stay apart.
    """

    nodes: int
    endpoint: str
    run_id: str

    @classmethod
    def from_environment(cls, nodes: int, run_id: str) -> Rendezvous | None:
        """The rendezvous at RATCHET_RENDEZVOUS (host:port); None for a single node, or where it is not set."""
        endpoint = os.environ.get("RATCHET_RENDEZVOUS", "")
        return cls(nodes, endpoint, run_id) if nodes > 1 and endpoint else None


def launch(
    processes: int,
    function: Callable[..., Result],
    *arguments: Any,
    on_line: Callable[..., None],
    rendezvous: Rendezvous | None = None,
) -> Result:
    """Run `function(group, report, *arguments)` in that many processes of this machine; returns the first one's result.

    `report(*values)` in the leader calls `on_line(*values)` on its machine. The workers are started anew, all of them,
    when one dies, up to three times; what they have not stored by then is done again. With a rendezvous every node
    calls this, and all their processes are one group, of which the leader may be on another node.

    Raises:
        ChildFailedError: they died more often, or the function failed.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    where = rendezvous or Rendezvous(1, "127.0.0.1:0", uuid.uuid4().hex)
    configuration = LaunchConfig(
        min_nodes=where.nodes,
        max_nodes=where.nodes,
        nproc_per_node=processes,
        run_id=where.run_id,
        rdzv_backend="c10d",
        rdzv_endpoint=where.endpoint,
        max_restarts=_RESTARTS,
        monitor_interval=_POLL,
        start_method="spawn",
    )
    with TemporaryDirectory() as folder:
        lines = Path(folder) / "lines"
        with _followed(lines, on_line):
            results = elastic_launch(configuration, _worker)(lines, function, arguments)
    result: Result = results[min(results)]  # by rank in the group; only those of this machine
    return result


def _worker(lines: Path, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    """Join the other processes, run the function, leave."""
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(max(1, torch.get_num_threads() // local))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    group = Group(dist.get_rank(), dist.get_world_size())

    def report(*values: object) -> None:
        if group.leads:
            with lines.open("a") as file:
                file.write(json.dumps(values) + "\n")

    result = function(group, report, *arguments)
    dist.destroy_process_group()  # not after an error: it would wait for the others, who wait for this process
    return result


@contextmanager
def _followed(lines: Path, on_line: Callable[..., None]) -> Iterator[None]:
    """Call `on_line` with each line that appears in a file, until the block ends and all are read."""
    done = threading.Event()

    def follow() -> None:
        lines.touch()
        with lines.open() as file:
            rest = ""
            while True:
                last = done.wait(_POLL)
                *whole, rest = (rest + file.read()).split("\n")
                for line in whole:
                    on_line(*json.loads(line))
                if last:
                    return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
