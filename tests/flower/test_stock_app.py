"""The fallback over Flower's public API: a ClientApp for stock SuperNodes; and the post over a Grid."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import yaml

pytest.importorskip("flwr", reason="needs the extra fedms[flower]: make test-flower")

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedms.engines.flower.app import client_app
from fedms.engines.flower.grid import GridPost
from fedms.engines.flower.post import Letter, Node, Return
from fedms.engines.flower.wire import HELLO, TASK, Hello, Reply, Request
from fedms.experiments.experiment import run


@pytest.fixture(autouse=True)
def identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def test_a_stock_supernode_answers_as_the_executor_does(fleet, tmp_path):
    made = fleet()
    nodes = made.all_come()
    run(made.config, tmp_path / "run")
    first = next(each for each in made.post.carried if each.kind == TASK and each.node == nodes["client-1"])
    wanted = made.site_config("client-1").model_copy(update={"folder": str(tmp_path / "stock")})
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    context = Context(1, 1, {"site": str(tmp_path / "site.yaml")}, RecordDict(), {})

    def asked(kind, data):
        message = Message(RecordDict({"fedms": ConfigRecord({"data": data})}), 1, kind)
        message.metadata.__dict__["_message_id"] = "1"
        record: Any = client_app(message, context).content["fedms"]
        return bytes(record["data"])

    assert Hello.of(asked("query", b"")).client == "client-1"
    site = made.post.there[nodes["client-1"]]
    request = Request.of(first.data)
    site._newest.clear()
    assert Reply.of(asked("train", first.data)).answer == Reply.of(site.answer(request.to_bytes())).answer


class Grid:
    """A Grid that keeps what was pushed."""

    def __init__(self):
        self.pushed, self.waiting = [], []

    def get_nodes(self):
        return [SimpleNamespace(node_id=7, last_activated_at="now", name="a")]

    def push_messages(self, messages):
        self.pushed += messages
        return [str(number) for number, _ in enumerate(messages)]

    def pull_messages(self, ids):
        return self.waiting


def replied(content=None, error=None):
    metadata = SimpleNamespace(reply_to_message_id="0")
    return SimpleNamespace(
        metadata=metadata, content=content, error=error, has_error=lambda: error is not None
    )


def test_letters_over_a_grid():
    grid = Grid()
    post = GridPost(grid)
    (node,) = post.nodes()
    assert node == Node(7, "now") and post.nodes()[node] == "a"
    assert post.send([Letter(node, HELLO, b"", "hello"), Letter(node, TASK, b"task", "global-1-train")]) == [
        "0",
        "1",
    ]
    kinds = [each.metadata.message_type for each in grid.pushed]
    assert kinds == ["query", "train"] and grid.pushed[1].metadata.dst_node_id == 7
    assert grid.pushed[1].content["fedms"]["data"] == b"task"


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (replied({"fedms": {"data": b"answer"}}), Return("0", b"answer")),
        (replied({"something": {"else": 1}}), Return("0", b"")),
        (replied(error=Error(5, "a path")), Return("0", None, "its site gave no sign of life", True)),
        (replied(error=Error(2, "a path")), Return("0", None, "Flower's error 2 at the site", False)),
    ],
)
def test_what_comes_back_over_a_grid(reply, wanted):
    grid = Grid()
    grid.waiting = [reply]
    assert GridPost(grid).collect(["0"]) == [wanted]
