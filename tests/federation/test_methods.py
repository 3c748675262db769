"""Every method that can be named makes sense."""

import pytest

from fedms.errors import ConfigError
from fedms.federation.methods import METHODS, find

methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@methods
def test_a_method_is_described_in_one_line(method):
    assert find(method.name) is method is METHODS[method.name]
    assert method.summary and "\n" not in method.summary
    assert method.paper is None or method.paper.startswith("arXiv ")


@methods
def test_a_stage_shares_only_what_it_trains_and_never_a_local_expert(method):
    names = [stage.name for stage in method.stages]
    assert len(set(names)) == len(names)
    for stage in method.stages:
        assert set(stage.shares) <= set(stage.trains)
        assert stage.expert == "global" or not {"lora", "head"} & set(stage.shares)


@methods
def test_who_predicts_has_been_trained(method):
    trained = {stage.expert for stage in method.stages}
    needed = {"global": {"global"}, "local": {"local"}, "mixture": {"global", "local"}, "statistics": set()}
    assert needed[method.predicts] <= trained
    assert method.has_global == ("global" in trained)


@methods
def test_a_gate_is_there_exactly_where_experts_are_mixed(method):
    assert (method.gate is not None) == (method.predicts == "mixture")
    assert (method.gate == "learned") == any("gate" in stage.trains for stage in method.stages)


@methods
def test_a_global_expert_is_trained_before_any_local_one(method):
    order = [stage.expert for stage in method.stages]
    assert order == sorted(order)


def test_fedms_differs_from_its_rivals_in_what_their_names_say():
    fedms, constant, sal = METHODS["fedms"], METHODS["mixture-constant"], METHODS["fedavg-sal"]
    assert fedms.stages[:1] == constant.stages[:1] == sal.stages
    assert fedms.stages[1].shares == ("gate",)
    assert not any(stage.shares for stage in METHODS["local"].stages) and not METHODS["statistics"].stages
    assert {stage.activation for stage in METHODS["fedavg"].stages} == {"all"}


def test_an_unknown_method_is_refused_with_the_list():
    with pytest.raises(ConfigError) as caught:
        find("fedmss")
    assert str(caught.value) == f"method: 'fedmss' is not known; allowed: {', '.join(METHODS)}"
