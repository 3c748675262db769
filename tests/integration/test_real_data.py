"""Real data and pretrained models, briefly."""

from pathlib import Path

import pytest

from fedms.config import load_config
from fedms.experiments import experiment

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not SHARED.is_dir(), reason=f"needs the public data in {SHARED}, which are not part of the repository"
    ),
]
BRIEF = {
    "partition": {"clients": 4, "alpha": 0.5},
    "federation": {"cohort": 4, "rounds_global": 1, "rounds_local": 1},
    "engine": {"workers": 1},
}


def test_banking_messages_are_learned_far_above_chance(tmp_path):
    data = {"source": str(SHARED / "banking77"), "limit": 600}
    result = experiment.run(
        load_config(BRIEF | {"data": data, "evaluation": {"everyone": 100}}), tmp_path / "run"
    )
    assert result["accuracy_base"] > 20 / 77, "the class names alone say much"
    assert result["accuracy_local"] > result["accuracy_base"]
    assert result["accuracy_local"] > 0.6
    assert result["trainable_fraction"] < 0.01


def test_pictures_of_four_domains_run_with_a_pretrained_vit(tmp_path):
    config = BRIEF | {
        "model": {"name": str(SHARED / "vit-tiny-patch16-224"), "image_size": 112},
        "data": {"source": str(SHARED / "pacs"), "limit": 60},
        "partition": {"clients": 4, "rule": "column", "column": "domain", "min_samples": 4, "alpha": None},
    }
    result = experiment.run(load_config(config), tmp_path / "run")
    assert len(result["per_client"]) == 4
    assert result["accuracy_base"] > 1 / 7
    assert 0 <= result["accuracy_global"] <= 1
