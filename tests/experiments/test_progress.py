"""A run tells its observer what is computed, client by client."""

from fedms.experiments import experiment
from fedms.experiments.observers import Silent
from tiny_run import run_config, write_texts


class Seen(Silent):
    def __init__(self):
        self.told = []

    def progress(self, what, done, total):
        self.told.append((what, done, total))


def test_each_answer_is_told(checkpoint, tmp_path):
    write_texts(tmp_path / "texts.csv")
    seen = Seen()
    experiment.run(run_config(checkpoint("bert"), tmp_path / "texts.csv"), tmp_path / "run", seen)
    assert seen.told[:4] == [("statistics", done, 3) for done in range(4)]
    assert [each for each in seen.told if each[0] == "train"] == [
        *(("train", done, 2) for done in range(3)),
        *(("train", done, 3) for done in range(4)),
    ]
    assert seen.told[-1] == ("test", 3, 3)
