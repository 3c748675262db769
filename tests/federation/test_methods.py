"""Every method that can be named makes sense."""

import pytest

from fedms.config import Config, load_config
from fedms.core.errors import ConfigError
from fedms.federation.methods import METHODS, find
from fedms.federation.recipe import recipe_for

methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@methods
def test_a_method_is_described_in_one_line(method):
    assert find(method.name) is method is METHODS[method.name]
    assert method.summary and "\n" not in method.summary
    assert method.paper is None or method.paper.startswith("arXiv ")


@methods
def test_a_stage_shares_only_what_it_trains(method):
    names = [stage.name for stage in method.stages]
    assert len(set(names)) == len(names)
    for stage in method.stages:
        assert {*stage.shares} <= {*stage.trains} and {
            group for phase in stage.phases for group in phase
        } <= {*stage.trains}
        assert stage.expert == "local" or stage.shares == stage.trains, "a global expert is what is shared"


@methods
def test_who_predicts_is_there_in_the_end(method):
    trained = {stage.expert for stage in method.stages}
    needed = {"local": {"local"}, "mixture": {"global", "local"}, "blend": {"global", "local"}}.get(
        method.predicts, set()
    )
    assert needed <= trained
    assert recipe_for(load_config({}), method).has_global == (
        method.predicts in ("global", "mixture", "blend") or "global" in trained
    )


@methods
def test_a_gate_is_there_exactly_where_outputs_are_mixed(method):
    assert (method.gate is not None) == (method.predicts == "mixture")
    assert (method.gate == "learned") == any("gate" in stage.trains for stage in method.stages)


@methods
def test_a_global_expert_is_trained_before_any_local_one(method):
    order = [stage.expert for stage in method.stages]
    assert order == sorted(order)


@methods
def test_a_personal_method_spends_both_budgets_and_a_common_model_the_first(method):
    budgets = [stage.budget for stage in method.stages]
    personal = any(stage.expert == "local" for stage in method.stages)
    assert budgets == (["global", "local"] if personal else ["global"] if method.stages else [])


@methods
def test_what_a_method_fixes_is_a_valid_experiment(method):
    config = method.configure(Config())
    for key, value in method.settings.items():
        section, name = key.split(".")
        assert getattr(getattr(config, section), name) == value


def test_fedms_differs_from_its_rivals_in_what_their_names_say():
    fedms, constant, sal = METHODS["fedms"], METHODS["mixture-constant"], METHODS["fedavg-sal"]
    assert fedms.stages[:1] == constant.stages[:1] == sal.stages
    assert fedms.stages[1].without("gate") == constant.stages[1] == METHODS["mixture-count"].stages[1]
    assert fedms.stages[1].shares == ("gate",)
    assert not any(stage.shares for stage in METHODS["local"].stages) and not METHODS["statistics"].stages
    assert {stage.activation for stage in METHODS["fedavg"].stages} == {"all"}


def test_an_unknown_method_is_refused_with_the_list():
    with pytest.raises(ConfigError) as caught:
        find("fedmss")
    assert (
        str(caught.value)
        == f"method: 'fedmss' is not known; allowed: {', '.join(METHODS)}; did you mean 'fedms'?"
    )
