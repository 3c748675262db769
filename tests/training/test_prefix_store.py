"""Shared prefixes: computed once for several runs, to the same bits and costs, within a budget."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from test_prefix_cache import AMPLE, PICKS, same_where_real, samples

from fedms.model import flops
from fedms.training import prefix_cache
from fedms.training.prefix_cache import PrefixCache
from fedms.training.prefix_store import PrefixStore, remove_unfinished


@pytest.fixture
def make(backbone, inputs, tmp_path):
    """The cache of one run, with a store if it has a budget."""

    def cache(budget=AMPLE, content="one model, one data set", memory=AMPLE, dtype=torch.float32, later=()):
        store = PrefixStore(tmp_path / "store", budget, content) if budget else None
        folder = tmp_path / "cache"
        return PrefixCache(backbone, inputs, memory, AMPLE, folder, dtype=dtype, store=store, later=later)

    return cache


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "store").glob("*"), key=lambda path: path.stat().st_mtime_ns)


def size_of(inputs, backbone, owned) -> int:
    return int(inputs.lengths(owned.rows).sum()) * backbone.width * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_run_computes_nothing_and_has_and_books_the_same(make, tmp_path, dtype):
    alone, first, second = make(budget=0, dtype=dtype), make(dtype=dtype), make(dtype=dtype)
    expected = alone.hidden(samples(), 2, PICKS)
    for cache in (first, second):
        same_where_real(cache.hidden(samples("any-name/train"), 2, PICKS), expected, tolerance=0)
        assert list(cache.used.values()) == list(alone.used.values()) == [("2", alone.flops)]
        assert cache.flops - cache.kept_flops == 0
    assert (first.flops, second.flops) == (alone.flops, 0)
    assert len(files(tmp_path)) == 1 and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("lower", [1, 2])
def test_a_higher_boundary_goes_on_from_a_lower_one_to_the_same_bits(make, backbone, inputs, lower):
    owned = samples()
    expected, direct = make(budget=0), make()
    reference = expected.hidden(owned, 3, PICKS)
    make().hidden(owned, lower, PICKS)
    same_where_real(direct.hidden(owned, 3, PICKS), reference, tolerance=0)
    steps = [flops.forward(backbone, 1, int(length), lower, 3) for length in inputs.lengths(owned.rows)]
    assert direct.flops == direct.kept_flops == sum(steps) < expected.flops
    assert direct.used == expected.used, "it is booked as if nobody had been there before"


def test_lower_states_are_left_to_every_process_within_the_budgets(make, backbone, inputs, tmp_path):
    owned = samples()
    size, alone = size_of(inputs, backbone, owned), make(budget=0)
    for given, left in (
        ({"memory": size}, 1),
        ({"budget": 2 * size - 1}, 0),
        ({"memory": size - 1}, 0),
        ({}, 2),
    ):
        for path in files(tmp_path):
            path.unlink()
        make(**given, later={1, 2}).hidden(owned, 3, PICKS)
        assert len(files(tmp_path)) == 1 + left
    other = make(later={1, 2})
    for boundary in (3, 2, 1):
        same_where_real(
            other.hidden(owned, boundary, PICKS), alone.hidden(owned, boundary, PICKS), tolerance=0
        )
    assert other.flops == 0 and other.used == alone.used


def test_what_was_rounded_is_not_gone_on_from(make):
    half = {"dtype": torch.bfloat16}
    reference = make(budget=0, **half).hidden(samples(), 3, PICKS)
    make(**half).hidden(samples(), 1, PICKS)
    same_where_real(make(**half).hidden(samples(), 3, PICKS), reference, tolerance=0)


def test_other_data_samples_boundary_or_dtype_are_something_else(make, tmp_path):
    make().hidden(samples(), 2, PICKS)
    for cache, owned, boundary in (
        (make(content="another data set"), samples(), 2),
        (make(), samples(seed=2), 2),
        (make(), samples(), 1),
        (make(dtype=torch.bfloat16), samples(), 2),
    ):
        alone = make(budget=0, dtype=cache.dtype)
        same_where_real(
            cache.hidden(owned, boundary, PICKS), alone.hidden(owned, boundary, PICKS), tolerance=0
        )
        assert cache.flops > 0
    assert len(files(tmp_path)) == 5


def test_what_was_not_used_for_longest_makes_room(make, backbone, inputs, tmp_path):
    owners = [samples(f"client-{n}/train", 70, seed=n) for n in range(3)]
    picks = np.arange(9)
    budget = sum(size_of(inputs, backbone, each) for each in owners) - 1
    for at, owned in enumerate(owners[:2]):
        make(budget).hidden(owned, 2, picks)
        for path in files(tmp_path)[at:]:
            os.utime(path, (at + 1, at + 1))
    oldest, other = files(tmp_path)
    holder = make(budget)
    given = holder.hidden(owners[0], 2, picks)  # used again, so that it stays
    make(budget).hidden(owners[2], 2, picks)
    assert oldest.exists() and not other.exists() and len(files(tmp_path)) == 2
    make(budget).hidden(owners[1], 2, picks)
    make(budget).hidden(owners[2], 1, picks)
    assert not oldest.exists()
    same_where_real(holder.hidden(owners[0], 2, picks), given, tolerance=0)  # it is still mapped here
    assert sum(path.stat().st_size for path in files(tmp_path)) <= budget


def test_one_process_keeps_to_the_budget_and_finds_again_what_it_no_longer_maps(
    make, backbone, inputs, tmp_path, monkeypatch
):
    monkeypatch.setattr(prefix_cache, "MAPPED_AT_ONCE", 1)
    picks = np.arange(9)
    owners = [samples(f"client-{n}/train", 70, seed=n) for n in range(3)]
    budget = sum(size_of(inputs, backbone, each) for each in owners[:2])
    cache, alone = make(budget), make(budget=0)
    for owned in (*owners[:2], owners[0]):
        same_where_real(cache.hidden(owned, 2, picks), alone.hidden(owned, 2, picks), tolerance=0)
    assert (cache.flops, cache.used) == (alone.flops, alone.used)
    cache.hidden(owners[2], 2, picks)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= budget
    again = cache.hidden(owners[1], 2, picks)
    same_where_real(again, alone.hidden(owners[1], 2, picks), tolerance=0)


def test_the_unfinished_files_of_an_ended_process_are_removed_and_no_others(tmp_path):
    names = ["a.2.float32", "a.2.float32.17.part", "a.2.float32.117.part"]
    for name in names:
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, 17)
    assert sorted(path.name for path in tmp_path.iterdir()) == [names[0], names[2]]
    remove_unfinished(tmp_path / "nowhere", 17)


def test_what_was_not_finished_is_not_found_and_a_damaged_file_is_computed_again(make, tmp_path):
    first = make()
    expected = first.hidden(samples(), 2, PICKS)
    (path,) = files(tmp_path)
    path.rename(path.with_name(f"{path.name}.1.part"))
    again = make()
    same_where_real(again.hidden(samples(), 2, PICKS), expected, tolerance=0)
    assert again.flops == first.flops and path.exists()
    path.write_bytes(path.read_bytes()[:-4])
    again = make()
    same_where_real(again.hidden(samples(), 2, PICKS), expected, tolerance=0)
    assert again.flops == first.flops


def test_what_is_larger_than_the_budget_rests_in_memory(make, backbone, inputs, tmp_path):
    owned = samples()
    cache = make(budget=size_of(inputs, backbone, owned) - 1)
    same_where_real(cache.hidden(owned, 2, PICKS), make(budget=0).hidden(owned, 2, PICKS), tolerance=0)
    spent = cache.flops
    cache.hidden(owned, 2, PICKS)
    assert cache.flops == spent and files(tmp_path) == []
