"""A partition as files: read back, each client holds the same samples in the same order."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedms.config import Config, load_config
from fedms.core.errors import ConfigError, FedmsError
from fedms.data.federated import SPLITS, FederatedDataset, federated
from fedms.experiments.description import write_partition
from fedms.federation.identity import DataIdentity
from fedms.federation.world import divided

AWKWARD = (
    "line\nbreak",
    'a "quoted", text',
    " blanks ",
    "tab\tand\r\nmore",
    "\ufeffmark",
    "nul \0",
    "émoji 🙂",
    "NaN",
)
LABELS = ("b/c", "a", "1.0")


def whole(config: Config) -> FederatedDataset:
    dataset, parts = divided(config)
    return federated(dataset, parts, ("test",), config.evaluation.everyone, config.seed)


def texts(folder: Path) -> Path:
    path = folder / "texts.jsonl"
    rows = [(f"{AWKWARD[i % len(AWKWARD)]}{i}", LABELS[i % 3]) for i in range(90)]
    path.write_text("".join(json.dumps({"words": text, "kind": label}) + "\n" for text, label in rows))
    return path


def pictures(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for label in ("dark", "bright"):
        (folder / "pictures" / label).mkdir(parents=True)
        for number in range(30):
            pixels = generator.integers(0, 256, (6, 5, 3), dtype=np.uint8)
            suffix = "jpg" if number % 2 else "png"
            Image.fromarray(pixels).save(folder / "pictures" / label / f"{number}.{suffix}")
    return folder / "pictures"


def original(source: Path, **data: object) -> Config:
    return load_config(
        {
            "data": {"source": str(source), **data},
            "partition": {"clients": 3, "alpha": 1.0, "min_samples": 5},
            "evaluation": {"everyone": 9},
        }
    )


def read_back(folder: Path) -> Config:
    [public] = folder.glob("public.*")
    classes = json.loads((folder / "classes.json").read_text())
    return load_config(
        {
            "data": {"source": str(folder / "sites"), "classes": classes},
            "partition": {"rule": "files", "min_samples": 5},
            "evaluation": {"public": str(public)},
        }
    )


def same(one: object, other: object) -> bool:
    return one.tobytes() == other.tobytes() if isinstance(one, Image.Image) else one == other  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", [texts, pictures])
def test_each_client_and_everyone_have_the_same_samples_in_the_same_order(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    config = original(make(tmp_path), **({"text": "words", "label": "kind"} if make is texts else {}))
    write_partition(config, tmp_path / "to" / "written")
    before, after = whole(config), whole(read_back(tmp_path / "to" / "written"))
    assert before.class_names == after.class_names and list(before.clients) == list(after.clients)
    for client in before.clients:
        for split in SPLITS:
            one, other = before.samples(client, split), after.samples(client, split)
            assert len(one) and one.labels.tolist() == other.labels.tolist()
            pairs = zip(one.rows, other.rows, strict=True)
            assert all(same(before.inputs[a], after.inputs[b]) for a, b in pairs)
    one, other = before.everyone("test"), after.everyone("test")
    assert len(one) == 9 and one.labels.tolist() == other.labels.tolist()
    assert all(same(before.inputs[a], after.inputs[b]) for a, b in zip(one.rows, other.rows, strict=True))
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["written"], "nothing beside it"


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    config = original(texts(tmp_path), text="words", label="kind")
    folder = tmp_path / "written"
    folder.mkdir()
    write_partition(config, folder)  # an empty one is fine
    before = sorted(folder.rglob("*"))
    with pytest.raises(FedmsError, match=r"written: already there and not empty"):
        write_partition(config, folder)
    assert sorted(folder.rglob("*")) == before


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = original(texts(tmp_path), text="words", label="kind")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedms.data.written.write_json", fail)
    with pytest.raises(FedmsError, match="written: cannot be written: No space left on device"):
        write_partition(config, tmp_path / "new" / "written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl"]


def test_a_label_that_is_no_declared_class_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "x,a\ny,b\n" * 10)
    (tmp_path / "b.csv").write_text("text,label\n" + "x,a\ny,b\n" * 10 + "z,c\n")
    values = {"data": {"source": str(tmp_path), "classes": ["b", "a", "d"]}, "partition": {"rule": "files"}}
    with pytest.raises(FedmsError, match=r"b.csv: row 21 has the label 'c', which is not in data.classes$"):
        divided(load_config(values))
    (tmp_path / "b.csv").unlink()
    assert divided(load_config(values))[0].class_names == ("b", "a", "d"), "in their order, known here or not"


@pytest.mark.parametrize("classes", [["a"], ["a", "a"], ["a", " b"], ["a", ""]])
def test_declared_classes_are_two_different_names(classes: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^data.classes: input should be at least two different names"):
        load_config({"data": {"classes": classes}})


def test_a_public_file_must_be_there_and_of_the_same_kind_and_classes(tmp_path: Path) -> None:
    def opened(public: Path) -> None:
        divided(
            load_config(
                {
                    "data": {"source": str(texts(tmp_path)), "text": "words", "label": "kind"},
                    "partition": {"clients": 2},
                    "evaluation": {"public": str(public)},
                }
            )
        )

    with pytest.raises(FedmsError, match=r"evaluation.public: no such file: .*none.csv"):
        opened(tmp_path / "none.csv")
    (tmp_path / "public.csv").write_text("words,kind\nhello,z\n")
    with pytest.raises(FedmsError, match=r"public.csv: row 1 has the label 'z'"):
        opened(tmp_path / "public.csv")
    with pytest.raises(ConfigError, match=r"evaluation.everyone: must be null with evaluation.public"):
        load_config({"evaluation": {"everyone": 5, "public": "some.csv"}})


def test_a_changed_public_file_is_other_data(tmp_path: Path) -> None:
    write_partition(original(texts(tmp_path), text="words", label="kind"), tmp_path / "written")
    config = read_back(tmp_path / "written")

    def identity() -> DataIdentity:
        dataset, _ = divided(config)
        return DataIdentity.of(dataset, dataset.check(), config.partition.column)

    before, public = identity(), tmp_path / "written" / "public.jsonl"
    assert before.change(identity()) is None
    lines = public.read_text().splitlines(keepends=True)
    public.write_text("".join(lines[::-1]))
    assert before.change(identity()) == "its samples come in another order"
    public.write_text("".join(lines[1:]))
    assert before.change(identity()) == "it holds 98 samples, not 99"
