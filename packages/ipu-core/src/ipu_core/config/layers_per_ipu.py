# SPDX-License-Identifier: Apache-2.0
"""How many layers each IPU holds: pure arithmetic on lists of integers.

`-1` is a wildcard: the wildcards of a list share what the numbers leave, evenly, the remainder on the last of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import accumulate

from ..errors import IncompatibleIPUConfigError

logger = logging.getLogger(__name__)

WILDCARD = -1
AUTO = "auto"


def expand_layers_per_ipu(
    layers_per_ipu: Sequence[int], *, num_ipus: int, num_layers: int, name: str = "layers_per_ipu"
) -> tuple[int, ...]:
    """Replace the wildcards of `layers_per_ipu`, for a model of `num_layers` layers on `num_ipus` IPUs.

    >>> expand_layers_per_ipu([-1], num_ipus=4, num_layers=10)
    (2, 2, 2, 4)
    >>> expand_layers_per_ipu([1, -1, -1, 2], num_ipus=4, num_layers=8)
    (1, 2, 3, 2)

    One IPU holds every layer, whatever the list says (a list that says otherwise is logged as a warning).

    Raises:
        IncompatibleIPUConfigError: a value below -1, a list of another length than `num_ipus`, or numbers that do not
            add up to `num_layers`.
    """
    given = list(layers_per_ipu)
    if any(type(n) is not int or n < WILDCARD for n in given):
        raise IncompatibleIPUConfigError(
            f"`{name}={given}` has a value that is not an integer >= -1: give a number of layers, or -1 for a wildcard"
        )
    if num_ipus < 1:
        raise IncompatibleIPUConfigError(f"{num_ipus} IPUs cannot hold a model: give at least 1")
    if num_ipus == 1:
        if given not in ([WILDCARD], [num_layers]):
            logger.warning("`%s=%s` on one IPU: it holds all %d layers of the model", name, given, num_layers)
        return (num_layers,)
    if all(n == WILDCARD for n in given) and len(given) == 1:
        given = given * num_ipus
    if len(given) != num_ipus:
        raise IncompatibleIPUConfigError(
            f"`{name}={given}` lists {len(given)} IPUs, and one replica has {num_ipus}: "
            f"give {num_ipus} values, or `[-1]` to share the layers evenly"
        )
    placed = sum(n for n in given if n != WILDCARD)
    wildcards = [i for i, n in enumerate(given) if n == WILDCARD]
    left = num_layers - placed
    if left < 0 or (left > 0 and not wildcards):
        raise IncompatibleIPUConfigError(
            f"`{name}={given}` places {placed} layers, and the model has {num_layers}: "
            f"{'take away' if left < 0 else 'add'} {abs(left)}, or use -1 where the rest may go"
        )
    for position, ipu in enumerate(wildcards):
        share = left // len(wildcards)
        given[ipu] = share + (left - share * len(wildcards) if position == len(wildcards) - 1 else 0)
    return tuple(given)


def layer_ipus(layers_per_ipu: Sequence[int]) -> tuple[int, ...]:
    """Return the IPU of each layer, in order: ``(1, 2)`` becomes ``(0, 1, 1)``."""
    return tuple(ipu for ipu, count in enumerate(layers_per_ipu) for _ in range(count))


def rounds(layers_per_ipu: Sequence[int], num_rounds: int) -> list[int]:
    """Return the IPU of each layer when every IPU's layers are cut into as many parts as the pipeline goes round.

    >>> rounds([4, 2], 2)
    [0, 0, 1, 0, 0, 1]
    """
    return [
        ipu
        for part in range(num_rounds)
        for ipu, count in enumerate(layers_per_ipu)
        for _ in range(count * part // num_rounds, count * (part + 1) // num_rounds)
    ]


def round_starts(layers_per_ipu: Sequence[int], num_rounds: int) -> frozenset[int]:
    """Return the layers with which a round over the IPUs begins.

    >>> sorted(round_starts([4, 2], 2))
    [0, 3]
    """
    ends = [sum(count * part // num_rounds for count in layers_per_ipu) for part in range(num_rounds)]
    return frozenset(ends)


def encoder_decoder_cut(layers_per_ipu: Sequence[int], *, num_encoder_layers: int, name: str = "layers_per_ipu") -> int:
    """Return the number of leading IPUs that hold exactly the encoder, a power of two of them.

    The largest such cut wins: ``[6, 0, 0, 6]`` with 6 encoder layers is cut at 2. Decoders may have any number of IPUs.

    Raises:
        IncompatibleIPUConfigError: no cut leaves the encoder a power of two of IPUs.
    """
    totals = list(accumulate(layers_per_ipu))
    cuts = [i + 1 for i, total in enumerate(totals[:-1]) if total == num_encoder_layers]
    good = [cut for cut in cuts if _is_power_of_two(cut)]
    if not good:
        found = f"its cuts after {num_encoder_layers} layers leave {[(c, len(totals) - c) for c in cuts]} IPUs"
        raise IncompatibleIPUConfigError(
            f"`{name}={list(layers_per_ipu)}` cannot be split after {num_encoder_layers} encoder layers: "
            f"{found if cuts else 'an IPU would hold layers of both'}; encoder and decoder cannot share an IPU, "
            "and the encoder needs a power of two of them"
        )
    return max(good)


def _is_power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0
