"""`sweep` end to end on a tiny encoder: members as they would be alone, kills, memory, halving, searches, refusals."""

import json
import shutil
import signal

import numpy as np
import pytest
import yaml
from safetensors.numpy import load as load_tensors
from safetensors.numpy import load_file, save

from lorabel.artifacts.sweeps import SweepLayout, read_sweep
from lorabel.config import load_config
from lorabel.errors import ConfigError, DataError, StoppedError
from lorabel.events import Note
from lorabel.search.space import expand_grid, nested, parse_search
from lorabel.training import loop
from lorabel.workflows import sweep as module
from lorabel.workflows.predict import load
from lorabel.workflows.sweep import Search, SweepOptions, run_sweep
from lorabel.workflows.train import run_train

BASE = {
    "method": {"name": "lora", "targets": ["all-linear"]},
    "training": {"num_epochs": 4, "batch_size": 8, "gradient_accumulation_steps": 2, "precision": "fp32", "threads": 1},
    "optimizer": {"learning_rate": 5e-3},
}
GRID = expand_grid({"rank": [1, 3], "learning_rate": [2e-3, 1e-2], "dropout": [0.0, 0.2]}, "grid")


@pytest.fixture
def base(tiny_encoder, news_table):
    return [BASE, {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(news_table)}}]


def weights(folder):
    return load_file(next((folder / "adapter").glob("*.safetensors")))


def outcome(record):
    """All of a record but what a clock decides."""
    return [member.model_dump(exclude={"seconds"}) for member in record.members]


UNEVEN = [{"method.ranks": ranks} for ranks in (None, {"*": 0, "layers.0.query": 3}, {"*": 0, "layers.1.query": 2}, {"layers.0.query": 5})]
SPREADS = {
    "settings": (GRID, 1),
    "ranks": (UNEVEN, 1),
    # The lengths of a site's rows would be zero for those that lack it.
    "ranks of dora": ([{**one, "method.name": "dora"} for one in UNEVEN], 3),
}


@pytest.mark.parametrize("spread", SPREADS)
def test_every_member_is_what_it_would_be_alone(spread, base, tmp_path):
    members, banks = SPREADS[spread]
    result = run_sweep(base, members, tmp_path / "sweep")
    assert result.record.banks == banks
    for member in result.record.members:
        alone = run_train(load_config(*base, nested(member.assignment)), tmp_path / f"alone-{member.number}")
        folder = tmp_path / "sweep" / "members" / f"{member.number:04d}"
        ours, its = weights(folder), weights(alone.run)
        assert ours.keys() == its.keys()
        assert all(np.abs(ours[name] - its[name]).max() <= 2e-4 for name in its), member
        assert abs(member.loss - alone.record.metrics.validation.loss) <= 1e-3
        assert member.trainable == alone.record.parameters.trainable
        assert yaml.safe_load((folder / "config.yaml").read_text()) == yaml.safe_load((alone.run / "config.yaml").read_text())
        assert len(load(folder, encoder=base[1]["encoder"]["name"]).predict(["bank shares fell"])) == 1


def test_the_best_settings_train_as_they_are(base, tmp_path):
    result = run_sweep(base, GRID[:4], tmp_path / "sweep")
    best = result.record.ranked()[0]
    assert all(member.accuracy <= best.accuracy for member in result.record.members)
    again = run_train(load_config(yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())), tmp_path / "again")
    assert again.record.parameters.trainable == best.trainable
    assert abs(again.record.metrics.validation.loss - best.loss) <= 1e-3
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert page.count("<svg") == 3 + ("importances.png" in {path.name for path in (tmp_path / "sweep" / "figures").iterdir()})
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", "").replace(
        "https://matplotlib.org", ""
    )


def killing(monkeypatch, at):
    real, done = loop._Run._optimise, []

    def dies(*arguments):
        done.append(1)
        if len(done) in at:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop._Run, "_optimise", dies)


def sources():
    search = Search(parse_search("learning_rate=loguniform(1e-3,2e-2) rank=choice(1,2,4) dropout=uniform(0,0.3)"), trials=9, seed=3)
    return {"grid": (GRID, SweepOptions(bank_size=3)), "search": (search, SweepOptions(bank_size=3)), "halving": (GRID, SweepOptions(bank_size=8, halving=2))}


@pytest.mark.parametrize("kind", ["grid", "search", "halving"])
def test_a_sweep_that_was_killed_gives_the_same_table(kind, base, tmp_path, monkeypatch):
    base = [*base, {"training": {"evaluate_every_steps": 2}}]
    source, options = sources()[kind]
    straight = run_sweep(base, source, tmp_path / "straight", options).record
    killing(monkeypatch, (5, 16, 24))
    killed = 0
    while True:
        try:
            resumed = run_sweep(base, source, tmp_path / "killed", options, resume=killed > 0).record
        except KeyboardInterrupt:
            killed += 1
            continue
        break
    assert killed == (1 if kind == "halving" else 3)
    assert outcome(resumed) == outcome(straight)
    for member in straight.members:
        one, other = (tmp_path / name / "members" / f"{member.number:04d}" for name in ("straight", "killed"))
        assert all(np.array_equal(weights(one)[name], weights(other)[name]) for name in weights(one))
        assert not (tmp_path / "killed" / "banks" / "0000").exists()


def test_a_sweep_that_was_killed_between_two_banks_refuses_other_data_and_weights(base, tiny_encoder, news_table, tmp_path, dies_on_call):
    encoder = shutil.copytree(tiny_encoder("bert"), tmp_path / "encoder")
    base = [*base, {"encoder": {"name": str(encoder)}}]
    options = SweepOptions(bank_size=1)
    dies_on_call(module, "train_bank", 2)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(base, GRID[:2], tmp_path / "sweep", options)
    train, model = news_table / "train.jsonl", encoder / "model.safetensors"
    for file, changed, message in (
        (train, train.read_bytes().replace(b"bank shares", b"bank bonds", 1), "the data changed since the sweep was begun, got another digest of train;"),
        (model, spoilt(model.read_bytes()), "the encoder changed since the sweep was begun, got another digest of encoder;"),
    ):
        before = file.read_bytes()
        file.write_bytes(changed)
        with pytest.raises(DataError, match=f"--resume: {message}"):
            run_sweep(base, GRID[:2], tmp_path / "sweep", options, resume=True)
        file.write_bytes(before)
    record = tmp_path / "sweep" / "sweep.json"
    facts = json.loads(record.read_text())
    assert set(facts.pop("inputs")) == {"tokenizer", "encoder", "train", "validation", "test"}
    # As an earlier version wrote it.
    record.write_text(json.dumps(facts))
    assert [member.status for member in run_sweep(base, GRID[:2], tmp_path / "sweep", options, resume=True).record.members] == ["finished"] * 2


def spoilt(content):
    """Other weights under the same names."""
    return save({name: 1.5 * tensor for name, tensor in load_tensors(content).items()}, {"format": "pt"})


def test_halving_lets_the_better_half_go_on(base, tmp_path):
    record = run_sweep(base, GRID, tmp_path / "sweep", SweepOptions(halving=2)).record
    steps = sorted(member.steps for member in record.members)
    per_epoch = steps[0]
    assert [step // per_epoch for step in steps] == [1, 1, 1, 1, 2, 2, 3, 4]
    assert [member.status for member in record.members].count("pruned") == 7
    (survivor,) = [member for member in record.members if member.status == "finished"]
    assert survivor.steps == 4 * per_epoch


def test_out_of_memory_halves_the_bank_and_goes_on(base, tmp_path, monkeypatch):
    real, sizes = module.train_bank, []

    def small(members, *arguments):
        sizes.append(len(members))
        if len(members) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return real(members, *arguments)

    monkeypatch.setattr(module, "train_bank", small)
    notes = []
    record = run_sweep(base, GRID, tmp_path / "sweep", on_event=lambda event: notes.append(event.text) if isinstance(event, Note) else None).record
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    assert record.banks == 4
    assert all(member.status == "finished" for member in record.members)
    assert "Memory ran out with 8 members at once; they are trained in two banks." in notes
    monkeypatch.setattr(module, "train_bank", real)
    plain = run_sweep(base, GRID, tmp_path / "plain").record
    assert [member.accuracy for member in plain.members] == [member.accuracy for member in record.members]


def test_unlike_methods_heads_and_update_rules_go_into_banks_of_their_own(base, tmp_path):
    grid = expand_grid([{"method.name": ["lora", "head_only"]}, {"head.kind": ["linear"]}, {"optimizer.name": ["sgd"]}, {"rank": [2]}], "grid")
    record = run_sweep(base, grid, tmp_path / "sweep").record
    assert [member.bank for member in record.members] == [0, 1, 2, 3, 0]
    assert len({member.trainable for member in record.members}) > 2


def test_a_member_that_cannot_go_on_is_said_to_have_failed(base, tmp_path, monkeypatch):
    grid = expand_grid({"learning_rate": [5e-3, 1e30]}, "grid")
    record = run_sweep([*base, {"training": {"max_nonfinite_steps": 2, "num_epochs": 8}}], grid, tmp_path / "sweep").record
    good, bad = record.members
    assert (good.status, bad.status) == ("finished", "failed")
    assert bad.reason
    assert str(bad.number) in (tmp_path / "sweep" / "report.html").read_text()
    assert not (tmp_path / "sweep" / "members" / "0001" / "adapter").exists()


def test_a_collapsed_member_is_named_in_record_page_table_and_json(base, run_cli, tmp_path, monkeypatch):
    collapsed = iter(["The classifier has collapsed: 'sport' [1]", None] * 2)
    monkeypatch.setattr("lorabel.workflows.finishing.collapse", lambda labels, answers, names: next(collapsed))
    words = ("sweep", base[1]["data"]["source"], "--encoder", base[1]["encoder"]["name"], "--precision", "fp32", "--threads", 1, "--epochs", 1)
    grid = tmp_path / "grid.yaml"
    grid.write_text("rank: [1, 2]\n")
    shown = run_cli(*words, "--grid", grid, "-o", tmp_path / "shown", "--quiet")
    assert shown.code == 0, shown.err
    assert shown.err.startswith("warning: Member 0: the classifier has collapsed: 'sport' [1].\n")
    assert shown.out.count("collapsed") == 1
    assert "warning: Member 0: the classifier has collapsed: 'sport' [1].\n" in shown.out
    page = (tmp_path / "shown" / "report.html").read_text()
    assert page.count('<p class="notice warn">Member 0: the classifier has collapsed: &#39;sport&#39; [1].</p>') == 1
    printed = json.loads(run_cli(*words, "--grid", grid, "-o", tmp_path / "json", "--json").out)
    assert [member["alarms"] for member in printed["members"]] == [["The classifier has collapsed: 'sport' [1]"], []]
    layout = SweepLayout(tmp_path / "json")
    assert [member.alarms for member in read_sweep(layout.record).members] == [["The classifier has collapsed: 'sport' [1]"], []]
    facts = json.loads(layout.record.read_text())
    for member in facts["members"]:
        del member["alarms"]
    # As an earlier version wrote it.
    layout.record.write_text(json.dumps(facts))
    assert read_sweep(layout.record).alarms() == []


def test_a_stop_before_anything_is_trained_costs_no_earlier_sweep(base, tmp_path, monkeypatch):
    run_sweep(base, GRID[:1], tmp_path / "sweep")
    before = (tmp_path / "sweep" / "sweep.json").read_text()
    check = module._Sweep.check

    def interrupted(sweep):
        signal.raise_signal(signal.SIGINT)
        check(sweep)

    monkeypatch.setattr(module._Sweep, "check", interrupted)
    with pytest.raises(StoppedError, match=r"Stopped before anything was changed\."):
        run_sweep(base, GRID[1:3], tmp_path / "sweep", overwrite=True)
    assert (tmp_path / "sweep" / "sweep.json").read_text() == before
    assert (tmp_path / "sweep" / "members" / "0000" / "adapter").is_dir()


def test_banks_are_sized_by_their_members_and_not_by_the_settings_below(base, tmp_path):
    """Neither the length nor the budget of the settings below has to fit what the members set."""
    big = [*base, {"method": {"rank": 8}, "budget": "1k"}]
    with pytest.raises(ConfigError):
        run_train(load_config(*big), tmp_path / "alone")
    grid = expand_grid({"rank": [1], "max_length": [16], "learning_rate": [1e-3, 5e-3]}, "grid")
    for overwrite in (False, True):
        record = run_sweep(big, grid, tmp_path / "sweep", overwrite=overwrite).record
        assert [member.status for member in record.members] == ["finished", "finished"]
        assert record.banks == 1


@pytest.mark.parametrize(
    ("assignment", "kind", "message"),
    [
        ({"final": True}, ConfigError, r"final: cannot be a member's own"),
        ({"trackers": ["none_such"]}, ConfigError, r"none_such"),
        ({"data.fold": 0}, ConfigError, r"data\.fold: one of none, got 0 without data\.folds"),
    ],
)
def test_what_a_member_may_not_set_costs_no_earlier_sweep_and_opens_nothing(assignment, kind, message, base, tmp_path):
    run_sweep(base, GRID[:1], tmp_path / "sweep")
    before = (tmp_path / "sweep" / "sweep.json").read_text()
    for grid in ([assignment], [GRID[0], assignment]):
        with pytest.raises(kind, match=message):
            run_sweep(base, grid, tmp_path / "sweep", overwrite=True)
    assert (tmp_path / "sweep" / "sweep.json").read_text() == before
    assert not (tmp_path / "test_openings.jsonl").exists()


def test_a_search_that_dies_before_its_first_draw_can_be_gone_on_with_and_overwritten(base, tmp_path, monkeypatch):
    search = Search(parse_search("rank=int(1,2)"), trials=1, sampler="random")
    real = module.Study.ask

    def dies(*_):
        raise KeyboardInterrupt

    for number, how in enumerate(({"resume": True}, {"overwrite": True})):
        folder = tmp_path / f"sweep-{number}"
        monkeypatch.setattr(module.Study, "ask", dies)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(base, search, folder)
        monkeypatch.setattr(module.Study, "ask", real)
        assert [member.status for member in run_sweep(base, search, folder, **how).record.members] == ["finished"]


def test_a_large_member_makes_no_small_banks_of_others(base, tmp_path, monkeypatch):
    """Members of unlike methods share none."""
    monkeypatch.setattr(module, "members_that_fit", lambda trainable, _device: 1 if trainable > 5000 else 8)
    grid = [{"method.name": "full"}, *({"method.rank": rank} for rank in (1, 2, 3))]
    record = run_sweep([{**BASE, "method": {}, "training": {**BASE["training"], "num_epochs": 1}}, *base[1:]], grid, tmp_path / "sweep").record
    assert [member.bank for member in record.members] == [0, 1, 1, 1]


def test_what_must_be_shared_is_named(base, tmp_path):
    with pytest.raises(ConfigError, match=r"sweep: data.limit_rows must be the same in all members"):
        run_sweep(base, expand_grid({"limit_rows": [10, 12]}, "grid"), tmp_path / "sweep")
    assert not (tmp_path / "sweep" / "sweep.json").exists()


def test_a_grid_over_the_budget_is_refused_whole_and_a_search_goes_on_without(base, tmp_path):
    tight = [*base, {"budget": "2000"}]
    with pytest.raises(ConfigError, match=r"member 1 \(rank 30\)"):
        run_sweep(tight, expand_grid({"rank": [1, 30]}, "grid"), tmp_path / "grid")
    search = Search(parse_search("rank=choice(1,30)"), trials=6, sampler="random")
    record = run_sweep([*tight, {"method": {"rank": 1}}], search, tmp_path / "search").record
    assert {member.status for member in record.members} == {"finished", "refused"}
    assert all(("budget" in (member.reason or "").lower()) == (member.status == "refused") for member in record.members)


def test_a_storage_may_lie_in_the_folder_that_is_cleared(base, tmp_path):
    search = Search(parse_search("rank=int(1,2)"), trials=1, sampler="random", storage=f"sqlite:///{tmp_path / 'sweep' / 'own.db'}")
    for overwrite in (False, True):
        record = run_sweep(base, search, tmp_path / "sweep", overwrite=overwrite).record
        assert [member.status for member in record.members] == ["finished"]
        assert (tmp_path / "sweep" / "own.db").exists()


def test_two_searches_may_share_a_storage(base, tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    for name, space in (("first", "rank=choice(1,2)"), ("second", "rank=int(2,4)")):
        search = Search(parse_search(space), trials=1, sampler="random", storage=storage)
        record = run_sweep(base, search, tmp_path / name).record
        assert run_sweep(base, search, tmp_path / name, resume=True).record.members == record.members
    assert len({read_sweep(SweepLayout(tmp_path / name).record).study for name in ("first", "second")}) == 2


def test_resume_refuses_another_sweep_and_a_full_folder_is_left_alone(base, tmp_path):
    run_sweep(base, GRID[:2], tmp_path / "sweep")
    with pytest.raises(ConfigError, match=r"--out: the folder is not empty"):
        run_sweep(base, GRID[:2], tmp_path / "sweep")
    with pytest.raises(ConfigError, match=r"--resume: the grid or search differ"):
        run_sweep(base, GRID[:3], tmp_path / "sweep", resume=True)
    with pytest.raises(ConfigError, match=r"--resume: the settings differ"):
        run_sweep([*base, {"training": {"seed": 1}}], GRID[:2], tmp_path / "sweep", resume=True)
    with pytest.raises(ConfigError, match=r"--final: a sweep chooses on the validation split"):
        run_sweep([*base, {"final": True}], GRID[:2], tmp_path / "other")
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"--overwrite: this is not a sweep folder"):
        run_sweep(base, GRID[:2], stranger, overwrite=True)
    assert (stranger / "mine.txt").read_text() == "mine"


def test_the_command_prints_one_json_object_and_its_errors_leave_with_two(run_cli, tiny_encoder, news_table, tmp_path, monkeypatch):
    grid = tmp_path / "grid.yaml"
    grid.write_text("rank: [1, 2]\nlearning_rate: [1e-3, 1e-2]\n")
    words = ("sweep", news_table, "--encoder", tiny_encoder("bert"), "--precision", "fp32", "--threads", 1, "--epochs", 2, "--batch-size", 16)
    done = run_cli(*words, "--grid", grid, "-o", tmp_path / "sweep", "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert set(printed) == {"members", "best", "banks", "seconds", "config", "report"}
    assert [member["settings"] for member in printed["members"]][0] == {"method.rank": 1, "optimizer.learning_rate": 1e-3}
    assert all(set(member) >= {"settings", "validation", "parameters", "adapter"} for member in printed["members"])
    monkeypatch.chdir(tmp_path)
    shown = run_cli(*words, "--grid", grid)
    assert (tmp_path / "runs" / "news-sweep" / "best.yaml").exists()
    assert "learning_rate" in shown.out
    assert "best.yaml" in shown.err
    for extra, words_of_error in (
        ((), "neither --grid nor --search"),
        (("--grid", grid, "--search", "rank=int(1,2)"), "both --grid and --search"),
        (("--grid", tmp_path / "none.yaml"), "cannot be read"),
        (("--search", "rank=int(1,2)", "--trials", 0), "--trials: too small, got 0"),
        (("--grid", grid, "--halving", 1), "--halving: too small, got 1"),
    ):
        failed = run_cli(*words, *extra, "-o", tmp_path / "x")
        assert failed.code == 2
        assert words_of_error in failed.err
        assert not (tmp_path / "x").exists()
