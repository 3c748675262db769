"""The prefix cache: the same values in memory, on disk and without room, and no file left."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fedms.config.sections import LoraConfig, ModelConfig
from fedms.data.federated import Samples
from fedms.model import flops, packing
from fedms.model.backbone import is_real
from fedms.model.checkpoints import load_backbone
from fedms.model.expert import Expert
from fedms.model.parts import fresh_lora
from fedms.training.prefix_cache import PrefixCache
from fedms.training.prefix_store import reserve
from fedms.training.runner import Runner

AMPLE = 2**30
PICKS = np.array([5, 0, 90, 17, 5])


@pytest.fixture
def make(backbone, inputs, tmp_path):
    """A cache in its own folder."""

    def cache(memory=AMPLE, disk=AMPLE, folder="cache", enabled=True, dtype=torch.float32, later=()):
        return PrefixCache(backbone, inputs, memory, disk, tmp_path / folder, enabled, dtype, later=later)

    return cache


def samples(owner="client-1/train", count=100, seed=1):
    rows = np.random.default_rng(seed).permutation(300)[:count]
    return Samples(owner, rows, torch.zeros(count, dtype=torch.long))


@torch.no_grad()
def direct(backbone, inputs, rows, boundary):
    backbone.attach({})
    ids, lengths = inputs.batch(rows)
    return backbone.run(backbone.embed(ids), lengths, 0, boundary), lengths


def same_where_real(made, expected, tolerance=2e-5):
    """Equal hidden states on real tokens, and equal masks."""
    (hidden, lengths), (reference, other) = made, expected
    assert hidden.shape == reference.shape
    assert (lengths is None) == (other is None)
    real = (
        torch.ones(hidden.shape[:2], dtype=torch.bool)
        if lengths is None
        else is_real(lengths, hidden.shape[1])
    )
    if lengths is not None:
        assert torch.equal(lengths, other)
    if tolerance:
        torch.testing.assert_close(hidden[real], reference[real], atol=tolerance, rtol=1e-4)
    else:
        assert torch.equal(hidden[real], reference[real])


def files(cache):
    return sorted(path.name for path in cache.places.folder.glob("*")) if cache.places.folder.exists() else []


@pytest.mark.parametrize("boundary", [0, 1, 2, 3])
def test_cached_values_are_those_of_direct_computation(make, backbone, inputs, boundary):
    cache, owned = make(), samples()
    same_where_real(
        cache.hidden(owned, boundary, PICKS), direct(backbone, inputs, owned.rows[PICKS], boundary)
    )


def test_values_continue_to_the_same_feature(make, backbone, inputs):
    cache, owned = make(), samples()
    expert = Expert(
        {name: torch.ones_like(array) * 0.05 for name, array in fresh_lora(backbone, [2], 4, 0).items()}, 1.0
    )
    hidden, lengths = cache.hidden(owned, 2, PICKS)
    backbone.attach(expert.pairs())
    ids, direct_mask = inputs.batch(owned.rows[PICKS])
    feature = backbone.pool(backbone.run(hidden, lengths, 2), lengths)
    torch.testing.assert_close(feature, backbone.feature(ids, direct_mask), atol=2e-5, rtol=1e-4)


def test_an_expert_left_attached_does_not_reach_the_cache(make, backbone, inputs):
    arrays = {name: torch.ones_like(array) for name, array in fresh_lora(backbone, range(3), 4, 0).items()}
    owned = samples()
    expected = direct(backbone, inputs, owned.rows[PICKS], 2)
    backbone.attach(Expert(arrays, 1.0).pairs())
    same_where_real(make().hidden(owned, 2, PICKS), expected)


def test_frozen_pairs_below_the_boundary_are_part_of_the_prefix(make, backbone, inputs):
    arrays = {
        name: torch.ones_like(array) * 0.05 for name, array in fresh_lora(backbone, range(3), 4, 0).items()
    }
    expert, other = Expert(arrays, 1.0), Expert({name: 2 * array for name, array in arrays.items()}, 1.0)
    cache, owned = make(), samples()
    backbone.attach(expert.pairs())
    ids, lengths = inputs.batch(owned.rows[PICKS])
    with torch.no_grad():
        expected = backbone.run(backbone.embed(ids), lengths, 0, 2), lengths
        feature = backbone.feature(ids, lengths)
    below = expert.below(2)
    assert below is not None and {block for block, _ in below.pairs} == {0, 1} and expert.below(0) is None
    same_where_real(cache.hidden(owned, 2, PICKS, below), expected)
    once = cache.flops
    cache.hidden(owned, 2, PICKS, Expert(dict(arrays), 1.0).below(2))
    assert cache.flops == once, "equal pairs have the same prefix"
    made = Runner(backbone, cache).feature(expert, owned, 2, PICKS)
    torch.testing.assert_close(made, feature, atol=2e-5, rtol=1e-4)
    plain, changed = (cache.hidden(owned, 2, PICKS, each)[0] for each in (None, other.below(2)))
    assert cache.flops > 2.5 * once, "other pairs have another one"
    assert not torch.allclose(plain, expected[0], atol=1e-3) and not torch.allclose(
        changed, expected[0], atol=1e-3
    )


@pytest.mark.parametrize("memory", [0, AMPLE])
def test_an_owners_values_do_not_depend_on_who_else_is_there(make, memory):
    alone, crowd = make(memory, folder="alone"), make(memory, folder="crowd")
    for number in range(3):
        crowd.hidden(samples(f"client-{number + 2}/train", 70, seed=number), 2, np.arange(5))
    for picks in (PICKS, np.array([5]), np.arange(100)):
        same_where_real(alone.hidden(samples(), 2, picks), crowd.hidden(samples(), 2, picks), tolerance=0)


def test_a_sample_has_the_same_bits_in_every_batch(make):
    cache = make()
    whole, lengths = cache.hidden(samples(), 2, np.arange(100))
    for pick in (0, 41, 99):
        alone, none = cache.hidden(samples(), 2, np.array([pick]))
        assert none is None
        assert torch.equal(whole[pick, : alone.shape[1]], alone[0])
        assert lengths[pick] == alone.shape[1]


def test_memory_and_disk_hold_the_same_bits_and_recomputing_gives_the_same_values(make):
    memory, disk = make(folder="memory"), make(memory=0, folder="disk")
    neither, disabled = make(0, 0, folder="neither"), make(folder="off", enabled=False)
    expected = memory.hidden(samples(), 2, PICKS)
    same_where_real(disk.hidden(samples(), 2, PICKS), expected, tolerance=0)
    same_where_real(neither.hidden(samples(), 2, PICKS), expected)
    same_where_real(disabled.hidden(samples(), 2, PICKS), expected)
    assert [files(cache) for cache in (memory, disk, neither, disabled)] == [
        [],
        ["client-1-train.float32"],
        [],
        [],
    ]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_what_rests_on_the_disk_is_mapped_only_while_it_is_read(make):
    """Else the files would count as this process's memory, and be more than it may map."""
    cache = make(memory=0, folder="disk")
    for number in range(3):
        cache.hidden(samples(f"client-{number}/train", seed=number), 2, PICKS)
    assert len(files(cache)) == 3 and str(cache.places.folder) not in Path("/proc/self/maps").read_text()


def test_half_the_room_holds_the_values_rounded_wherever_they_rest(make, inputs, backbone):
    size = int(inputs.lengths(samples().rows).sum()) * backbone.width * 2
    exact, lengths = make(folder="exact").hidden(samples(), 2, PICKS)
    half = {"dtype": torch.bfloat16}
    for cache in (
        make(memory=size, disk=0, **half),
        make(memory=size - 1, folder="disk", **half),
        make(0, 0, folder="neither", **half),
    ):
        made = cache.hidden(samples(), 2, PICKS)
        assert made[0].dtype == torch.float32
        same_where_real(
            made, (exact.bfloat16().float(), lengths), tolerance=0 if cache.places.memory else 2**-6
        )
        assert [path.stat().st_size for path in cache.places.folder.glob("*")] == (
            [size] if cache.places.folder.name == "disk" else []
        )
        assert cache.kept_flops == (0 if cache.places.memory == 0 else cache.flops)


def test_memory_fills_first_then_the_disk_then_nothing_is_kept(make, backbone, inputs):
    owners = [samples(f"client-{n}/train", 70, seed=n) for n in range(3)]
    sizes = [int(inputs.lengths(each.rows).sum()) * backbone.width * 4 for each in owners]
    cache = make(memory=sizes[0], disk=sizes[1])
    for owned in owners:
        same_where_real(cache.hidden(owned, 1, np.arange(9)), direct(backbone, inputs, owned.rows[:9], 1))
    assert files(cache) == ["client-1-train.float32"]
    assert (cache.places.folder / "client-1-train.float32").stat().st_size == sizes[1]
    spent = cache.flops
    for owned in owners[:2]:
        cache.hidden(owned, 1, np.arange(9))
    assert cache.flops == spent
    cache.hidden(owners[2], 1, np.arange(9))
    assert cache.flops > spent


@pytest.mark.parametrize("memory", [0, AMPLE])
def test_the_prefix_is_computed_once_and_counted(make, backbone, inputs, memory):
    cache, owned = make(memory), samples(count=64)
    cache.hidden(owned, 2, PICKS[:2])
    assert cache.flops == cache.used[owned.owner][1] == unpadded(backbone, inputs, owned.rows)
    cache.hidden(owned, 2, np.arange(20))
    assert cache.flops == unpadded(backbone, inputs, owned.rows)


def unpadded(backbone, inputs, rows):
    """Operations of two blocks over these texts, none of them padded."""
    return sum(flops.forward(backbone, 1, int(length), 0, 2) for length in inputs.lengths(rows))


def test_beyond_the_budget_only_what_is_asked_for_is_computed(make, backbone, inputs):
    cache, owned = make(0, 0), samples()
    hidden, _ = cache.hidden(owned, 2, PICKS)
    assert cache.flops == flops.forward(backbone, len(PICKS), hidden.shape[1], 0, 2)


def test_that_an_owner_has_no_room_is_decided_once_and_said_in_one_line(make, caplog):
    cache = make(0, 0)
    first = cache.hidden(samples(), 2, PICKS)
    cache.places.memory = AMPLE
    same_where_real(cache.hidden(samples(), 2, PICKS), first, tolerance=0)
    spent = cache.flops
    cache.hidden(samples(), 1, PICKS)
    assert cache.flops > spent
    cache.places.memory = 0
    cache.hidden(samples("client-2/test", 30), 2, np.arange(3))
    assert [
        record.getMessage().startswith("prefix cache: no room for client-1/train")
        for record in caplog.records
    ] == [True]
    assert caplog.records[0].getMessage().isprintable()
    cache.close()
    cache.places.memory = AMPLE
    cache.hidden(samples(), 2, PICKS)
    spent = cache.flops
    cache.hidden(samples(), 2, PICKS)
    assert cache.flops == spent, "a closed cache starts anew"


def test_a_full_disk_is_no_room(make, backbone, inputs, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    cache = make(memory=0)
    same_where_real(
        cache.hidden(samples(), 2, PICKS), direct(backbone, inputs, samples().rows[PICKS], 2), tolerance=0
    )
    assert files(cache) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no such call on this system")
def test_the_file_has_its_bytes_on_the_disk_before_anything_is_written(tmp_path):
    reserve(tmp_path / "some.float32", 2**20)
    assert (tmp_path / "some.float32").stat().st_blocks * 512 >= 2**20


@pytest.mark.parametrize("memory", [0, AMPLE])
def test_no_samples_are_one_clear_error(make, memory):
    nothing = np.arange(0)
    for owned in (samples(count=0), samples()):
        with pytest.raises(ValueError, match="client-1/train: no samples"):
            make(memory, memory).hidden(owned, 2, nothing)


@pytest.mark.parametrize("memory", [0, AMPLE])
def test_moving_the_boundary_drops_the_old_entry_and_makes_room(make, backbone, inputs, memory):
    owned = samples()
    size = int(inputs.lengths(owned.rows).sum()) * backbone.width * 4
    cache = make(min(memory, size), 0 if memory else size)
    for boundary in (2, 1, 0, 2):
        same_where_real(
            cache.hidden(owned, boundary, PICKS), direct(backbone, inputs, owned.rows[PICKS], boundary)
        )
        spent = cache.flops
        cache.hidden(owned, boundary, PICKS)
        assert cache.flops == spent, "there was no room for the new entry, so the old one is still there"
    assert files(cache) == ([] if memory else ["client-1-train.float32"])


def test_moving_the_boundary_deletes_the_old_file(make):
    cache = make(memory=0)
    cache.hidden(samples(), 2, PICKS)
    assert files(cache) == ["client-1-train.float32"]
    cache.places.memory = AMPLE
    cache.hidden(samples(), 1, PICKS)
    assert files(cache) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_leaves_the_lower_states_that_a_run_may_come_to(make, dtype):
    cache, owned = make(dtype=dtype, later={2, 1}), samples()
    for boundary in (3, 2, 1):
        alone = make(dtype=dtype, folder="alone")
        found = cache.hidden(owned, boundary, PICKS)
        same_where_real(found, alone.hidden(owned, boundary, PICKS), tolerance=0)
        assert cache.used == alone.used, "it is booked as if it had been computed from the inputs"
        if boundary == 3:
            spent = alone.flops
        assert cache.flops == cache.kept_flops == spent
    cache.hidden(owned, 2, PICKS)
    assert cache.flops > spent, "nothing is left above"


def test_what_is_only_for_later_makes_room(make, backbone, inputs):
    one, other = samples(), samples("client-2/train", seed=2)
    sizes = [int(inputs.lengths(each.rows).sum()) * backbone.width * 4 for each in (one, other)]
    cache = make(memory=max(sizes) + sum(sizes) - 1, disk=0, later={2})
    cache.hidden(one, 3, PICKS)
    cache.hidden(other, 3, PICKS)
    spent = cache.flops
    for owned in (one, other):  # both have room, since what was left for one is gone
        same_where_real(
            cache.hidden(owned, 3, PICKS), make(folder="alone").hidden(owned, 3, PICKS), tolerance=0
        )
    assert cache.flops == spent
    tight = make(memory=sizes[0], disk=0, later={1, 2})
    same_where_real(tight.hidden(one, 3, PICKS), make(folder="alone").hidden(one, 3, PICKS), tolerance=0)
    spent = tight.flops
    tight.hidden(one, 2, PICKS)
    assert spent < tight.flops < 2 * spent, "without room the states are computed again"


def test_values_given_out_survive_a_moved_boundary(make, backbone, inputs):
    cache, owned = make(memory=0), samples()
    given = cache.hidden(owned, 2, PICKS)
    cache.hidden(owned, 1, PICKS)
    same_where_real(given, direct(backbone, inputs, owned.rows[PICKS], 2))


def test_no_file_is_left_after_closing_and_the_cache_can_be_used_again(make):
    cache = make(memory=0)
    expected = cache.hidden(samples(), 2, PICKS)
    cache.hidden(samples("client-2/test", 30), 2, np.arange(3))
    assert len(files(cache)) == 2
    cache.close()
    assert not cache.places.folder.exists()
    cache.close()
    same_where_real(cache.hidden(samples(), 2, PICKS), expected, tolerance=0)
    cache.close()
    assert not cache.places.folder.exists()


def test_images_are_cached_by_their_patches(checkpoint, tmp_path):
    backbone = load_backbone(ModelConfig(name=str(checkpoint("vit"))), LoraConfig())
    pixels = torch.randn(70, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    class Pixels:
        def lengths(self, rows):
            return np.ones(len(rows), dtype=np.int64)

        def batch(self, rows):
            return pixels[rows], None

    owned = Samples("client-1/train", np.arange(70), torch.zeros(70, dtype=torch.long))
    for memory, disk, computed in ((0, AMPLE, 70), (AMPLE, AMPLE, 70), (0, 0, 2)):
        cache = PrefixCache(backbone, Pixels(), memory, disk, tmp_path / "cache")
        hidden, lengths = cache.hidden(owned, 1, np.array([69, 3]))
        assert lengths is None
        assert hidden.shape == (2, 17, 32)
        assert cache.flops == flops.forward(backbone, computed, 17, 0, 1)
        same_where_real((hidden, lengths), direct(backbone, Pixels(), np.array([69, 3]), 1))


def test_several_owners_are_computed_in_common_batches_and_booked_alone(make, backbone, inputs, monkeypatch):
    owners = [samples(f"client-{n}/train", 9, seed=n) for n in range(5)]
    alone, together = make(folder="alone"), make(folder="together")
    batch, computed = inputs.batch, []
    monkeypatch.setattr(inputs, "batch", lambda rows: (computed.append(rows), batch(rows))[1])
    together.fill(owners, 2)
    assert len(computed) == 1, "one batch"
    spent = unpadded(backbone, inputs, np.concatenate([each.rows for each in owners]))
    assert together.flops == together.kept_flops == spent
    for owned in owners:
        same_where_real(together.hidden(owned, 2, PICKS[:2]), alone.hidden(owned, 2, PICKS[:2]))
    assert together.used == alone.used and together.flops == together.kept_flops
    together.fill(owners, 2)
    assert together.flops == spent, "they were there"


def test_who_has_no_room_does_not_keep_the_others_from_theirs(make, backbone, inputs):
    owners = [samples(f"client-{n}/train", 70, seed=n) for n in range(3)]
    cache = make(
        memory=sum(int(inputs.lengths(each.rows).sum()) * backbone.width * 4 for each in owners[:2]), disk=0
    )
    cache.fill([owners[0], owners[2], owners[1]], 1)
    for owned in owners:
        same_where_real(cache.hidden(owned, 1, np.arange(9)), direct(backbone, inputs, owned.rows[:9], 1))
    assert make(enabled=False).fill(owners, 1) is None


def test_what_failed_half_way_is_not_taken_for_whole(make, backbone, inputs, monkeypatch):
    cache, owners = make(), [samples(f"client-{n}/train", 70, seed=n) for n in range(3)]
    monkeypatch.setattr(packing, "TOKENS", 300)
    batch, calls = inputs.batch, []

    def broken(rows):
        calls.append(rows)
        if len(calls) == 2:
            raise RuntimeError("interrupted")
        return batch(rows)

    monkeypatch.setattr(inputs, "batch", broken)
    with pytest.raises(RuntimeError, match="interrupted"):
        cache.fill(owners, 1)
    for owned in owners:
        same_where_real(cache.hidden(owned, 1, np.arange(9)), direct(backbone, inputs, owned.rows[:9], 1))
