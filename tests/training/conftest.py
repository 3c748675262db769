"""Made-up texts for the prefix cache; each word is one token."""

import numpy as np
import pytest

from fedms.training.inputs import TextInputs
from small_world import federation, opened, settings  # noqa: F401 (fixtures)

WORDS = ["turn", "on", "off", "the", "light", "lights", "kitchen", "music", "play", "louder", "please"]


class Words:
    """A tokenizer of whole words, enough for `TextInputs`."""

    pad_token_id = 0

    def __call__(self, texts, **options):
        return {"input_ids": [[2, *(WORDS.index(word) + 4 for word in text.split()), 3] for text in texts]}


@pytest.fixture(scope="module")
def inputs():
    draw = np.random.default_rng(0)
    return TextInputs([" ".join(draw.choice(WORDS, draw.integers(1, 15))) for _ in range(300)], Words(), 24)
