"""Grids and search spaces: what is read, and one clear error for what cannot be."""

import pytest

from lorabel.config import load_config
from lorabel.errors import ConfigError
from lorabel.search.space import Distribution, describe, nested, parse_search, read_grid, setting_path, varied


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("learning_rate", "optimizer.learning_rate"),
        ("rank", "method.rank"),
        ("seed", "training.seed"),
        ("training.seed", "training.seed"),
        ("method.name", "method.name"),
        ("label_smoothing", "loss.label_smoothing"),
        ("budget", "budget"),
        ("dropout", "method.dropout"),
        ("epochs", "training.num_epochs"),
        ("eps", "optimizer.eps"),
    ],
)
def test_names_find_their_setting(name, path):
    assert setting_path(name) == path


@pytest.mark.parametrize(
    ("name", "words"), [("name", "ambiguous setting, got 'name'; expected one of encoder.name"), ("learning_rat", "learning_rate"), ("method.x", "method.x")]
)
def test_names_that_mean_nothing_or_too_much_are_refused(name, words):
    with pytest.raises(ConfigError, match=words):
        setting_path(name)


def test_a_grid_is_every_combination_once_the_last_setting_fastest(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("- learning_rate: [1e-3, 2e-3]\n  rank: [2, 4]\n- {optimizer.name: [sgd], learning_rate: [0.1, 0.1]}\n")
    assert read_grid(path) == [
        {"optimizer.learning_rate": 1e-3, "method.rank": 2},
        {"optimizer.learning_rate": 1e-3, "method.rank": 4},
        {"optimizer.learning_rate": 2e-3, "method.rank": 2},
        {"optimizer.learning_rate": 2e-3, "method.rank": 4},
        {"optimizer.name": "sgd", "optimizer.learning_rate": 0.1},
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("learning_rate: 1e-3", r"grid.yaml: learning_rate needs a list of values, got 0\.001"),
        ("rank: []", "rank needs a list of values"),
        ("[]", None),
        ("3", "not a grid, got 3"),
        ("{}", "not a grid"),
        ("a: [", "cannot be read, got ParserError"),
    ],
)
def test_grids_that_cannot_be_read(content, words, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(content)
    if words is None:
        assert read_grid(path) == []
        return
    with pytest.raises(ConfigError, match=words):
        read_grid(path)


def test_every_shipped_grid_loads_and_each_of_its_members_is_a_valid_run():
    from importlib.resources import files

    shipped = [entry for entry in files("lorabel").joinpath("recipes", "grids").iterdir() if entry.name.endswith(".yaml")]
    assert [entry.name for entry in shipped] == ["paper.yaml"]
    members = read_grid(shipped[0])
    assert len(members) == 28
    for member in members:
        load_config(nested(member))


def test_a_search_space_in_all_kinds():
    space = parse_search("learning_rate=loguniform(1e-5,1e-2) rank=choice(2, 4,8), dropout = uniform(0,0.3) epochs=int(2,8,2)")
    assert space == {
        "optimizer.learning_rate": Distribution("loguniform", 1e-5, 1e-2),
        "method.rank": Distribution("choice", choices=(2, 4, 8)),
        "method.dropout": Distribution("uniform", 0, 0.3),
        "training.num_epochs": Distribution("int", 2, 8, 2),
    }
    assert parse_search("targets=choice([query,value],all-linear)")["method.targets"].choices == (["query", "value"], "all-linear")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "--search: empty"),
        ("rank", "cannot be read from 'rank' on"),
        ("rank=choice(2) x", "cannot be read from 'x' on"),
        ("rank=choose(2)", "choose"),
        ("rank=choice()", "choice takes 1 to"),
        ("dropout=uniform(0)", "uniform takes 2 values, got 1"),
        ("dropout=uniform(a,b)", "uniform takes numbers"),
        ("dropout=uniform(0.3,0.1)", "not a range"),
        ("learning_rate=loguniform(0,1)", "expected 0 < low < high"),
        ("rank=int(1.5,3)", "int takes whole numbers"),
        ("rank=int(2,16,0)", "no step"),
        ("rank=int(2,16,-2)", "no step"),
        ("rank=int(2,.inf)", "finite numbers"),
        ("dropout=uniform(0,.inf)", "finite numbers"),
        ("rank=int(1,3) rank=int(1,4)", "named twice"),
        ("rank=choice([2)", "cannot be read"),
        ("rnak=int(1,3)", "rank"),
    ],
)
def test_search_spaces_that_cannot_be_read(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_search(text)
    assert words in str(caught.value)


def test_assignments_as_settings_and_in_words():
    assignment = {"optimizer.learning_rate": 1e-3, "method.targets": ["query", "value"], "method.name": "lora"}
    assert nested(assignment) == {"optimizer": {"learning_rate": 1e-3}, "method": {"targets": ["query", "value"], "name": "lora"}}
    assert describe(assignment) == "learning_rate 0.001, targets query,value, method lora"
    assert varied([{"a.x": 1, "a.y": 2}, {"a.x": 1, "a.y": 3, "a.z": 1}]) == ["a.y", "a.z"]
