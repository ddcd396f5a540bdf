"""The processes of a distributed run: `torchrun` starts them, this joins them.

Every process samples the same sub-networks (all draws depend on seed, phase and step alone), runs
them on its part of the batch, and adds up gradients once a step, after the last backward pass: no
parameter that an earlier sub-network used is left out. The weights of all processes stay equal.

Batch norm takes its statistics over chunks of `Recipe.batch_norm_size` images inside each process
and synchronises nothing; running statistics are those of the first process, influence no weight
and are recalibrated before any sub-network is used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from onceforall.checks import expect
from onceforall.errors import InvalidConfiguration, TrainingDiverged

# The first process measures and writes while the others wait.
PATIENCE = timedelta(hours=1)


def torch_device(name: str) -> torch.device:
    """A device of torch that works here; "cuda" is this process's own among those that torchrun started.

    Only that one is touched: every process would otherwise take memory of the first. Raises InvalidConfiguration.
    """
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidConfiguration(f"device {name!r}: {reason}; choose cpu, or cuda where there is one") from error
    return device


class Processes:
    """This process among those of the run, alone without torchrun.

    As a context it leaves the group at the end, unless by an error: NCCL would wait for the others
    there, and they for this process, which torchrun could not see fail.
    """

    def __init__(self, device: str) -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch_device(device)
        self._joined = False
        if self.world > 1 and not dist.is_initialized():
            self._join()
            self._joined = True

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._joined and kind is None:
            dist.destroy_process_group()

    def _join(self) -> None:
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.set_device(self.device)
        store, rank, world = next(dist.rendezvous("env://", timeout=PATIENCE))  # type: ignore[attr-defined]
        # Each group has a part of the store to itself: in one that another group used before, say in an earlier
        # call of `train`, processes find the addresses of that group.
        turn = store.add(f"onceforall/{rank}", 1)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=dist.PrefixStore(f"onceforall/{turn}", store),  # type: ignore[attr-defined]
            rank=rank,
            world_size=world,
            timeout=PATIENCE,
            device_id=self.device if cuda else None,
        )

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and measures."""
        return self.rank == 0

    def check_batch(self, batch_size: int, chunk: int) -> None:
        """Raises InvalidConfiguration where a batch cannot be shared out in whole chunks (0: any)."""
        each = batch_size // self.world
        whole = f"a multiple of the {self.world} processes, 2 images or more for each"
        expect("batch_size", batch_size, batch_size % self.world == 0 and each >= 2, whole)
        divisor = f"a divisor of the {each} images of each process"
        expect("batch_norm_size", chunk, not chunk or each % chunk == 0, divisor)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace each gradient by its sum over all processes, in one message."""
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()

    def agree(self, numbers: Tensor) -> bool:
        """Whether all processes give the same whole numbers [n]."""
        if self.world == 1:
            return True
        both = torch.stack([numbers, ~numbers])  # the largest ~n belongs to the smallest n
        dist.all_reduce(both, dist.ReduceOp.MAX)
        return torch.equal(both[0], ~both[1])

    def check_equal(self, parameters: Sequence[Tensor]) -> None:
        """Raises TrainingDiverged, in all processes alike, where they hold different weights (float32), NaN or not."""
        if self.world > 1 and not self.agree(torch.stack([_checksum(parameter) for parameter in parameters])):
            raise TrainingDiverged(
                "the processes hold different weights: use the same machines, torch and settings for all of them"
            )


def _checksum(values: Tensor) -> Tensor:
    """Of the bits of float32 values and their places: exact, so that it does not depend on the order of additions."""
    bits = values.detach().reshape(-1).view(torch.int32).long()
    return (bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum()
