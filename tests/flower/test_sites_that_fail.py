"""Sites that come late, go, come back, lose their disk or answer nonsense, with a post in this process."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.metadata import version

import pytest

from fedms.core.errors import FedmsError
from fedms.engines.flower.opening import federation_of
from fedms.engines.flower.post import Node
from fedms.engines.flower.wire import HELLO, TASK, Hello, Reply, Request, Terms
from fedms.experiments.experiment import run
from fedms.federation.messages import decode_task

COSTS = (
    "seconds",
    "evaluation_seconds",
    "peak_memory_bytes",
    "uplink_bytes",
    "downlink_bytes",
    "evaluation_bytes",
)


def results(result):
    """A result without what accidents may change."""
    return {key: value for key, value in result.items() if key not in COSTS}


def failures(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(each["client"], each["kind"]) for line in lines for each in json.loads(line)["failures"]]


@pytest.fixture(scope="module")
def wanted(settings, tmp_path_factory):
    """The result of the same experiment on the local engine."""
    return results(run(settings("engine.workers=1"), tmp_path_factory.mktemp("local") / "run"))


def when(post, kind, number, do):
    """Do something when the task of this number and kind is on its way, just before its site sees it."""
    seen = []

    def watch(letter):
        if letter.kind == TASK and decode_task(Request.of(letter.data).task).kind == kind:
            seen.append(letter)
            if len(seen) == number:
                do(letter)

    post.on_letter = watch


def test_a_site_that_comes_back_has_lost_its_task_at_once(fleet, tmp_path, wanted):
    made = fleet()
    made.all_come()

    def restart(letter):
        site = made.post.there.pop(letter.node)
        made.come(site.name)

    when(made.post, "train", 2, restart)
    assert results(run(made.with_keys("federation.quorum=3"), tmp_path / "run")) == wanted
    assert failures(tmp_path / "run") == [("client-1", "died")]


def test_the_same_node_that_came_anew_has_lost_its_task(fleet, tmp_path, wanted):
    made = fleet()
    made.all_come()

    def again(letter):  # with keys, a node keeps its id
        site = made.post.there.pop(letter.node)
        made.post.there[replace(letter.node, since="later")] = site

    when(made.post, "train", 2, again)
    assert results(run(made.with_keys("federation.quorum=3"), tmp_path / "run")) == wanted
    assert failures(tmp_path / "run") == [("client-1", "died")]


def test_a_late_answer_is_never_read(fleet, tmp_path):
    made = fleet()
    made.all_come()
    held: list[str] = []
    asked_late: list[str] = []

    def hold(letter):
        held.append(str(len(made.post.carried) - 1))
        made.post.mute.add(letter.node)
        made.post.on_letter = come_late

    def come_late(letter):  # the answer arrives when that site is sent its next task
        if letter.node not in made.post.mute:
            return
        made.post.mute.clear()
        made.post.put(held[0], b"late")
        read = made.post.collect
        made.post.collect = lambda letters: asked_late.extend({*held} & {*letters}) or read(letters)
        made.post.on_letter = lambda letter: None

    when(made.post, "train", 2, hold)
    run(made.with_keys("federation.deadline_seconds=0.5"), tmp_path / "run")
    assert failures(tmp_path / "run") == [("client-1", "deadline")]
    assert held and not asked_late


def test_a_site_that_never_comes_is_waited_for_once(fleet, tmp_path, wanted):
    made = fleet()
    for name in ("client-0", "client-2"):
        made.come(name)
    config = made.with_keys(
        "federation.sites=[client-0, client-1, client-2]", "data.classes=[light, music, turn]"
    )
    with pytest.raises(FedmsError, match=r"client-1 could not be tested.*its site is not there.*--resume"):
        run(config, tmp_path / "run")
    made.come("client-1")
    found = results(run(config, tmp_path / "run", resume=True))
    assert found["partition"] == wanted["partition"] and len(found["per_client"]) == 3


def test_without_names_all_sites_must_come(fleet, tmp_path):
    made = fleet()
    made.come("client-0")
    with pytest.raises(FedmsError, match=r"1 of 3 sites came within 0.5 s: client-0"):
        run(made.config, tmp_path / "run")
    assert not (tmp_path / "run").exists() and made.post.closed


def test_a_site_that_lost_what_it_was_sent_is_sent_it_again(fleet, tmp_path, wanted):
    made = fleet()
    made.all_come()

    def lose(letter):  # in the first stage it keeps nothing of its own yet
        site = made.post.there.pop(letter.node)
        shutil.rmtree(site.folder)
        made.come(site.name)

    when(made.post, "train", 5, lose)
    assert results(run(made.with_keys("federation.quorum=3"), tmp_path / "run")) == wanted
    assert failures(tmp_path / "run") == [("client-1", "died"), ("client-1", "lost")]


def test_a_site_that_lost_what_it_trained_ends_the_run(fleet, tmp_path):
    made = fleet()
    made.all_come()
    gone = []

    def lose(letter):
        site = made.post.there.pop(letter.node)
        shutil.move(site.folder / "runs", tmp_path / "kept")
        gone.append(made.come(site.name))

    when(made.post, "test", 2, lose)
    with pytest.raises(FedmsError, match="what it trained is gone: put its site's folder back"):
        run(made.config, tmp_path / "run")
    del made.post.there[gone[0]]
    shutil.rmtree(made.folder / "sites" / "client-1" / "runs", ignore_errors=True)
    shutil.move(tmp_path / "kept", made.folder / "sites" / "client-1" / "runs")
    made.come("client-1")
    assert len(run(made.config, tmp_path / "run", resume=True)["per_client"]) == 3


def test_a_run_goes_on_after_its_server_ended(fleet, tmp_path, wanted):
    made = fleet()
    made.all_come()

    def end(letter):
        raise KeyboardInterrupt

    when(made.post, "interpolate", 1, end)
    with pytest.raises(KeyboardInterrupt):
        run(made.config, tmp_path / "run")
    made.post.on_letter = lambda letter: None
    assert results(run(made.config, tmp_path / "run", resume=True)) == wanted


def test_a_site_whose_data_changed_is_refused(fleet, tmp_path):
    made = fleet()
    nodes = made.all_come()
    when(made.post, "interpolate", 1, lambda letter: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(made.config, tmp_path / "run")
    made.post.on_letter = lambda letter: None
    del made.post.there[nodes["client-1"]]
    with (made.files["client-1"] / "train.jsonl").open("a") as file:
        file.write('{"text": "light once more", "label": "light"}\n')
    made.come("client-1")
    with pytest.raises(FedmsError, match="its data changed since the run began"):
        run(made.config, tmp_path / "run", resume=True)


def test_the_engine_cannot_change_in_a_resumption(fleet, tmp_path):
    made = fleet("engine.workers=1")
    made.all_come()
    run(made.config, tmp_path / "run")
    with pytest.raises(FedmsError, match=r"engine.name 'flower', not 'local'"):
        run(made.with_keys("engine.name=local"), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "0.0.1"}, f"site client-1 has fedms 0.0.1, not {version('fedms')}"),
        ({"client": "../client-1"}, "2 of 3 sites"),
        ({"classes": ("light", "mars")}, "class mars is not among data.classes"),
        ({"samples": -1}, "2 of 3 sites"),
    ],
)
def test_a_hello_that_does_not_fit(fleet, backbone, changes, message):
    made = fleet()
    nodes = made.all_come()
    site = made.post.there[nodes["client-1"]]
    said = replace(Hello.of(site.hello()), **changes)
    site.hello = said.to_bytes
    with pytest.raises(FedmsError, match=message.replace(".", r"\.")):
        federation_of(made.with_keys("data.classes=[light, music, turn]"), backbone, made.post)


def test_a_node_must_bear_the_name_of_its_key(fleet, backbone):
    made = fleet()
    nodes = made.all_come()
    made.post.nodes = lambda: {node: f"client-{2 * place}" for place, node in enumerate(nodes.values())}
    with pytest.raises(FedmsError, match="site client-1 holds the key of client-2"):
        federation_of(made.config, backbone, made.post)


@pytest.mark.parametrize(
    "nonsense", [b"", b"nonsense", Reply(b"no answer").to_bytes(), b"stack" + b"\xff" * 40]
)
def test_a_reply_of_nonsense_is_one_sites_failure(fleet, tmp_path, nonsense):
    made = fleet()
    nodes = made.all_come()
    site = made.post.there[nodes["client-1"]]
    answer, count = site.answer, []

    def once(data):
        count.append(1)
        return nonsense if len(count) == 1 else answer(data)

    site.answer = once
    run(made.config, tmp_path / "run")
    assert failures(tmp_path / "run") == [("client-1", "refused")]


def test_terms_are_told_once(fleet, tmp_path):
    made = fleet()
    made.all_come()
    run(made.config, tmp_path / "run")
    letters = [letter for letter in made.post.carried if letter.kind == TASK]
    told = [letter.node for letter in letters if Request.of(letter.data).told]
    assert sorted(told, key=lambda node: node.id) == [Node(number, "now") for number in (1, 2, 3)]
    assert len(letters) > 9
    assert sum(letter.kind == HELLO for letter in made.post.carried) == 3


def test_nothing_of_the_servers_places_is_told(fleet, tmp_path):
    made = fleet()
    made.all_come()
    run(made.config, tmp_path / "run")
    told = [Request.of(letter.data).told for letter in made.post.carried if letter.kind == TASK]
    terms = next(each for each in told if each is not None)
    assert isinstance(terms, Terms)
    for place in (str(tmp_path), made.local.model.name, "nothing that is opened"):
        assert place not in terms.config


def test_accuracies_without_a_public_file(fleet, tmp_path):
    made = fleet()
    for name in made.files:
        made.come(name, public=None)
    found = run(made.config, tmp_path / "run")
    assert found["accuracy_global"] is None and found["gate_global_share_everyone"] is None
    assert all(each["accuracy_global"] is None for each in found["per_client"])
    assert found["accuracy_global_shared"] is not None
    assert all(point["accuracy_global"] is None for point in found["frontier"])


def test_the_shared_expert_is_judged_on_everyones_rows_exactly(fleet, tmp_path):
    """Where the shared expert predicts for everybody, accuracy_global says the same on pooled data."""
    made = fleet("method=fedavg", "engine.workers=1")
    local = run(made.local, tmp_path / "local")
    made.all_come()
    found = run(made.with_keys("federation.rounds_local=0"), tmp_path / "run")
    assert found["accuracy_global_shared"] == pytest.approx(local["accuracy_global"])  # that one is float32
