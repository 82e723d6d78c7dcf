"""`Team`: several processes that train one network, each with its part of every batch.

A launcher starts the same command several times and says by variables who is who: torchrun, or SLURM's srun. Each
process takes its places of the same batch, so that what is learned does not depend on how many there are, but for the
rounding of sums. The first one alone reads the scans and writes the run folder; the others read the prepared slices,
which lie in the run folder, on a disk that all can reach.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medseg.errors import RunError
from medseg.models import Network

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""For each other: while the first process prepares the scans the rest waits. A process that died is the launcher's to
notice."""


@dataclass(frozen=True)
class Place:
    """One process among those that a launcher started.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        local: its number on its machine.
        address: where the first one listens; empty when torch finds it by itself.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    address: str = ""


def place_of(environment: Mapping[str, str] = os.environ) -> Place:
    """Return the place that a launcher gave to this process; alone without one.

    Raises:
        RunError: RUN-LAUNCH when the variables contradict each other.
    """
    try:
        if "RANK" in environment and "WORLD_SIZE" in environment:  # torchrun
            found = Place(
                rank=int(environment["RANK"]),
                count=int(environment["WORLD_SIZE"]),
                local=int(environment.get("LOCAL_RANK", 0)),
            )
        elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # srun; a batch script alone has no such step
            found = Place(
                rank=int(environment["SLURM_PROCID"]),
                count=int(environment["SLURM_STEP_NUM_TASKS"]),
                local=int(environment["SLURM_LOCALID"]),
                address=_slurm_address(environment),
            )
        else:
            return Place()
    except (KeyError, ValueError) as error:
        advice = "Start it with torchrun or srun, or unset the variables of a launcher."
        raise RunError(
            "RUN-LAUNCH", "environment", f"a variable of the launcher is missing: {error}", advice
        ) from error
    if not 0 <= found.rank < found.count or found.local < 0:
        advice = "Start it with torchrun or srun, or unset the variables of a launcher."
        raise RunError("RUN-LAUNCH", "environment", f"process {found.rank} of {found.count}", advice)
    return found


def _slurm_address(environment: Mapping[str, str]) -> str:
    """Return where the first task listens: the first machine, and a port of this step's own."""
    machines = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    found = re.match(r"([^,\[]*)(?:\[(\d+)[^\]]*\])?([^,\[]*)", machines)  # "gpu[07-09,12],login" begins with gpu07
    first = "".join(part or "" for part in found.groups()) if found else machines
    number = 16 * int(environment.get("SLURM_JOB_ID", 0)) + int(environment.get("SLURM_STEP_ID", 0))
    return f"tcp://{first}:{20000 + number % 20000}"


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees them; alone, everything below does nothing.

    Attributes:
        rank: of this process, from 0.
        count: of all.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def part(self, size: int) -> range:
        """Return the places of a batch that are this process's own: every `count`-th, so that all get of each kind."""
        return range(self.rank, size, self.count)

    def total(self, own: Tensor) -> Tensor:
        """Add up a tensor over the team. Its gradient is that of one's own part: `together` adds those up."""
        if self.count == 1:
            return own
        added: Tensor = _Total.apply(own)  # type: ignore[no-untyped-call]
        return added

    def together(self, network: Network) -> Callable[[Tensor], list[Tensor]]:
        """Return what gives the training logits; after `backward`, gradients are the mean over the team."""
        if self.count == 1:
            return network.training_logits
        return DistributedDataParallel(_TrainingLogits(network))

    def normalised_together(self, network: Network, device: torch.device) -> Network:
        """Let batch normalisation see the whole batch; on a GPU, since torch has it for no other device."""
        if self.count == 1 or device.type != "cuda":
            return network
        converted: Network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted

    def alike(self, network: Network) -> None:
        """Give running statistics, which each process gathers on its own part, the first one's values."""
        for value in network.buffers() if self.count > 1 else ():
            dist.broadcast(value, 0)

    def gather(self, own: T) -> list[T]:
        """Return everybody's object, by rank."""
        if self.count == 1:
            return [own]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, own)
        return found

    def any(self, own: bool) -> bool:
        """Return whether anybody says yes."""
        return any(self.gather(own))

    def share(self, make: Callable[[], T]) -> T:
        """Let the first process make something, and give it to all; what it raises is raised in all."""
        if self.count == 1:
            return make()
        made: list[Any] = [None, None]
        if self.first:
            try:
                made = [make(), None]
            except Exception as error:  # noqa: BLE001  it is raised below, here too
                made = [None, error]
        dist.broadcast_object_list(made)
        if made[1] is not None:
            raise made[1]
        result: T = made[0]
        return result


ALONE = Team()


class _Total(torch.autograd.Function):
    """A sum over the team whose gradient goes to one's own part."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:  # noqa: ANN401  torch's own
        added = own.clone()
        dist.all_reduce(added)
        return added

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        return gradient


class _TrainingLogits(nn.Module):
    """A network whose call gives its training logits, as DistributedDataParallel calls what it wraps."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.network.training_logits(images)


@contextmanager
def joined(place: Place, device: torch.device) -> Iterator[Team]:
    """Join the other processes for a while; once joined, a process stays so until it ends.

    Who left and joined again could meet the store of the first time, while the first process waits at the second.

    Args:
        place: as the launcher says.
        device: to train on; of several GPUs each process on a machine makes its own the current one.

    Raises:
        RunError: RUN-LAUNCH when the others cannot be reached, or there are not enough GPUs.
    """
    if place.count == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(_own_gpu(place))
    if not dist.is_initialized():
        _meet(place)
        atexit.register(dist.destroy_process_group)
    try:
        yield Team(place.rank, place.count)
    except BaseException:
        atexit.unregister(dist.destroy_process_group)  # others may wait for what never comes; the launcher ends them
        raise


def _meet(place: Place) -> None:
    """Find the other processes.

    Raises:
        RunError: RUN-LAUNCH.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        where = place.address or None  # torch knows torchrun's own
        dist.init_process_group(backend, where, PATIENCE, rank=place.rank, world_size=place.count)
    except (RuntimeError, ValueError) as error:
        problem = f"process {place.rank} of {place.count} cannot join the others: {str(error).splitlines()[0]}"
        raise RunError("RUN-LAUNCH", "environment", problem, "Start it again with torchrun or srun.") from error


def _own_gpu(place: Place) -> int:
    """Return the number of the GPU of a process; where the launcher shows each process one GPU only, that one."""
    seen = torch.cuda.device_count()
    if seen > 1 and place.local >= seen:
        problem = f"process {place.local + 1} on a machine with {seen} GPUs"
        raise RunError("RUN-LAUNCH", "train.device", problem, "Start as many processes as there are GPUs.")
    return place.local % seen
