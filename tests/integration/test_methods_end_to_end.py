"""Every method trains in a bank as it would alone, is stored, loads by path, and answers as it was scored."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from lorabel.artifacts.records import read_record
from lorabel.config import load_config
from lorabel.errors import ConfigError
from lorabel.registry import METHODS
from lorabel.search.space import expand_grid, nested
from lorabel.workflows.evaluate import run_evaluate
from lorabel.workflows.sweep import run_sweep
from lorabel.workflows.train import run_train

# Small sizes, and those options that are stored in another form than they are trained in or take up positions.
SETTINGS = {
    "adalora": {"rank": 3},
    "bottleneck": {"width": 4},
    "dora": {"rank": 2},
    "lora": {"rank": 2, "init": "pissa"},
    "lora_prefix": {"rank": 2, "length": 3},
    "prefix": {"length": 3, "reparameterise": True, "reparameterised_width": 4},
    "prompt": {"length": 3},
    "vera": {"rank": 8},
}
BASE = {"training": {"num_epochs": 2, "batch_size": 8, "precision": "fp32", "threads": 1}}


@pytest.mark.parametrize("name", [name for name in METHODS.names() if not METHODS.get(name).trains_encoder])
def test_a_bank_of_two_rates(name, tiny_encoder, news_table, tmp_path):
    encoder = str(tiny_encoder("bert"))
    base = [{**BASE, "method": {"name": name, **SETTINGS.get(name, {})}}, {"encoder": {"name": encoder}, "data": {"source": str(news_table)}}]
    result = run_sweep(base, expand_grid({"learning_rate": [1e-3, 1e-2]}, "grid"), tmp_path / "sweep")
    assert result.record.banks == 1
    for member in result.record.members:
        folder = tmp_path / "sweep" / "members" / f"{member.number:04d}"
        alone = run_train(load_config(*base, nested(member.assignment)), tmp_path / f"alone-{member.number}")
        ours, its = (load_file(next((run / "adapter").glob("*.safetensors"))) for run in (folder, alone.run))
        assert ours.keys() == its.keys()
        # Adam turns rounding of near-zero gradients into steps of its own size.
        assert all(np.abs(ours[key] - its[key]).mean() <= 5e-4 for key in its)
        found = run_evaluate(folder, None, split="validation", precision="fp32", encoder=encoder, threads=1)
        assert found.evaluation.accuracy == member.accuracy
        assert found.evaluation.loss == pytest.approx(member.loss, rel=1e-4)


def test_methods_that_take_up_positions_share_a_sweep_with_those_that_do_not(tiny_encoder, news_table, tmp_path):
    base = [BASE, {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}, "training": {"num_epochs": 1}}]
    grid = [{"method.name": "head_only"}, {"method.name": "prompt", "method.length": 5}, {"method.name": "prefix", "method.length": 7}]
    result = run_sweep(base, grid, tmp_path / "sweep")
    assert [member.status for member in result.record.members] == ["finished"] * 3
    assert result.record.banks == 3
    lengths = [read_record(tmp_path / "sweep" / "members" / f"{k:04d}" / "record.json").plan["max_length_tokens"] for k in range(3)]
    assert [lengths[0] - length for length in lengths] == [0, 5, 7]


def test_trained_tokens_that_leave_no_room_for_a_text_are_refused_before_anything_is_made(tiny_encoder, news_table, tmp_path):
    base = [BASE, {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}}]
    with pytest.raises(ConfigError, match=r"prompt: its 45 trained tokens leave no room for a text, got 3 of the encoder's 48 positions"):
        run_train(load_config(*base, {"method": {"name": "prompt", "length": 45}}), tmp_path / "run")
    assert not list(tmp_path.glob("run/*.json"))
