"""Which blocks are active, when their number grows, and who trains how many of them."""

import json
from collections.abc import Sequence

import pytest

from fedms.config.sections import ActivationConfig as Rule
from fedms.config.sections import CapacityTier as Tier
from fedms.core.errors import ConfigError
from fedms.federation.activation import Activation, check_depth, later_boundaries
from fedms.federation.tiers import capacities, trainable

FLAT = [0.5] * 12
RISING = [0.1 * step for step in range(12)]


def growth(rule: Rule, scores: Sequence[float | None], depth: int = 6, beyond: int = 99) -> list[int]:
    """The number of active blocks after each round; so many more follow."""
    activation = Activation(rule, depth)
    after = []
    for left, score in zip(range(len(scores) - 1 + beyond, -1, -1), scores, strict=False):
        before = activation.active
        assert activation.observe(score, left) == (activation.active > before)
        after.append(activation.active)
    return after


def plateau(**keys) -> Rule:
    return Rule(**{"rule": "plateau", "queue": 4, "epsilon": 0.01, "min_rounds": 1, "max_rounds": 99, **keys})


def test_a_plateau_is_a_full_queue_without_gain_and_empties_the_queue():
    assert growth(plateau(), FLAT) == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4]


@pytest.mark.parametrize(
    ("local", "blocks"), [(None, [4, 5]), (1, [4, 5]), (4, [2, 3, 4, 5]), ("all", list(range(6))), (0, [])]
)
def test_a_local_stage_has_the_blocks_of_the_global_expert_at_least_or_none(local, blocks):
    assert Activation(Rule(blocks=2, blocks_local=local), 6).local_blocks() == blocks


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({}, {1, 2, 3, 4}),
        ({"blocks": 2, "step": 3}, {1}),
        ({"blocks": 2, "step": 2, "maximum": 5, "rule": "every"}, {1, 2}),
        ({"maximum": 3, "blocks_local": 5}, {1, 3, 4}),
        ({"rule": "fixed"}, set()),
        ({"rule": "fixed", "blocks_local": 2}, {4}),
        ({"blocks": "all"}, set()),
        ({"rule": "warm", "blocks": 2}, set()),
        ({"order": "bottom-up"}, set()),
    ],
)
def test_where_the_lowest_active_block_may_be_later(keys, found):
    assert later_boundaries(Rule(**keys), 6) == found


def test_after_warm_rounds_with_all_blocks_the_planned_ones_are_left():
    activation, after = Activation(Rule(rule="warm", blocks=2, warm_rounds=3), 6), []
    assert activation.blocks() == list(range(6))
    for left in range(4, -1, -1):
        changed = activation.observe(0.5, left)
        after.append((len(activation.blocks()), changed))
    assert after == [(6, False), (6, False), (2, True), (2, False), (2, False)]
    assert activation.blocks() == activation.local_blocks() == [4, 5]
    assert activation.blocks(activation.trained) == list(range(6))
    again = Activation(Rule(rule="warm", blocks=2, warm_rounds=3), 6)
    again.restore(activation.state())
    assert (again.active, again.trained) == (2, 6)


def test_warm_rounds_end_nowhere_where_all_blocks_are_planned():
    activation = Activation(Rule(rule="warm", blocks="all", warm_rounds=1), 6)
    assert not any(activation.observe(0.5, left) for left in range(5, -1, -1))
    assert activation.active == 6


def test_a_rising_score_is_no_plateau():
    assert growth(plateau(), RISING) == [1] * 12


@pytest.mark.parametrize(("gain", "k"), [(0.009, 2), (0.011, 1)])
def test_the_gain_is_the_newer_halfs_mean_less_the_olders(gain, k):
    assert growth(plateau(), [0.3, 0.5, 0.2 + gain, 0.6 + gain])[-1] == k


def test_the_queue_forgets_what_is_older():
    assert growth(plateau(), [0.0, 0.0, 0.9, 0.9, 0.9, 0.9]) == [1, 1, 1, 1, 1, 2]


def test_the_middle_of_an_odd_queue_counts_for_neither_half():
    assert growth(plateau(queue=5), [0.5, 0.5, 9.0, 0.5, 0.5])[-1] == 2
    assert growth(plateau(queue=5), [0.5, 0.5, -9.0, 0.6, 0.6])[-1] == 1


def test_a_plateau_waits_for_min_rounds():
    assert growth(plateau(min_rounds=6), FLAT) == [1] * 5 + [2] * 6 + [3]


def test_max_rounds_ends_a_rise():
    assert growth(plateau(max_rounds=5), RISING) == [1] * 4 + [2] * 5 + [3] * 3


def test_a_round_without_a_score_counts_as_a_round_but_not_in_the_queue():
    assert growth(plateau(), [None, 0.5, None, 0.5, None, 0.5, None, 0.5])[-2:] == [1, 2]
    assert growth(plateau(max_rounds=3), [None] * 3)[-1] == 2


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"rule": "every", "every": 2}, [1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 6]),
        ({"rule": "every", "every": 3, "step": 2, "blocks": 2}, [2, 2, 4, 4, 4, 6, 6, 6, 6, 6, 6, 6]),
        ({"rule": "every", "every": 1, "step": 4}, [5, 6] + [6] * 10),
        ({"rule": "every", "every": 1, "maximum": 3}, [2] + [3] * 11),
        ({"rule": "every", "every": 1, "maximum": 99}, [2, 3, 4, 5] + [6] * 8),
        ({"rule": "fixed", "blocks": 2}, [2] * 12),
        ({"rule": "fixed", "blocks": "all"}, [6] * 12),
        ({"rule": "plateau", "blocks": "all"}, [6] * 12),
    ],
)
def test_the_other_rules(keys, expected):
    assert growth(Rule(**keys), FLAT) == expected


@pytest.mark.parametrize(
    ("order", "blocks"),
    [("top-down", [[5], [4, 5], [3, 4, 5]]), ("bottom-up", [[0], [0, 1], [0, 1, 2]])],
    ids=["top-down", "bottom-up"],
)
def test_blocks_are_taken_in_the_order(order, blocks):
    activation = Activation(Rule(rule="every", every=1, order=order), 6)
    seen = [activation.blocks()]
    for _ in range(2):
        activation.observe(None, 9)
        seen.append(activation.blocks())
    assert seen == blocks


@pytest.mark.parametrize(
    ("queue", "rounds", "after"),
    [(4, 8, [1, 1, 1, 2, 2, 2, 2, 2]), (4, 7, [1] * 7), (2, 6, [1, 2, 2, 3, 3, 3])],
)
def test_no_block_is_added_when_too_few_rounds_are_left_to_show_its_worth(queue, rounds, after):
    assert growth(plateau(queue=queue), FLAT[:rounds], beyond=0) == after
    assert growth(Rule(rule="every", every=rounds - 1), FLAT[:rounds], beyond=0)[-1] == 2, (
        "a schedule is kept to"
    )


@pytest.mark.parametrize("blocks", [4, "all"])
def test_the_maximum_holds_from_the_start(blocks):
    assert Activation(Rule(blocks=blocks, maximum=2), 6).active == 2


@pytest.mark.parametrize("cut", range(8))
def test_a_restored_activation_goes_on_as_if_never_stopped(cut):
    scores = [0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    first, second = Activation(plateau(), 6), Activation(plateau(), 6)
    for score in scores[:cut]:
        first.observe(score, 9)
    second.restore(json.loads(json.dumps(first.state())))
    for score in scores[cut:]:
        assert first.observe(score, 9) == second.observe(score, 9)
    assert first.state() == second.state()


# capacities


CLIENTS = [f"client-{number}" for number in range(8)]
TIERS = Rule(capacity=(Tier(share=0.5, blocks=1), Tier(share=0.25, blocks=3), Tier(share=0.25, blocks=9)))


def test_capacities_deal_the_tiers_by_their_shares():
    dealt = capacities(TIERS, CLIENTS, 6, 0)
    assert sorted(dealt) == CLIENTS
    assert sorted(dealt.values()) == [1, 1, 1, 1, 3, 3, 6, 6]


def test_capacities_depend_on_the_seed_alone():
    dealt = [tuple(capacities(TIERS, CLIENTS, 6, seed).items()) for seed in (0, 0, 1, 2)]
    assert dealt[0] == dealt[1]
    assert len(set(dealt)) > 1


@pytest.mark.parametrize("clients", [1, 2, 3, 7])
def test_everybody_has_a_capacity_however_the_shares_round(clients):
    thirds = Rule(capacity=tuple(Tier(share=1 / 3, blocks=blocks) for blocks in (1, 2, 3)))
    assert len(capacities(thirds, CLIENTS[:clients], 6, 0)) == clients


def test_without_tiers_everybody_can_train_all():
    assert set(capacities(Rule(), CLIENTS, 6, 0).values()) == {6}


def test_a_weak_client_trains_the_first_blocks_of_the_order():
    assert trainable([2, 3, 4, 5], 2, "top-down") == [4, 5], "going back two blocks is the cheapest"
    assert trainable([0, 1, 2], 2, "bottom-up") == [0, 1]
    assert trainable([4, 5], 6, "top-down") == [4, 5]


@pytest.mark.parametrize(
    ("rule", "key"),
    [
        (Rule(blocks=7), "activation.blocks: 7"),
        (Rule(maximum=8), "activation.maximum: 8"),
        (
            Rule(capacity=(Tier(share=0.5, blocks=6), Tier(share=0.5, blocks=9))),
            "activation.capacity.1.blocks: 9",
        ),
    ],
)
def test_more_blocks_than_the_model_has_are_refused_by_key(rule, key):
    with pytest.raises(ConfigError, match=key) as caught:
        check_depth(rule, 6, "some/model")
    assert "6 blocks of model some/model" in str(caught.value)
    check_depth(rule, 9, "some/model")


@pytest.mark.parametrize(
    "rule",
    [
        plateau(),
        plateau(max_rounds=3),
        plateau(queue=2, maximum=2),
        Rule(rule="every", every=3),
        Rule(rule="fixed"),
        Rule(rule="fixed", blocks="all"),
        Rule(rule="warm", warm_rounds=3),
        Rule(rule="warm", blocks="all"),
    ],
)
@pytest.mark.parametrize("scores", [FLAT, RISING, FLAT[::-1] + RISING])
def test_where_blocks_stay_no_score_is_needed(rule, scores):
    with_all, without = Activation(rule, 6), Activation(rule, 6)
    left_out = 0
    for left, score in zip(range(len(scores) - 1, -1, -1), scores, strict=True):
        if stays := without.stays(left):
            left_out += 1
        changed = with_all.observe(score, left)
        assert without.observe(None if stays else score, left) == changed
        assert not (stays and changed) and with_all.active == without.active
    assert left_out >= min(rule.queue - 1, 3)
