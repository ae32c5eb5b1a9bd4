"""`plan`: the paper's numbers, folders read by their header, groups that add up."""

import json
import struct

import pytest

from lorabel.config import load_config
from lorabel.errors import ArtifactError, ConfigError
from lorabel.heads import HEAD_KINDS
from lorabel.workflows.plan import encoder_shape, run_plan, tensor_names
from tests.conftest import FAMILIES, reference_model

PAPER = {"encoder": {"name": "roberta-base"}, "method": {"name": "lora", "rank": 8, "alpha": 16, "targets": ["query", "value"]}, "head": {"kind": "native"}}


def test_the_papers_setting_in_the_contracts_form():
    result = run_plan(load_config(PAPER), 4).as_json()
    assert result["parameters"] == {"adapter": 294_912, "head": 593_668, "trainable": 888_580, "encoder": 124_055_040, "total": 124_943_620}
    assert result["bytes"] == {"adapter_file": 4 * 888_580, "full_model": 4 * 124_943_620}
    assert result["budget"] == {"limit": 999_999, "fits": True}
    assert result["nearest"] == []
    assert result["peft_compatible"] is True


def test_the_number_other_tools_print():
    assert run_plan(load_config(PAPER), 4).parameters.total_with_head_twice == 125_537_288


def test_over_the_budget_it_lists_what_fits_and_does_not_raise():
    result = run_plan(load_config(PAPER, {"method": {"rank": 12}, "budget": "1M"}), 4)
    assert not result.fits
    assert [(entry.method["rank"], entry.head, entry.parameters.trainable) for entry in result.nearest] == [(11, "native", 999_172), (27, "linear", 998_404)]
    assert all(entry["trainable"] <= 1_000_000 and entry["flags"] for entry in result.as_json()["nearest"])


@pytest.mark.parametrize("encoder", ["minilm", "roberta-base", "distilbert-base-uncased", "electra-small"])
@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "head_only"}, {"name": "lora", "targets": ["all-linear"]}])
@pytest.mark.parametrize("head", [*HEAD_KINDS])
def test_groups_add_up_to_the_counts(encoder, method, head):
    config = load_config({"encoder": {"name": encoder}, "method": method, "head": {"kind": head}})
    try:
        result = run_plan(config, 3)
    except ConfigError:
        assert head == "native-pooler"
        assert encoder != "minilm"
        return
    assert sum(size for size, _ in result.groups.values()) == result.parameters.total
    assert sum(trained for _, trained in result.groups.values()) == result.parameters.trainable


def test_full_fine_tuning_is_told_apart():
    result = run_plan(load_config({"method": {"name": "full"}}), 4)
    assert (result.fits, result.is_exempt) == (False, True)
    assert not run_plan(load_config(PAPER), 4).is_exempt


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_counted_from_its_configuration_and_header(family, tiny_encoder):
    name, shape = encoder_shape(str(tiny_encoder(family)))
    assert name == tiny_encoder(family).name
    assert shape.parameter_count == sum(parameter.numel() for parameter in reference_model(family).base_model.parameters())


def test_a_folder_without_a_pooler_is_seen_in_the_header(tiny_encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_encoder("bert")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({key: tensor for key, tensor in load_file(folder / "model.safetensors").items() if "pooler" not in key}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="this checkpoint has no pooler"):
        run_plan(load_config({"encoder": {"name": str(tmp_path)}, "head": {"kind": "native"}}), 3)
    chosen = run_plan(load_config({"encoder": {"name": str(tmp_path)}}), 3)
    assert chosen.chosen.head == "linear"
    assert "this checkpoint lacks what the bert family's own head reads" in chosen.reasons[0]
    assert run_plan(load_config({"encoder": {"name": str(tmp_path)}, "head": {"kind": "linear"}}), 3).fits


def test_a_roberta_folder_that_carries_a_pooler_counts_as_one_without(tiny_encoder, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = tiny_encoder("roberta")
    pooler = {"roberta.pooler.dense.weight": torch.zeros(32, 32), "roberta.pooler.dense.bias": torch.zeros(32)}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({**load_file(folder / "model.safetensors"), **pooler}, tmp_path / "model.safetensors")
    found, expected = (run_plan(load_config({"encoder": {"name": str(path)}}), 3) for path in (tmp_path, folder))
    assert found.parameters == expected.parameters
    with pytest.raises(ConfigError, match="the roberta family has no pooler"):
        run_plan(load_config({"encoder": {"name": str(tmp_path)}, "head": {"kind": "native-pooler"}}), 3)


def test_a_configuration_alone_is_enough(tiny_encoder, tmp_path):
    (tmp_path / "config.json").write_text((tiny_encoder("bert") / "config.json").read_text())
    assert run_plan(load_config({"encoder": {"name": str(tmp_path)}}), 3).fits


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 4) + b"{oh}", struct.pack("<Q", 50) + b"{"])
def test_a_damaged_weights_file_is_refused(tmp_path, content):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        tensor_names(file)


@pytest.mark.parametrize("content", [None, "", "{", "[]", json.dumps({"model_type": "gpt2"}), "\x00"])
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises((ArtifactError, ConfigError), match=r"config\.json"):
        encoder_shape(str(tmp_path))


def test_a_percentage_is_of_encoder_and_head_whatever_the_head_took_from_the_encoder():
    for head in ("native", "native-pooler"):
        result = run_plan(load_config({"encoder": {"name": "minilm"}, "head": {"kind": head}, "budget": "50%"}), 4)
        assert result.budget.limit == (result.parameters.encoder + result.parameters.head) // 2


@pytest.mark.parametrize(
    ("encoder", "head", "budget", "rank"),
    [("minilm", "native", None, 8), ("roberta-base", "native", None, 2), ("roberta-base", "linear", None, 6), ("minilm", "native", "150k", 3)],
)
def test_the_default_recipe_takes_the_rank_that_fits(encoder, head, budget, rank):
    settings = {"encoder": {"name": encoder}, "head": {"kind": head}, "budget": budget}
    result = run_plan(load_config(settings), 4)
    assert result.fits
    assert result.chosen.method["rank"] == rank
    explicit = {"method": {"name": "lora", "rank": rank, "alpha": 2 * rank, "targets": ["all-linear"]}}
    alone, filled = (run_plan(load_config(settings, explicit, more), 4) for more in ({}, {"method": {"ranks": result.chosen.method.get("ranks")}}))
    assert result.parameters == filled.parameters
    assert alone.fits
    assert rank == 8 or not run_plan(load_config(settings, explicit, {"method": {"rank": rank + 1}}), 4).fits


def test_a_rank_that_is_given_is_never_lowered():
    fewer_sites = run_plan(load_config({"encoder": {"name": "roberta-base"}, "method": {"rank": 8}}), 4)
    assert (fewer_sites.fits, fewer_sites.chosen.method["rank"], fewer_sites.chosen.method["targets"]) == (True, 8, ["query", "value"])
    assert not run_plan(load_config({"encoder": {"name": "roberta-base"}, "method": {"rank": 100}}), 4).fits
    assert not run_plan(
        load_config({"encoder": {"name": "roberta-base"}, "method": {"rank": 8, "targets": ["all-linear"]}, "head": {"kind": "native"}}), 4
    ).fits
