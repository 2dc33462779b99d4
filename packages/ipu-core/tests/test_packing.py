# SPDX-License-Identifier: Apache-2.0
"""Packers place every sequence once and fill no row beyond its length; an epoch's batches all fit."""

import random
from collections import Counter

import pytest
from ipu_core.errors import PackingError
from ipu_core.packing import deal, fewest_rows, lpfhp, places, spfhp

PACKERS = pytest.mark.parametrize("packer", [spfhp, lpfhp], ids=lambda packer: packer.__name__)


def short_sentences(count: int, seed: int = 0) -> list[int]:
    """Draw lengths like those of SST-2: 3 to 66, a mean near 12.6, skewed to the right."""
    generator = random.Random(seed)
    drawn = (round(3 + generator.gammavariate(1.3, 7.4)) for _ in iter(int, 1))
    return [next(size for size in drawn if size <= 66) for _ in range(count)]


def one_by_one(lengths, length, *, fullest_first):
    """Pack without a histogram: each sequence, longest first, into the fullest or emptiest row with room."""
    rows: list[list[int]] = []
    for size in sorted(lengths, reverse=True):
        room = [row for row in rows if sum(row) + size <= length]
        (max(room, key=sum) if fullest_first else min(room, key=sum)).append(size) if room else rows.append([size])
    return Counter(tuple(row) for row in rows)


@PACKERS
@pytest.mark.parametrize("seed", range(5))
def test_every_sequence_is_in_one_row_and_no_row_is_too_full(packer, seed):
    lengths = short_sentences(500, seed)
    packing = packer(Counter(lengths), 80)
    rows = packing.rows_of(lengths)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 80
    assert (packing.num_rows, packing.num_sequences) == (len(rows), 500)
    assert packing.efficiency == pytest.approx(sum(lengths) / (80 * len(rows)))


@PACKERS
@pytest.mark.parametrize("seed", range(20))
def test_a_histogram_is_packed_as_its_sequences_are_one_by_one(packer, seed):
    generator = random.Random(seed)
    lengths = [generator.randint(1, 12) for _ in range(60)]
    expected = one_by_one(lengths, 16, fullest_first=packer is lpfhp)
    assert packer(Counter(lengths), 16).num_rows == sum(expected.values())


def test_the_shortest_row_or_the_longest_one_is_filled_first():
    histogram = {7: 1, 5: 1, 3: 1, 2: 1}
    assert spfhp(histogram, 10).packs == (((7, 2), 1), ((5, 3), 1))
    assert lpfhp(histogram, 10).packs == (((7, 3), 1), ((5, 2), 1))
    assert lpfhp({4: 5}, 8).packs == (((4, 4), 2), ((4,), 1))
    assert spfhp({}, 8).packs == ()


@PACKERS
def test_short_sentences_fill_their_rows(packer):
    packing = packer(Counter(short_sentences(5000)), 128)
    assert packing.efficiency > 0.95
    assert str(packing).startswith(f"5000 sequences in {packing.num_rows} rows of 128: 10.")


@PACKERS
def test_a_sequence_longer_than_a_row_is_refused_with_how_many_there_are(packer):
    with pytest.raises(
        PackingError, match="3 sequences are longer than a packed row of 8, the longest one has 12 tokens"
    ):
        packer({12: 1, 9: 2, 3: 5}, 8)
    with pytest.raises(PackingError, match="a sequence has no token"):
        packer({0: 1, 3: 1}, 8)


def test_places_do_not_overlap_and_stay_in_their_row():
    lengths = [5, 3, 3, 3, 2, 4]
    starts = places(lengths, rows=2, length=10)
    slots = [slot for start, size in zip(starts, lengths, strict=True) for slot in range(start, start + size)]
    assert len(set(slots)) == 20
    assert all(start // 10 == (start + size - 1) // 10 for start, size in zip(starts, lengths, strict=True))
    assert places([*lengths, 1], rows=2, length=10) is None
    assert places([], rows=1, length=4) == []


@pytest.mark.parametrize("count", [1, 15, 16, 17, 250])
@pytest.mark.parametrize("drop_last", [True, False])
def test_an_epoch_has_each_sequence_once_and_every_batch_fits(count, drop_last):
    lengths = short_sentences(count)
    rows = fewest_rows(lengths, batch_size=16, length=70, drop_last=drop_last)
    batches = deal(lengths, batch_size=16, rows=rows, length=70, seed=3, drop_last=drop_last)
    given = [i for batch in batches for i in batch]
    assert len(set(given)) == len(given) == (count // 16 * 16 if drop_last else count)
    assert [len(batch) for batch in batches] == [16] * (count // 16) + [count % 16] * (not drop_last and count % 16 > 0)
    assert all(places([lengths[i] for i in batch], rows=rows, length=70) for batch in batches)


def test_batches_have_nearly_equally_many_tokens_and_differ_between_epochs():
    lengths = short_sentences(1600)
    first, second, again = (deal(lengths, batch_size=32, rows=4, length=128, seed=seed) for seed in (1, 2, 1))
    tokens = [sum(lengths[i] for i in batch) for batch in first]
    assert max(tokens) - min(tokens) <= 3
    assert first == again
    assert {frozenset(batch) for batch in first}.isdisjoint(frozenset(batch) for batch in second)


def test_sequences_are_swapped_where_a_batch_does_not_fit():
    # Rows of 10 and two sequences a batch: a 7 goes with a 3 alone, though 7 and 4 may be dealt together.
    lengths = [7, 3] * 6 + [6, 4] * 6
    for seed in range(5):
        batches = deal(lengths, batch_size=2, rows=1, length=10, seed=seed)
        assert sorted(sum(lengths[i] for i in batch) for batch in batches) == [10] * 12


def test_what_cannot_fit_is_refused_with_the_numbers():
    with pytest.raises(PackingError, match=r"4 sequences of 5.0 tokens on average, 5 at most, do not fit 2 rows of 8"):
        deal([5] * 8, batch_size=4, rows=2, length=8, seed=0)
    with pytest.raises(PackingError, match="1 sequences are longer than a packed row of 8"):
        fewest_rows([9, 2], batch_size=2, length=8)
