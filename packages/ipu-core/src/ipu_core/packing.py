# SPDX-License-Identifier: Apache-2.0
"""Which sequences share a row: packers of a whole data set, of one batch, and of an epoch's batches; plain arithmetic.

The histogram packers are those of Krell et al., "Efficient Sequence Packing without Cross-contamination", 2021
(arXiv:2107.02027): they place all sequences of one length at a time, so that their time hardly grows with the data set.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .errors import PackingError

# Sequences of an epoch are dealt in the order of their lengths, each made this much longer or shorter at random.
_JITTER = 0.2
_DEALS, _SWAPS = 8, 400


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How many rows there are of each content.

    ::

        packing = lpfhp(Counter(lengths), 128)
        print(packing)                  # rows, sequences a row, efficiency
        packing.rows_of(lengths)        # the sequences of each row, by number

    Attributes:
        length: slots of a row.
        packs: the lengths of the sequences in a row, longest first, and how many rows are such.
    """

    length: int
    packs: tuple[tuple[tuple[int, ...], int], ...]

    @property
    def num_rows(self) -> int:
        """Rows."""
        return sum(count for _, count in self.packs)

    @property
    def num_sequences(self) -> int:
        """Sequences in all rows."""
        return sum(len(sizes) * count for sizes, count in self.packs)

    @property
    def efficiency(self) -> float:
        """The share of slots that hold a token."""
        tokens = sum(sum(sizes) * count for sizes, count in self.packs)
        return tokens / (self.length * self.num_rows) if self.packs else 1.0

    @property
    def sequences_per_row(self) -> float:
        """Sequences of a row, on average."""
        return self.num_sequences / self.num_rows if self.packs else 0.0

    def rows_of(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return the sequences of each row, by their numbers in `lengths`, which are those that were packed."""
        waiting: dict[int, list[int]] = defaultdict(list)
        for number, size in enumerate(lengths):
            waiting[size].append(number)
        sizes = itertools.chain.from_iterable(itertools.repeat(pack, count) for pack, count in self.packs)
        return [[waiting[size].pop() for size in row] for row in sizes]

    def __str__(self) -> str:
        return (
            f"{self.num_sequences} sequences in {self.num_rows} rows of {self.length}: "
            f"{self.sequences_per_row:.2f} a row, {self.efficiency:.1%} of the slots are used"
        )


def spfhp(histogram: Mapping[int, int], length: int) -> Packing:
    """Pack shortest-pack-first: each sequence, longest first, into the emptiest row, if it fits there.

    >>> print(spfhp({6: 1, 5: 1, 3: 1, 2: 2}, 10))
    5 sequences in 2 rows of 10: 2.50 a row, 90.0% of the slots are used

    Args:
        histogram: length -> how many sequences have it.
        length: slots of a row.

    Raises:
        PackingError: a sequence is longer than a row, or has no token.
    """
    return _packed(histogram, length, fullest_first=False)


def lpfhp(histogram: Mapping[int, int], length: int) -> Packing:
    """Pack longest-pack-first: each sequence, longest first, into the fullest row it fits in.

    Arguments and errors are those of `spfhp`; it mostly needs fewer rows.
    """
    return _packed(histogram, length, fullest_first=True)


def _packed(histogram: Mapping[int, int], length: int, *, fullest_first: bool) -> Packing:
    _refuse_sizes(histogram, length)
    # slots left -> what rows with so many hold, and how many rows are such
    rows: dict[int, list[tuple[tuple[int, ...], int]]] = defaultdict(list)
    for size in sorted(histogram, reverse=True):
        waiting = histogram[size]
        while waiting:
            left = _row_with_room(rows, size, fullest_first=fullest_first)
            sizes, count = rows[left].pop() if left is not None else ((), waiting)
            room = length if left is None else left
            # The fullest row stays the fullest while it takes more of the same; so does a row that alone has room.
            copies = min(waiting, room // size if fullest_first or left is None else 1)
            taken = min(count, waiting // copies)
            rows[room - copies * size].append((sizes + (size,) * copies, taken))
            if left is not None and taken < count:
                rows[left].append((sizes, count - taken))
            waiting -= copies * taken
    packs = Counter[tuple[int, ...]]()
    for sizes, count in itertools.chain.from_iterable(rows.values()):
        packs[sizes] += count
    return Packing(length=length, packs=tuple(sorted(packs.items(), reverse=True)))


def _row_with_room(rows: Mapping[int, Sequence[object]], size: int, *, fullest_first: bool) -> int | None:
    room = [left for left, of_them in rows.items() if of_them and left >= size]
    if not room:
        return None
    return min(room) if fullest_first else max(room)


def places(lengths: Sequence[int], *, rows: int, length: int) -> list[int] | None:
    """Return the slot, row * length + column, where each sequence of a batch begins; None where they do not fit.

    >>> places([4, 3, 6, 2], rows=2, length=8)
    [8, 12, 0, 6]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for fullest_first in (True, False):
        starts, used = [0] * len(lengths), [0] * rows
        for i in order:
            fitting = [row for row in range(rows) if used[row] + lengths[i] <= length]
            if not fitting:
                break
            row = (max if fullest_first else min)(fitting, key=used.__getitem__)
            starts[i] = row * length + used[row]
            used[row] += lengths[i]
        else:
            return starts
    return None


def deal(
    lengths: Sequence[int], *, batch_size: int, rows: int, length: int, seed: int | str, drop_last: bool = True
) -> list[list[int]]:
    """Return the sequences of each batch of one epoch, by number, such that every batch fits a grid of rows.

    Batches are random, but have nearly equally many tokens each: sequences are dealt by length, and where a batch
    does not fit it swaps some with others. Of the incomplete last batch, the random rest, nothing is given with
    `drop_last`.

    Raises:
        PackingError: they do not fit.
    """
    _refuse_sizes(Counter(lengths), length)
    for attempt in range(_DEALS):
        generator = random.Random(f"{seed}-{attempt}")
        batches = _dealt(lengths, batch_size, generator, drop_last=drop_last)
        if _swapped_to_fit(batches, lengths, rows, length, generator):
            return batches
    raise PackingError(
        f"{batch_size} sequences of {sum(lengths) / len(lengths):.1f} tokens on average, {max(lengths)} at most, do "
        f"not fit {rows} rows of {length}: give more rows, longer ones, or smaller batches"
    )


def fewest_rows(
    lengths: Sequence[int], *, batch_size: int, length: int, seed: int | str = 0, drop_last: bool = True
) -> int:
    """Return the fewest rows into which the batches of every epoch fit: with which three were dealt without swaps.

    >>> fewest_rows([5, 3, 4, 4] * 10, batch_size=4, length=8)
    2

    Raises:
        PackingError: a sequence is longer than a row, or has no token.
    """
    _refuse_sizes(Counter(lengths), length)
    if not lengths:
        return 1
    epochs = [
        _dealt(
            lengths, batch_size, random.Random(f"{seed}-{epoch}"), drop_last=drop_last and len(lengths) >= batch_size
        )
        for epoch in range(3)
    ]
    batches = sorted(([lengths[i] for i in batch] for batch in itertools.chain(*epochs)), key=sum, reverse=True)
    rows = max(1, -(-sum(batches[0]) // length))
    while any(places(batch, rows=rows, length=length) is None for batch in batches):
        rows += 1
    return rows


def _dealt(lengths: Sequence[int], batch_size: int, generator: random.Random, *, drop_last: bool) -> list[list[int]]:
    numbers = list(range(len(lengths)))
    generator.shuffle(numbers)
    numbers.sort(key=lambda i: -lengths[i] * generator.uniform(1 - _JITTER, 1 + _JITTER))
    # The incomplete batch has its share of every length, too.
    rest = len(numbers) % batch_size
    kept_out = {(2 * k + 1) * len(numbers) // (2 * rest) for k in range(rest)}
    last = [numbers[k] for k in sorted(kept_out)]
    numbers = [number for k, number in enumerate(numbers) if k not in kept_out]
    batches: list[list[int]] = [[] for _ in range(len(numbers) // batch_size)]
    tokens = [0] * len(batches)
    for start in range(0, len(numbers), max(1, len(batches))):
        # Of each round, every batch gets one: the longest goes to the batch with the fewest tokens so far.
        dealt = sorted(numbers[start : start + len(batches)], key=lambda i: -lengths[i])
        for i, batch in zip(dealt, sorted(range(len(batches)), key=tokens.__getitem__), strict=True):
            batches[batch].append(i)
            tokens[batch] += lengths[i]
    generator.shuffle(batches)
    for each in batches:
        generator.shuffle(each)
    return batches if drop_last or not last else [*batches, last]


def _swapped_to_fit(
    batches: list[list[int]], lengths: Sequence[int], rows: int, length: int, generator: random.Random
) -> bool:
    """Swap sequences between batches until each fits, and say whether that is so."""

    def fits(batch: Sequence[int]) -> bool:
        return places([lengths[i] for i in batch], rows=rows, length=length) is not None

    for mine, batch in enumerate(batches):
        if fits(batch):
            continue
        for other, i, j in _swaps(batches, mine, generator):
            if lengths[batch[i]] <= lengths[batches[other][j]]:
                continue
            swapped = [*batch[:i], batches[other][j], *batch[i + 1 :]]
            theirs = [*batches[other][:j], batch[i], *batches[other][j + 1 :]]
            if fits(swapped) and (fits(theirs) or other > mine):
                batches[other], batches[mine] = theirs, swapped
                break
        else:
            return False
    return True


def _swaps(batches: Sequence[Sequence[int]], mine: int, generator: random.Random) -> Iterator[tuple[int, int, int]]:
    for _ in range(_SWAPS if len(batches) > 1 else 0):
        other = generator.randrange(len(batches) - 1)
        other += other >= mine
        yield other, generator.randrange(len(batches[mine])), generator.randrange(len(batches[other]))


def _refuse_sizes(histogram: Mapping[int, int], length: int) -> None:
    over = {size: count for size, count in histogram.items() if count and size > length}
    if over:
        raise PackingError(
            f"{sum(over.values())} sequences are longer than a packed row of {length}, the longest one has {max(over)} "
            "tokens: truncate them, or give longer rows"
        )
    if any(count and size < 1 for size, count in histogram.items()):
        raise PackingError("a sequence has no token: leave it out")
