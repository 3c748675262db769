"""Randomness depends on the seed and the purpose, and on nothing else."""

import numpy as np
import torch

from fedms.core import seeds


def test_a_derived_seed_is_the_same_on_every_machine_and_in_every_version():
    assert seeds.derive(0, "lora", 3, "query") == 4060040388882789240


def test_seed_and_every_word_of_the_purpose_matter_and_words_do_not_run_together():
    purposes: list[tuple[str | int, ...]] = [
        (),
        ("a",),
        ("b",),
        ("a", "b"),
        ("b", "a"),
        ("ab",),
        ("a", 1),
        ("a", 11),
        ("a", 1, 1),
    ]
    derived = {seeds.derive(0, *purpose) for purpose in purposes}
    assert len(derived | {seeds.derive(1)}) == len(purposes) + 1


def test_derived_seeds_fit_into_63_bits():
    drawn = [seeds.derive(0, "round", i) for i in range(200)]
    assert min(drawn) >= 0
    assert 2**62 < max(drawn) < 2**63


def test_generators_repeat_themselves_and_ignore_the_global_state():
    np.random.seed(1)
    torch.manual_seed(1)
    first = seeds.numpy_generator(3, "x").random(4), torch.rand(4, generator=seeds.torch_generator(3, "x"))
    np.random.seed(2)
    torch.manual_seed(2)
    again = seeds.numpy_generator(3, "x").random(4), torch.rand(4, generator=seeds.torch_generator(3, "x"))
    assert np.array_equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not np.array_equal(first[0], seeds.numpy_generator(3, "y").random(4))
    assert not torch.equal(first[1], torch.rand(4, generator=seeds.torch_generator(3, "y")))
