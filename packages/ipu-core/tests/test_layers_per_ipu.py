# SPDX-License-Identifier: Apache-2.0
"""Wildcards, sums and cuts of `layers_per_ipu`."""

import itertools
import random

import pytest
from ipu_core.config.layers_per_ipu import encoder_decoder_cut, expand_layers_per_ipu, layer_ipus, rounds
from ipu_core.errors import IncompatibleIPUConfigError
from ipu_core.partition.balance import balance


@pytest.mark.parametrize(
    ("layers_per_ipu", "num_ipus", "num_layers", "expanded"),
    [
        ([-1], 2, 9, (4, 5)),
        ([-1], 4, 10, (2, 2, 2, 4)),
        ([-1, -1, -1, -1], 4, 10, (2, 2, 2, 4)),
        ([-1], 1, 7, (7,)),
        ([3], 1, 3, (3,)),
        ([1, -1, -1, 2], 4, 8, (1, 2, 3, 2)),
        ([0, -1, 2], 3, 5, (0, 3, 2)),
        ([2, -1], 2, 2, (2, 0)),
        ([6, 0, 0, 6], 4, 12, (6, 0, 0, 6)),
        ([1, 2, 2, 1], 4, 6, (1, 2, 2, 1)),
        ([-1], 4, 2, (0, 0, 0, 2)),
    ],
)
def test_wildcards_share_what_is_left(layers_per_ipu, num_ipus, num_layers, expanded):
    assert expand_layers_per_ipu(layers_per_ipu, num_ipus=num_ipus, num_layers=num_layers) == expanded


@pytest.mark.parametrize(
    ("layers_per_ipu", "num_ipus", "num_layers", "message"),
    [
        ([10, -1], 2, 5, r"`layers_per_ipu=\[10, -1\]` places 10 layers, and the model has 5: take away 5, or use -1"),
        ([2, 2], 2, 5, r"places 4 layers, and the model has 5: add 1, or use -1"),
        ([2, 4], 2, 5, r"places 6 layers, and the model has 5: take away 1"),
        ([2, 3], 3, 5, r"lists 2 IPUs, and one replica has 3: give 3 values"),
        ([-1, -1], 3, 5, r"lists 2 IPUs, and one replica has 3"),
        ([-2, 7], 2, 5, r"not an integer >= -1"),
        ([2.5, 2.5], 2, 5, r"not an integer >= -1"),
        ([-1], 0, 5, r"0 IPUs cannot hold a model"),
    ],
)
def test_numbers_that_do_not_add_up_are_refused(layers_per_ipu, num_ipus, num_layers, message):
    with pytest.raises(IncompatibleIPUConfigError, match=message):
        expand_layers_per_ipu(layers_per_ipu, num_ipus=num_ipus, num_layers=num_layers)


def test_the_message_names_the_option_of_the_mode():
    with pytest.raises(IncompatibleIPUConfigError, match="inference_layers_per_ipu"):
        expand_layers_per_ipu([1, 1], num_ipus=2, num_layers=5, name="inference_layers_per_ipu")


def test_one_ipu_holds_every_layer_and_says_so_when_told_otherwise(caplog):
    assert expand_layers_per_ipu([3], num_ipus=1, num_layers=5) == (5,)
    assert "on one IPU: it holds all 5 layers" in caplog.text


def test_layers_have_the_ipus_of_their_share():
    assert layer_ipus((1, 0, 2)) == (0, 2, 2)


@pytest.mark.parametrize(
    ("layers", "num_encoder_layers", "cut"),
    [((6, 6), 6, 1), ((3, 3, 6, 0), 6, 2), ((6, 0, 0, 6), 6, 2), ((3, 3, 3, 3), 6, 2), ((6, 2, 2, 2), 6, 1)],
)
def test_the_largest_cut_with_powers_of_two_wins(layers, num_encoder_layers, cut):
    assert encoder_decoder_cut(layers, num_encoder_layers=num_encoder_layers) == cut


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((2, 2, 2, 6), r"its cuts after 6 layers leave \[\(3, 1\)\] IPUs"),
        ((4, 4, 4), r"an IPU would hold layers of both"),
    ],
)
def test_an_encoder_without_a_power_of_two_is_refused(layers, message):
    with pytest.raises(IncompatibleIPUConfigError, match=message):
        encoder_decoder_cut(layers, num_encoder_layers=6)


def splits(num_layers, num_ipus):
    for cuts in itertools.combinations_with_replacement(range(num_layers + 1), num_ipus - 1):
        yield list(itertools.pairwise([0, *cuts, num_layers]))


@pytest.mark.parametrize("seed", range(60))
def test_balance_is_as_good_as_brute_force_under_a_limit_of_each_ipu(seed):
    draw = random.Random(seed)
    num_layers, num_ipus = draw.randint(1, 8), draw.randint(1, 4)
    costs = [draw.randint(1, 9) for _ in range(num_layers)]
    # As under 1F1B: an early IPU keeps more of a layer's activations than a late one, and some hold something already.
    sizes = [[draw.randint(1, 9) * (num_ipus - ipu) for _ in range(num_layers)] for ipu in range(num_ipus)]
    besides = [draw.randint(0, 9) for _ in range(num_ipus)]
    limit = draw.choice([12, 40, 10**6])

    def cost(ipu, first, stop):
        return sum(costs[first:stop]) + besides[ipu]

    def fits(ipu, first, stop):
        return sum(sizes[ipu][first:stop]) + besides[ipu] <= limit

    def worst(parts):
        return max(cost(ipu, *part) for ipu, part in enumerate(parts))

    possible = [s for s in splits(num_layers, num_ipus) if all(fits(ipu, *part) for ipu, part in enumerate(s))]
    found = balance(num_layers, num_ipus, cost, fits=fits)
    if not possible:
        assert found is None
        return
    parts = list(itertools.pairwise([0, *itertools.accumulate(found)]))
    assert parts in possible
    assert worst(parts) == min(map(worst, possible))


def test_rounds_cut_every_ipus_layers():
    assert rounds([4, 2], 1) == [0, 0, 0, 0, 1, 1]
    assert rounds([4, 2], 2) == [0, 0, 1, 0, 0, 1]
    assert rounds([1, 3], 2) == [1, 0, 1, 1]
