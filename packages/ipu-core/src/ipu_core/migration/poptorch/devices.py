# SPDX-License-Identifier: Apache-2.0
"""The pool of IPUs that executors of this process share, as many as `IPU_POOL_SIZE` says, 64 by default."""

from __future__ import annotations

import os

from .errors import createPoptorchError, logger

MOST = 64  # what one process can have
HARDWARE_VERSION = 2


class Pool:
    """IPUs that are held by executors; each is held by one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        """How many nobody holds."""
        return self.size - sum(self.held.values())

    def acquire(self, holder: object, num_ipus: int) -> None:
        """Give IPUs to a holder.

        Raises:
            Error: there are not as many free.
        """
        if num_ipus > self.num_free:
            raise createPoptorchError(
                f"Failed to acquire {num_ipus} IPU(s): there are {self.size}, and {self.size - self.num_free} are held "
                "by other executors: detach these with detachFromDevice() or destroy(), or use fewer IPUs"
            )
        self.held[id(holder)] = num_ipus

    def release(self, holder: object) -> None:
        """Take back what a holder has."""
        self.held.pop(id(holder), None)


def reserved(num_ipus: int, *, rounds: bool) -> int:
    """Return how many IPUs are reserved where so many are used: a power of two.

    Args:
        num_ipus: those that the blocks of all replicas are on.
        rounds: whether the next power of two will do.

    Raises:
        Error: more than a process can have, or no power of two.
    """
    if num_ipus > MOST:
        raise createPoptorchError(
            f"Too many IPUs requested ({num_ipus}). Experiments that need more than {MOST} IPUs require distributed "
            "execution."
        )
    least = 1 << (num_ipus - 1).bit_length()
    if least == num_ipus:
        return num_ipus
    if not rounds:
        raise createPoptorchError(
            f"The model specifies the use of {num_ipus} IPUs, however PopTorch must reserve a minimum of {least} in "
            "order to allow the model to run, because PopTorch must reserve a power of 2 or maximum of 64 IPUs per "
            "process. Please reconfigure your model to use a different number of IPUs or set "
            "poptorch.Options().autoRoundNumIPUs(True)."
        )
    logger.warning("Reserving %d IPUs when the model specifices the use of only %d.", least, num_ipus)
    return least


POOL = Pool(int(os.environ.get("IPU_POOL_SIZE", MOST)))


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Return whether the pool has so many IPUs."""
    return num_ipus <= POOL.size


def ipuHardwareVersion() -> int:
    """Return the kind of IPU that this package stands in for, 2."""
    return HARDWARE_VERSION
