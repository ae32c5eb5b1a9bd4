"""Searches through the library: draws depend on what is finished alone; nothing is told twice; objectives and kinds arrive."""

import pytest

from lorabel.errors import ConfigError
from lorabel.search.space import parse_search
from lorabel.search.study import Study, TrialResult, importances

SPACE = parse_search("learning_rate=loguniform(1e-5,1e-2) rank=int(2,16,2) targets=choice([query,value],[all-linear]) dropout=uniform(0,0.3)")


def study(tmp_path, **options):
    return Study(f"sqlite:///{tmp_path / 'study.db'}", SPACE, **({"sampler": "tpe", "seed": 1, "has_two_objectives": False} | options))


def score(assignment):
    return 1 - abs(assignment["method.rank"] - 10) / 20


def search(one, rounds, first=0, size=4):
    drawn = []
    for start in range(first, first + rounds * size, size):
        asked = one.ask(start, size)
        one.tell({start + place: TrialResult(score(assignment), 100) for place, assignment in enumerate(asked)})
        drawn += asked
    return drawn


def test_values_come_from_their_distributions(tmp_path):
    for one in search(study(tmp_path), 3):
        assert 1e-5 <= one["optimizer.learning_rate"] <= 1e-2
        assert one["method.rank"] in range(2, 17, 2)
        assert one["method.targets"] in (["query", "value"], ["all-linear"])
        assert 0 <= one["method.dropout"] <= 0.3


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_was_killed_draws_what_it_would_have_drawn(sampler, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = search(study(tmp_path / "a", sampler=sampler), 6)
    assert len({str(one) for one in straight}) == 24
    begun = search(study(tmp_path / "b", sampler=sampler), 4)
    killed = study(tmp_path / "b", sampler=sampler)
    killed.ask(16, 4)  # Drawn, and killed before it was written down.
    again = study(tmp_path / "b", sampler=sampler)
    again.drop_unfinished(range(16))
    assert begun + search(again, 2, first=16) == straight


def test_two_objectives_and_failures_are_told_once(tmp_path):
    import optuna

    one = study(tmp_path, has_two_objectives=True)
    one.ask(0, 3)
    one.tell({0: TrialResult(0.9, 1000), 1: TrialResult(None, 0)})
    one.tell({0: TrialResult(0.1, 1), 2: TrialResult(0.8, 10)})
    loaded = optuna.load_study(study_name="lorabel", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [trial.values for trial in loaded.trials] == [[0.9, 1000], None, [0.8, 10]]
    assert [trial.state.name for trial in loaded.trials] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_sweeps_that_share_a_storage_leave_each_other_alone(tmp_path):
    first, second = study(tmp_path, name="lorabel-a"), study(tmp_path, name="lorabel-b")
    drawn = first.ask(0, 2)
    second.drop_unfinished([])
    second.ask(0, 2)
    second.tell({0: TrialResult(0.1, 1), 1: TrialResult(0.2, 1)})
    first.tell({0: TrialResult(0.9, 1), 1: TrialResult(None, 0)})
    import optuna

    loaded = optuna.load_study(study_name="lorabel-a", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [(trial.values, trial.params["method.rank"]) for trial in loaded.trials] == [([0.9], drawn[0]["method.rank"]), (None, drawn[1]["method.rank"])]


@pytest.mark.parametrize(
    ("space", "two"),
    [("rank=int(2,8)", False), ("learning_rate=loguniform(1e-5,1e-2)", False), ("rank=int(2,16,2) dropout=uniform(0,0.3)", False), ("rank=int(2,16,2)", True)],
)
def test_a_study_of_another_space_is_refused(space, two, tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    Study(storage, parse_search("rank=int(2,16,2)"), "random", 0, has_two_objectives=False).ask(0, 2)
    with pytest.raises(ConfigError, match=r"--storage: holds a study of another space, got 'sqlite:.*; expected .*\. Give"):
        Study(storage, parse_search(space), "random", 0, has_two_objectives=two)
    Study(storage, parse_search("rank=int(2,16,2)"), "random", 0, has_two_objectives=False).ask(2, 2)


def test_a_storage_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--storage: cannot be opened, got 'nosuch://x'"):
        Study("nosuch://x", SPACE, "tpe", 0, has_two_objectives=False)


def test_the_setting_that_decides_is_the_most_important(tmp_path):
    drawn = search(study(tmp_path, sampler="random"), 10)
    found = importances(drawn, [score(one) for one in drawn], ["optimizer.learning_rate", "method.rank", "method.targets"])
    assert next(iter(found)) == "method.rank"
    assert found["method.rank"] > 0.8
    assert sum(found.values()) == pytest.approx(1)
    assert importances(drawn, [0.5] * len(drawn), ["method.rank"]) is None
    assert importances(drawn[:3], [0.1, 0.2, 0.3], ["method.rank"]) is None
