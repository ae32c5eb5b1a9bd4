"""Word dropout, R-Drop, mix-up and the contrastive loss through the command line: trained, recorded, refused where they cannot act, chosen where rows are few."""

import itertools
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from lorabel.config import load_config
from lorabel.events import ignore
from lorabel.workflows import loss_choice
from lorabel.workflows.ablate import TECHNIQUES
from lorabel.workflows.bank import make_plans
from lorabel.workflows.preparation import prepare

SETTINGS = {
    "plain": ("--dropout", 0.2),
    "word dropout": ("--dropout", 0.2, "--augmentation", "word_dropout", "--set", "data.word_dropout_probability=0.4"),
    "r-drop": ("--dropout", 0.2, "--set", "loss.r_drop_alpha=1"),
    "r-drop by the head's dropout": ("--set", "loss.r_drop_alpha=1", "--set", "head.dropout=0.3"),
    "mix-up": ("--dropout", 0.2, "--set", "loss.mixup_alpha=0.5", "--set", "loss.class_weights=balanced"),
    "contrastive": ("--dropout", 0.2, "--set", "loss.contrastive_alpha=0.5"),
    "both": ("--dropout", 0.2, "--set", "loss.mixup_alpha=0.5", "--set", "loss.r_drop_alpha=0.5", "--set", "loss.name=focal"),
}
LEARNING = ("--precision", "fp32", "--threads", 1, "--batch-size", 7, "--learning-rate", 5e-3, "--targets", "all-linear", "--rank", 4)


def weights(run):
    return load_file(next((run / "adapter").glob("*.safetensors")))


def test_each_is_learned_with_is_recorded_and_gives_another_adapter(run_cli, tiny_encoder, news_table, tmp_path):
    found, values, tokens = {}, {}, {}
    for name, given in SETTINGS.items():
        done = run_cli("train", news_table, "--encoder", tiny_encoder("bert"), *LEARNING, "--epochs", 8, *given, "--out", tmp_path / name, "--json")
        assert done.code == 0, done.err
        record = json.loads((tmp_path / name / "record.json").read_text())
        found[name] = record["metrics"]["validation"]["accuracy"]
        assert record["training"]["steps"] == 8 * 7
        tokens[name] = int(re.search(r"steps, ([\d,]+) tokens", done.err)[1].replace(",", ""))
        values[name] = np.concatenate([value.ravel() for value in weights(tmp_path / name).values()])
    assert min(found.values()) > 0.9, found
    assert tokens["r-drop"] == tokens["both"] == 2 * tokens["plain"] == 2 * tokens["mix-up"]
    assert len({one.tobytes() for one in values.values()}) == len(SETTINGS)
    config = json.loads((tmp_path / "both" / "record.json").read_text())["config"]
    assert (config["loss"]["mixup_alpha"], config["loss"]["r_drop_alpha"]) == (0.5, 0.5)
    again = run_cli("train", "--config", tmp_path / "both" / "config.yaml", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert weights(tmp_path / "again").keys() == weights(tmp_path / "both").keys()
    assert all(np.array_equal(value, weights(tmp_path / "both")[name]) for name, value in weights(tmp_path / "again").items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("--set", "loss.r_drop_alpha=1"),
            "loss.r_drop_alpha: compares passes that differ in dropout alone, got no dropout anywhere; expected some. "
            "Turn some on with --set method.dropout=0.1 or --set encoder.dropout=true or --set head.dropout=0.1.",
        ),
        (("--set", "loss.r_drop_alpha=1", "--method", "ia3"), "Turn some on with --set encoder.dropout=true or --set head.dropout=0.1."),
        (("--set", "loss.mixup_alpha=-1"), "loss.mixup_alpha: input should be greater than or equal to 0, got -1"),
        (("--augmentation", "word_drop"), "data.augmentation: unknown name, got 'word_drop'; expected one of none, sentence_shuffle, word_dropout."),
        (("--set", "data.word_dropout_probability=1"), "data.word_dropout_probability: input should be less than 1, got 1"),
    ],
)
def test_what_cannot_act_is_refused_before_anything_is_made(given, message, run_cli, tiny_encoder, news_table, tmp_path):
    failed = run_cli("train", news_table, "--encoder", tiny_encoder("bert"), *given, "--out", tmp_path / "run")
    assert failed.code == 2, failed.err
    assert message in " ".join(failed.err.split())
    assert not (tmp_path / "run").exists()


def test_a_sweep_trains_them_beside_each_other(run_cli, tiny_encoder, news_table, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text("loss.r_drop_alpha: [0, 1]\nloss.mixup_alpha: [0, 0.5]\n")
    flags = (*LEARNING, "--dropout", 0.2, "--epochs", 2)
    done = run_cli("sweep", news_table, "--encoder", tiny_encoder("bert"), *flags, "--grid", grid, "--out", tmp_path / "sweep", "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert (len(printed["members"]), printed["banks"]) == (4, 1)
    alone = run_cli(
        *(
            "train",
            news_table,
            "--encoder",
            tiny_encoder("bert"),
            *flags,
            "--set",
            "loss.r_drop_alpha=1",
            "--set",
            "loss.mixup_alpha=0.5",
            "--out",
            tmp_path / "alone",
        )
    )
    assert alone.code == 0, alone.err
    (member,) = [one for one in printed["members"] if one["settings"] == {"loss.r_drop_alpha": 1, "loss.mixup_alpha": 0.5}]
    its = weights(tmp_path / "alone")
    ours = load_file(next((tmp_path / "sweep" / member["adapter"]).glob("*.safetensors")))
    assert all(np.abs(ours[name] - value).max() < 1e-4 for name, value in its.items())


def test_left_out_words_move_no_row_and_depend_on_seed_epoch_and_row_alone(tiny_encoder, news_table):
    def tables(seed):
        given = {"source": str(news_table), "augmentation": "word_dropout", "augmentation_probability": 0.8}
        prepared = prepare(load_config({"encoder": {"name": str(tiny_encoder("bert"))}, "data": given, "training": {"seed": seed}}), ignore)
        (plan,) = make_plans([prepared], ignore)
        return prepared.tables["train"], [plan.table_of_epoch(epoch) for epoch in (0, 1, 0)]

    def rows(table):
        return [table.input_ids[a:b].tolist() for a, b in itertools.pairwise(table.offsets.tolist())]

    whole, (first, second, again) = tables(0)
    for row, full in zip(rows(first), rows(whole), strict=True):
        left = iter(full)
        assert all(token in left for token in row)
        assert len(row) > 2
    changed = sum(row != full for row, full in zip(rows(first), rows(whole), strict=True))
    assert 0.6 < changed / len(whole) < 0.9
    assert rows(first) == rows(again) != rows(second)
    _, (other, *_) = tables(1)
    assert rows(other) != rows(first)
    lines = (news_table / "train.jsonl").read_text().splitlines(keepends=True)
    (news_table / "train.jsonl").write_text("".join(lines[:24]))
    assert rows(tables(0)[1][0]) == rows(first)[:24]


@pytest.mark.parametrize(
    ("layer", "alpha"),
    [
        ({}, 1.0),
        ({"method": {"name": "full"}}, 1.0),
        ({"loss": {"contrastive_alpha": 0.0}}, 0.0),
        ({"loss": {"contrastive_alpha": 0.3}}, 0.3),
        ({"training": {"gradient_accumulation_steps": 2}}, 0.0),
        ({"method": {"name": "head_only"}}, 0.0),
        ({"head": {"pooling": "cls"}}, 0.0),
        ({"data": {"long_texts": "windows"}}, 0.0),
    ],
)
def test_few_rows_are_contrasted_unless_it_is_said(layer, alpha, tiny_encoder, news_table):
    base = {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}, "head": {"kind": "linear", "pooling": "mean"}}
    prepared = prepare(load_config(base, layer), ignore)
    assert prepared.loss.contrastive_alpha == alpha
    (plan,) = make_plans([prepared], ignore)
    assert len(plan.regularisers) == (alpha > 0)
    assert any("a contrastive term beside it, because 48 training rows are few" in reason for reason in prepared.reasons) == (alpha == 1)


def test_rows_that_are_not_few_are_not_contrasted(tiny_encoder, news_table, monkeypatch):
    config = load_config({"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}, "head": {"kind": "linear", "pooling": "mean"}})
    for most, alpha in ((48, 1.0), (47, 0.0)):
        monkeypatch.setattr(loss_choice, "FEW_ROWS", most)
        assert prepare(config, ignore).loss.contrastive_alpha == alpha


def test_the_record_says_that_few_rows_were_contrasted_and_another_run_of_it_is_the_same(run_cli, tiny_encoder, news_table, tmp_path):
    flags = ("--encoder", tiny_encoder("bert"), *LEARNING, "--head", "linear", "--set", "head.pooling=mean", "--epochs", 2)
    done = run_cli("train", news_table, *flags, "--out", tmp_path / "few")
    assert done.code == 0, done.err
    assert "a contrastive term beside it" in " ".join(done.err.split())
    assert json.loads((tmp_path / "few" / "record.json").read_text())["plan"]["contrastive_alpha"] == 1.0
    given = run_cli("train", news_table, *flags, "--set", "loss.contrastive_alpha=1", "--out", tmp_path / "given")
    none = run_cli("train", news_table, *flags, "--set", "loss.contrastive_alpha=0", "--out", tmp_path / "none")
    assert given.code == none.code == 0
    its = weights(tmp_path / "few")
    assert all(np.array_equal(value, its[name]) for name, value in weights(tmp_path / "given").items())
    assert any(not np.array_equal(value, its[name]) for name, value in weights(tmp_path / "none").items())


def test_an_ablation_leaves_them_out_where_they_are_used():
    config = load_config({"loss": {"r_drop_alpha": 1.0, "mixup_alpha": 0.5}, "data": {"augmentation": "word_dropout"}})
    assert TECHNIQUES["r_drop"].without(config) == {"no R-Drop": {"loss.r_drop_alpha": 0.0}}
    assert TECHNIQUES["mixup"].without(config) == {"no mix-up": {"loss.mixup_alpha": 0.0}}
    assert TECHNIQUES["augmentation"].without(config) == {"no augmentation": {"data.augmentation": "none"}}
    assert TECHNIQUES["r_drop"].without(load_config()) == TECHNIQUES["mixup"].without(load_config()) == TECHNIQUES["contrastive"].without(load_config()) == {}
    assert TECHNIQUES["contrastive"].without(load_config({"loss": {"contrastive_alpha": 0.5}})) == {"no contrastive loss": {"loss.contrastive_alpha": 0.0}}
