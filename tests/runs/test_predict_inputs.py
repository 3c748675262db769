"""What `predict` and `predict_proba` read: any iterable of texts or pictures, and a line for all else."""

from __future__ import annotations

import io
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedms
from fedms.core.errors import FedmsError
from fedms.runs.client import CHUNK
from tiny_run import finished  # noqa: F401 (a fixture)

TEXTS = ["turn on the light", "play music please", "off"]


def test_probabilities_come_in_the_order_of_the_classes(finished):  # noqa: F811
    client = fedms.load(finished(), "client-1")
    found = client.predict_proba(TEXTS, 0.3)
    assert found.shape == (3, 4) and found.dtype == np.float32
    for row, each in zip(found, client.predict(TEXTS, 0.3), strict=True):
        assert dict(zip(client.classes, row.tolist(), strict=True)) == each.probabilities
    assert client.predict_proba([]).shape == (0, 4)


@pytest.mark.parametrize(
    "given",
    [
        tuple,
        iter,
        np.array,
        lambda texts: dict.fromkeys(texts).keys(),
        lambda texts: (text for text in texts),
        lambda texts: np.array(texts, object),
    ],
)
def test_inputs_come_in_any_iterable(finished, given):  # noqa: F811
    client = fedms.load(finished(), "client-0")
    inputs = given(TEXTS)
    assert client.predict(inputs) == client.predict(TEXTS)
    inputs = given(TEXTS)
    assert np.array_equal(client.predict_proba(inputs), client.predict_proba(TEXTS))


def test_a_column_of_pandas_is_read_and_a_table_is_not(finished):  # noqa: F811
    pandas = pytest.importorskip("pandas")
    client = fedms.load(finished(), "client-0")
    table = pandas.DataFrame({"text": TEXTS}, index=[7, 5, 9])
    assert client.predict(table["text"]) == client.predict(TEXTS)
    with pytest.raises(TypeError, match="1 dimension, not 2; of a table, give one column"):
        client.predict(table)
    with pytest.raises(FedmsError, match="input 2: the model reads texts, not float"):
        client.predict(pandas.Series(["on", float("nan")]))


@pytest.mark.parametrize(
    "one",
    ["on", b"on", Path("a.png"), Image.new("RGB", (9, 9)), {"on": 1}, None, 3, np.array("on")],
    ids=["text", "bytes", "path", "picture", "mapping", "none", "number", "array"],
)
def test_one_input_in_place_of_several_is_one_line(finished, one):  # noqa: F811
    client = fedms.load(finished(), "client-0")
    for ask in (client.predict, client.predict_proba):
        with pytest.raises(TypeError, match="inputs must") as caught:
            ask(one)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (None, "the model reads texts, not NoneType"),
        (b"on", "the model reads texts, not bytes"),
        (1.5, "the model reads texts, not float"),
        (["on"], "the model reads texts, not list"),
        (Path("on.txt"), "the model reads texts, not PosixPath"),
        ("half \ud83d", "holds half a character"),
    ],
    ids=repr,
)
def test_the_line_says_which_input_it_is(finished, odd, words):  # noqa: F811
    client = fedms.load(finished(), "client-0")
    inputs = ["on"] * (CHUNK + 4)
    inputs[CHUNK + 2] = odd
    with pytest.raises(FedmsError, match=f"input {CHUNK + 3}: {words}") as caught:
        client.predict(inputs)
    assert "\n" not in str(caught.value)


def test_pictures_that_are_none_are_one_line(finished):  # noqa: F811
    client = fedms.load(finished(family="vit"), "client-0")
    odds: list[Any] = [np.zeros((9, 9, 3), np.uint8), None, b"", 3]
    for odd in odds:
        with pytest.raises(FedmsError, match="input 1: the model reads images, not"):
            client.predict([odd])
    with pytest.raises(FedmsError, match="cannot read the image") as caught:
        client.predict(["half\ud83d.png"])
    assert str(caught.value).isprintable()
    cut = io.BytesIO()
    Image.effect_noise((60, 60), 50).save(cut, "png")
    picture = Image.open(io.BytesIO(cut.getvalue()[:1000]))
    with pytest.raises(FedmsError, match="input 2: cannot read the image"):
        client.predict([Image.new("RGB", (9, 9)), picture])


def test_a_picture_can_be_asked_about_again(finished, tmp_path):  # noqa: F811
    client = fedms.load(finished(family="vit"), "client-0")
    Image.effect_noise((40, 40), 50).save(tmp_path / "noise.png")
    with Image.open(tmp_path / "noise.png") as picture:
        assert (
            client.predict([picture]) == client.predict([picture]) == client.predict([tmp_path / "noise.png"])
        )


def test_memory_does_not_grow_with_the_inputs(finished, monkeypatch):  # noqa: F811
    """Of many inputs, no more than a chunk is read ahead, and each chunk is answered as it would be alone."""
    client = fedms.load(finished(), "client-0")
    read, judged = 0, []

    def endless():
        nonlocal read
        for number in count():
            read += 1
            yield f"play music {'louder ' * (number % 5)}"

    real = client.judge

    def judge(chunk, before):
        judged.append((len(chunk), read))
        return real(chunk, before)

    monkeypatch.setattr(client, "judge", judge)
    texts = list(islice(endless(), 2 * CHUNK + 10))
    read = 0
    found = client.predict_proba(islice(endless(), 2 * CHUNK + 10))
    assert judged == [(CHUNK, CHUNK), (CHUNK, 2 * CHUNK), (10, 2 * CHUNK + 10)]
    parts = [client.predict_proba(texts[at : at + CHUNK]) for at in (0, CHUNK, 2 * CHUNK)]
    assert np.array_equal(found, np.concatenate(parts))
