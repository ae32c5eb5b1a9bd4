"""The command line end to end: what each verb prints, and one clear error with its exit code for what can go wrong."""

import csv
import errno
import gzip
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
from safetensors.numpy import load_file, save_file

from lorabel.config import load_config
from lorabel.workflows.train import run_train

FAST = {"training": {"num_epochs": 2, "batch_size": 16, "precision": "fp32", "threads": 1}}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A folder of splits, three classes."""
    folder = tmp_path_factory.mktemp("table")
    texts = {"sport": "the team won the match", "money": "bank shares fell", "science": "new study finds a chip"}
    for split, rows in (("train", 24), ("validation", 9), ("test", 9)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([f"{texts[label]} {split} {number}", label] for number, label in enumerate(list(texts) * (rows // 3)))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_encoder, table):
    """A finished run; its folder is copied before anything is broken."""
    config = load_config(FAST, {"encoder": {"name": str(tiny_encoder("bert"))}, "data": {"source": str(table)}})
    return run_train(config, tmp_path_factory.mktemp("runs") / "run").run


@pytest.fixture
def with_encoder(tiny_encoder):
    return ("--encoder", tiny_encoder("bert"), "--threads", "1", "--precision", "fp32")


def fail(outcome, code, *parts):
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert outcome.err.startswith("error: "), outcome.err
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err
    return outcome


def test_train_prints_exactly_one_json_object(run_cli, with_encoder, table, tmp_path):
    done = run_cli("train", table, "--out", tmp_path / "run", *with_encoder, "--epochs", "1", "--batch-size", "16", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out, parse_constant=lambda name: pytest.fail(name))
    assert record == json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["metrics"]["test"] is None
    assert 0 <= record["metrics"]["validation"]["accuracy"] <= 1
    assert record["parameters"]["trainable"] == record["parameters"]["adapter"] + record["parameters"]["head"]
    assert {"seconds", "samples_per_second", "peak_memory_bytes"} <= set(record["training"])
    assert {"data", "digests", "versions", "seed", "threads", "test_openings"} <= set(record)
    assert "trainable parameters" in done.err


def test_train_without_data_says_what_it_trains_on(run_cli, with_encoder, table, tmp_path):
    fast = (*with_encoder, "--epochs", "1", "--limit-rows", "8")
    assert "trains on the bundled sample" in run_cli("train", "--out", tmp_path / "a", *fast).err
    assert "bundled sample" not in run_cli("train", "--out", tmp_path / "b", *fast, "--set", f"data.source={table}").err


def test_train_in_words_names_what_came_out(run_cli, with_encoder, table, tmp_path):
    done = run_cli("train", table, "--out", tmp_path / "run", *with_encoder, "--epochs", "1")
    assert done.code == 0
    assert "report.html" in done.err
    assert "adapter" in done.err
    quiet = run_cli("train", table, "--out", tmp_path / "quiet", *with_encoder, "--epochs", "1", "--quiet")
    assert quiet.code == 0
    # One pass teaches it nothing, and that is said whatever else is not.
    assert all(line.startswith("warning: The classifier has collapsed") for line in quiet.err.splitlines())


def test_evaluate_json_has_the_contracts_fields(run_cli, run, with_encoder, table):
    done = run_cli("evaluate", run / "adapter", table, *with_encoder, "--split", "validation", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert {"accuracy", "macro_f1", "n", "interval", "per_class", "confusion_matrix", "labels", "test_openings"} <= set(found)
    assert found["n"] == 9
    low, high = found["interval"]["accuracy"]
    assert low <= found["accuracy"] <= high
    assert set(found["per_class"]) == set(found["labels"]) == {"sport", "money", "science"}
    assert sum(map(sum, found["confusion_matrix"])) == 9


def test_evaluate_in_words_counts_the_opening(run_cli, run, with_encoder, table):
    first = run_cli("evaluate", run, table, *with_encoder)
    assert first.code == 0, first.err
    assert "accuracy" in first.out
    assert "1 time so far" in first.err
    assert "2 times so far" in run_cli("evaluate", run, table, *with_encoder).err


def test_evaluate_without_data_takes_the_runs_own(run_cli, run, with_encoder, table, tmp_path):
    named = run_cli("evaluate", run, table, *with_encoder, "--split", "validation", "--json")
    for place in (run, run / "adapter"):
        assert json.loads(run_cli("evaluate", place, *with_encoder, "--split", "validation", "--json").out) == json.loads(named.out)
    shutil.copytree(run / "adapter", tmp_path / "alone" / "adapter")
    fail(run_cli("evaluate", tmp_path / "alone" / "adapter", *with_encoder), 2, "lies in no run folder")


def test_evaluate_without_data_scores_only_rows_that_were_held_back(run_cli, with_encoder, tmp_path):
    file = tmp_path / "one.csv"
    file.write_text("text,label\n" + "".join(f"the team won {n},sport\nbank shares fell {n},money\n" for n in range(20)))
    trained = run_cli("train", file, "--out", tmp_path / "runs" / "one", *with_encoder, "--epochs", "1", "--final", "--json")
    record = json.loads(trained.out)
    done = run_cli("evaluate", tmp_path / "runs" / "one", *with_encoder, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["n"] == record["data"]["rows"]["test"] == 4
    assert found["accuracy"] == record["metrics"]["test"]["accuracy"]
    assert found["test_openings"] == 2
    assert "holds the rows this adapter was trained on" in run_cli("evaluate", tmp_path / "runs" / "one", file, *with_encoder).err
    fail(run_cli("evaluate", tmp_path / "runs" / "one", *with_encoder, "--text-column", "text"), 2, "columns without data")
    file.write_text(file.read_text().replace("won", "lost"))
    fail(run_cli("evaluate", tmp_path / "runs" / "one", *with_encoder, "--quiet"), 2, "not what the run was trained with")


def test_predict_csv_keeps_the_columns_and_adds_its_own(run_cli, run, with_encoder, tmp_path):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('id,text\n007,"the team won, again"\nNA,bank shares fell\n', encoding="utf-8")
    done = run_cli("predict", run / "adapter", source, "-o", output, *with_encoder, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"] == 2
    rows = list(csv.DictReader(output.open()))
    assert list(rows[0]) == ["id", "text", "predicted_label", "score", "prob_money", "prob_science", "prob_sport"]
    assert [row["id"] for row in rows] == ["007", "NA"]
    for row in rows:
        probabilities = {name.removeprefix("prob_"): float(value) for name, value in row.items() if name.startswith("prob_")}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert row["predicted_label"] == max(probabilities, key=probabilities.get)
        assert float(row["score"]) == max(probabilities.values())


def test_predict_answers_the_same_in_every_format_and_from_standard_input(run_cli, run, with_encoder, tmp_path, monkeypatch):
    texts = ["the team won", "bank shares fell", "new study"]
    csv_file, jsonl, packed = tmp_path / "a.csv", tmp_path / "a.jsonl", tmp_path / "a.csv.gz"
    csv_file.write_text("text\n" + "\n".join(texts) + "\n")
    jsonl.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    packed.write_bytes(gzip.compress(csv_file.read_bytes()))
    answers = []
    for source, ending in ((csv_file, "csv"), (jsonl, "jsonl"), (packed, "parquet")):
        output = tmp_path / f"out.{ending}"
        done = run_cli("predict", run, source, "-o", output, *with_encoder)
        assert done.code == 0, done.err
        if ending == "csv":
            answers.append([float(row["score"]) for row in csv.DictReader(output.open())])
        elif ending == "jsonl":
            answers.append([json.loads(line)["score"] for line in output.open()])
        else:
            answers.append(pyarrow.parquet.read_table(output)["score"].to_pylist())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(csv_file.read_bytes())))
    done = run_cli("predict", run, "-", *with_encoder)
    assert done.code == 0, done.err
    answers.append([float(row["score"]) for row in csv.DictReader(io.StringIO(done.out))])
    assert all(answer == pytest.approx(answers[0], abs=1e-6) for answer in answers)


def test_predict_one_text(run_cli, run, with_encoder):
    words = ("predict", run, "--text", "the team won", "--text", "bank [shares]", "--encoder", with_encoder[1], "--precision", "fp32")
    done = run_cli(*words)
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 2
    found = json.loads(run_cli(*words, "--json").out)["predictions"]
    assert [row["text"] for row in found] == ["the team won", "bank [shares]"]
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1)


def test_predict_refuses_bytes_that_are_not_utf8_in_a_text(run_cli, run, with_encoder):
    fail(run_cli("predict", run, "--text", b"caf\xe9".decode("utf-8", "surrogateescape"), *with_encoder), 2, "half of a surrogate pair, got row 0 'caf\\udce9'")


def test_report_of_several_runs(run_cli, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    done = run_cli("report", run, other, "--out", tmp_path / "report.html")
    assert done.code == 0, done.err
    assert "other" in done.out
    page = (tmp_path / "report.html").read_text()
    assert "other" in page
    assert not re.search(r"""(src|href)=["']https?:|url\(["']?https?:|@import""", page), "the page must not fetch anything"
    assert "2 runs side by side" in page
    assert page.count("<h2>Parameters</h2>") == 2, "each run is described"
    assert "not scored on the same rows" not in page + done.err
    rows = json.loads(run_cli("report", run, other, "--out", tmp_path / "r.html", "--json").out)["rows"]
    assert [row["run"] for row in rows] == ["run", "other"]


def test_a_report_says_when_runs_cannot_be_compared(run_cli, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    record = json.loads((other / "record.json").read_text())
    record["data"]["split_digests"]["validation"] = "0" * 64
    (other / "record.json").write_text(json.dumps(record))
    done = run_cli("report", run, other, "--out", tmp_path / "report.html")
    assert done.code == 0, done.err
    assert "not scored on the same rows" in done.err
    assert "not scored on the same rows" in (tmp_path / "report.html").read_text()


def test_a_report_needs_no_model(run_cli, run, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("adapter", "figures"))
    assert run_cli("report", bare).code == 0


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("text,label\na,x\nb,\n", ":3"),
        ("text,label\na,x\n ,y\n", ":3"),
        ("text,label\na,x\nb,x\nc,x\n", "x"),
        ("words\nhello\n", "column"),
        ("", "empty"),
        ("text,label\n", "no rows"),
    ],
    ids=["missing label", "empty text", "one class", "no columns", "empty file", "header only"],
)
def test_a_table_that_cannot_be_used_exits_2_naming_the_place(run_cli, with_encoder, tmp_path, content, part):
    (tmp_path / "t.csv").write_text(content)
    outcome = fail(run_cli("train", tmp_path / "t.csv", "--out", tmp_path / "run", *with_encoder), 2, "t.csv")
    assert part in outcome.err
    assert not (tmp_path / "run" / "adapter").exists()


def test_settings_that_cannot_be_used_exit_2(run_cli, with_encoder, table, tmp_path):
    train = ("train", table, "--out", tmp_path / "run", *with_encoder, "--quiet")
    fail(run_cli(*train, "--rank", "0"), 2, "method.rank", "got 0")
    fail(run_cli(*train, "--budget", "10"), 2, "budget: too many trainable parameters", "expected at most 10", "adapter query", "head classifier")
    fail(run_cli(*train, "--layers", "7"), 2, "method.layers", "0 to 1")
    fail(run_cli(*train, "--set", "training.batchsize=3"), 2, "Did you mean 'batch_size'")
    fail(run_cli(*train, "--text-column", "nope"), 2, "nope")
    fail(run_cli(*train, "--class-weights", "1,2"), 2, "class_weights")
    fail(run_cli(*train, "--resume"), 2, "--resume")
    fail(run_cli(*train, "--resume", "--overwrite"), 2, "--resume and --overwrite")
    assert not (tmp_path / "run").exists()


EARLIER = {"sweep": "sweep.json", "search": "sweep.json", "seeds": "sweep.json", "compare": "compare.json", "ablate": "ablate.json", "train": "config.yaml"}
WRONG = [
    ("--set", "loss.name=focol"),
    ("--class-weights", "1,2"),
    ("--budget", "10", "--method", "lora"),
    ("--text-column", "nope"),
    ("--encoder", "./nothing"),
]


@pytest.mark.parametrize(("verb", "wrong"), [*itertools.product(EARLIER, WRONG), ("search", ("--storage", "nothing://"))], ids=str)
def test_what_is_refused_costs_neither_earlier_results_nor_an_opening_of_the_test_split(run_cli, with_encoder, table, tmp_path, verb, wrong):
    (tmp_path / "grid.yaml").write_text("seed: [0, 1]\n")
    words = {
        "sweep": ("sweep", table, "--grid", tmp_path / "grid.yaml"),
        "search": ("sweep", table, "--search", "seed=int(0,9)", "--trials", 2),
        "seeds": ("train", table, "--seeds", 2, "--final"),
        "compare": ("compare", table, "--methods", "lora", "--final"),
        "ablate": ("ablate", table, "--final"),
        "train": ("train", table, "--final"),
    }[verb]
    there = {EARLIER[verb]: "{}", "adapter/lorabel.json" if verb == "train" else "members/0000/adapter/lorabel.json": "kept"}
    for name, content in there.items():
        file = tmp_path / "out" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    encoder = () if wrong[0] == "--encoder" else with_encoder
    told = fail(run_cli(*words, "--out", tmp_path / "out", "--overwrite", "--quiet", *encoder, *wrong), 2, "expected")
    # Not once for each of the seeds.
    assert told.err.count("expected") == 1
    for name, content in there.items():
        assert (tmp_path / "out" / name).read_text() == content
    fail(run_cli(*words, "--out", tmp_path / "new", "--quiet", *encoder, *wrong), 2, "expected")
    assert [path.name for path in (tmp_path / "new").rglob("*") if path.is_file() and path.name != ".lock"] == []
    assert not (tmp_path / "test_openings.jsonl").exists()


def test_data_and_encoders_that_are_not_there_exit_2(run_cli, with_encoder, table, tmp_path):
    fail(run_cli("train", tmp_path / "nothing.csv", "--out", tmp_path / "run", *with_encoder), 2, "nothing.csv")
    fail(run_cli("train", table, "--out", tmp_path / "run", "--encoder", tmp_path), 2, "config.json")
    fail(run_cli("evaluate", tmp_path / "nothing", table), 2, "lorabel.json")
    fail(run_cli("predict", tmp_path / "nothing", "--text", "x"), 2, "lorabel.json")
    fail(run_cli("report", tmp_path), 2, "record.json")


def test_names_that_no_file_can_have_and_folders_that_may_not_be_read_exit_2(run_cli, run, with_encoder, table, tmp_path, monkeypatch):
    for name in ("~nosuch/x.csv", "x" * 300 + ".csv"):
        fail(run_cli("train", name, "--out", tmp_path / "run", *with_encoder), 2, f"no such file or folder, got {name!r}"[:60])
        fail(run_cli("evaluate", run, name, *with_encoder), 2, f"no such file or folder, got {name!r}"[:60])
        fail(run_cli("predict", run, name, *with_encoder), 2, f"no such file, got {name!r}"[:60])

    def refuse(folder):
        if folder == table:
            raise PermissionError(errno.EACCES, "Permission denied")
        return listed(folder)

    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", refuse)
    fail(run_cli("train", table, "--out", tmp_path / "run", *with_encoder), 2, "the folder cannot be read, got Permission denied")


@pytest.mark.parametrize("threads", ["0", "-1"])
def test_less_than_one_thread_exits_2(run_cli, run, table, threads, tmp_path):
    (tmp_path / "a.csv").write_text("text\nhello\n")
    for words in (("predict", run, tmp_path / "a.csv"), ("predict", run, "--text", "x"), ("evaluate", run, table)):
        fail(run_cli(*words, f"--threads={threads}"), 2, f"--threads: too few, got {threads}; expected 1 or more.")


def test_an_empty_separator_in_evaluation_exits_2(run_cli, run, table, with_encoder):
    fail(run_cli("evaluate", run, table, "--label-separator", "", *with_encoder), 2, "data.label_separator", "got ''")
    fail(run_cli("evaluate", run, "--label-separator", "", *with_encoder), 2, "columns without data")


def test_a_run_folder_is_not_written_over(run_cli, run, with_encoder, table):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    fail(run_cli("train", table, "--out", run, *with_encoder), 2, "--resume", "--overwrite")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_no_run_is_never_removed(run_cli, with_encoder, table, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    fail(run_cli("train", table, "--out", tmp_path / "mine", *with_encoder, "--overwrite"), 2, "not a run folder")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_unwritable_place_exits_74(run_cli, run, with_encoder, table, tmp_path):
    (tmp_path / "file").write_text("")
    fail(run_cli("train", table, "--out", tmp_path / "file", *with_encoder, "--quiet"), 2, "--out: a file has this name")
    fail(run_cli("train", table, "--out", tmp_path / "file" / "run", *with_encoder, "--quiet"), 74)
    (tmp_path / "in.csv").write_text("text\nhello\n")
    fail(run_cli("predict", run, tmp_path / "in.csv", "-o", tmp_path / "file" / "out.csv", *with_encoder, "--quiet"), 74)


@pytest.mark.parametrize("damage", ["flip a byte", "nan", "no manifest", "not json", "missing weights"])
def test_a_damaged_adapter_exits_2(run_cli, run, with_encoder, tmp_path, damage):
    broken = tmp_path / "adapter"
    shutil.copytree(run / "adapter", broken)
    (weights,) = broken.glob("*.safetensors")
    manifest = broken / "lorabel.json"
    if damage == "flip a byte":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "nan":
        tensors = load_file(weights)
        name = next(iter(tensors))
        tensors[name] = tensors[name] * float("nan")
        save_file(tensors, weights)
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "not json":
        manifest.write_text("{")
    else:
        weights.unlink()
    fail(run_cli("predict", broken, "--text", "hello", "--encoder", with_encoder[1]), 2)


def test_another_encoder_exits_2(run_cli, run, tiny_encoder):
    outcome = fail(run_cli("predict", run, "--text", "hello", "--encoder", tiny_encoder("distilbert")), 2, "another encoder")
    assert "--encoder DIR" in outcome.err


def test_a_clash_of_columns_names_prefix(run_cli, run, with_encoder, tmp_path):
    (tmp_path / "in.csv").write_text("text,score\nhello,3\n")
    fail(run_cli("predict", run, tmp_path / "in.csv", "-o", tmp_path / "out.csv", *with_encoder, "--quiet"), 2, "'score'", "--prefix")
    assert not (tmp_path / "out.csv").exists()
    done = run_cli("predict", run, tmp_path / "in.csv", "-o", tmp_path / "out.csv", *with_encoder, "--prefix", "our_", "--quiet")
    assert done.code == 0
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "text,score,our_predicted_label,our_score,our_prob_money,our_prob_science,our_prob_sport"


def test_predict_needs_one_input_and_json_needs_an_output(run_cli, run, tmp_path):
    fail(run_cli("predict", run), 2, "--text")
    fail(run_cli("predict", run, "a.csv", "--text", "x"), 2, "both")
    fail(run_cli("predict", run, "--text", "x", "-o", tmp_path / "o.csv"), 2, "--output")
    fail(run_cli("predict", run, "--text", " "), 2, "empty text")
    fail(run_cli("predict", run, "a.csv", "--json"), 2, "-o")
    (tmp_path / "a.csv").write_text("text\nhello\n")
    fail(run_cli("predict", run, tmp_path / "a.csv", "-o", tmp_path / "a.xlsx"), 2, ".csv")


def test_an_unknown_label_in_evaluation_exits_2(run_cli, run, with_encoder, tmp_path):
    (tmp_path / "t.csv").write_text("text,label\nhello,sport\nworld,cooking\n")
    fail(run_cli("evaluate", run, tmp_path / "t.csv", *with_encoder, "--quiet"), 2, "cooking")


def test_evaluation_leaves_out_empty_rows_where_asked(run_cli, run, with_encoder, table, tmp_path):
    shutil.copytree(table, tmp_path / "folder")
    for source in (tmp_path / "folder", tmp_path / "folder" / "test.csv"):
        with (tmp_path / "folder" / "test.csv").open("a") as file:
            file.write("no label here,\n")
        fail(run_cli("evaluate", run, source, *with_encoder), 2, "pass --drop-empty")
        done = run_cli("evaluate", run, source, "--drop-empty", "--json", *with_encoder)
        assert json.loads(done.out)["n"] == 9
        assert "without text or label were left out." in done.err
    fail(run_cli("evaluate", run, "--drop-empty"), 2, "columns without data")


def test_without_a_hub_the_error_comes_soon_and_names_the_folder(table, tmp_path):
    # A refused connection stands for a machine without network; a fresh process, because the hub library reads its address once.
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    started = time.monotonic()
    command = [sys.executable, "-m", "lorabel", "train", str(table), "--out", str(tmp_path / "run"), "--encoder", "roberta-base"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert time.monotonic() - started < 20  # ten for the answer, ten for a slow start of the interpreter
    assert done.returncode == 2, done.stderr
    assert "--encoder DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prediction_that_is_terminated_leaves_no_file(run, tiny_encoder, tmp_path):
    (tmp_path / "many.csv").write_text("text\n" + "the team won the match\n" * 400_000)
    words = ["predict", run, tmp_path / "many.csv", "-o", tmp_path / "out.csv", "--encoder", tiny_encoder("bert"), "--threads", 1]
    process = subprocess.Popen([sys.executable, "-m", "lorabel", *map(str, words)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.csv.*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    assert "terminated; no file was left half written." in told
    assert [path.name for path in tmp_path.iterdir()] == ["many.csv"]


def test_settings_and_names_of_the_wrong_kind_are_the_users_fault(run_cli, table, with_encoder, tmp_path):
    settings = tmp_path / "settings.yaml"
    for text in ("method: lora\n", "method: [lora]\n"):
        settings.write_text(text)
        words = ("compare", table, "--config", settings, "--methods", "lora,head_only", "-o", tmp_path / "out")
        fail(run_cli(*words, *with_encoder), 2, "method: not a mapping, got", "expected options")
    fail(run_cli("train", table, *with_encoder, "-o", tmp_path / ("x" * 300)), 2, "--out: cannot be looked at, got File name too long")
    settings.write_text("data:\n")
    words = ("train", "--config", settings, "--label-column", "nothing", "--quiet", *with_encoder, "-o", tmp_path / "run")
    fail(run_cli(*words), 2, "unknown name, got 'nothing'")


def test_a_report_without_the_history_names_it(run_cli, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "metrics.jsonl").unlink()
    fail(run_cli("report", copy), 2, "metrics.jsonl: cannot be read, got No such file")


def test_a_run_that_was_killed_over_its_report_is_told_how_to_get_it(run_cli, run, table, with_encoder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    words = ("train", table, *with_encoder, "-o", copy, "--resume")
    fail(run_cli(*words), 2, "the run is finished", "Its report is report.html")
    (copy / "report.html").unlink()
    fail(run_cli(*words), 2, "the run is finished", f"`lorabel report {copy}` writes its report")
