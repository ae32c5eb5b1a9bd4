"""`run.sh`: what it asks of the command line, with a stand-in for the installed program that writes down its arguments."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import ROOT


@pytest.fixture
def script(tmp_path):
    """Runs a copy of run.sh in a folder where everything looks installed; gives the calls made."""
    for name in ("run.sh", "scripts", "pyproject.toml", "constraints.txt"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    program = tmp_path / ".venv" / "bin" / "lorabel"
    program.write_text('#!/bin/sh\necho "$@" >> calls\n')
    program.chmod(0o755)
    stamp = subprocess.run("cat pyproject.toml constraints.txt | cksum", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    (tmp_path / ".venv" / ".lorabel-installed-minilm").write_text(stamp)

    def run(*words, cwd=tmp_path):
        (tmp_path / "calls").unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if name not in ("VENV", "PYTHON")}
        done = subprocess.run(["bash", tmp_path / "run.sh", *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        calls = tmp_path / "calls"
        return calls.read_text().splitlines() if calls.exists() else done.stdout

    run.folder = tmp_path
    return run


def test_without_words_it_compares_both_on_the_sample(script):
    assert script() == [
        "train sample --out runs/sample/lora --final",
        "train sample --out runs/sample/full --final --method full",
        "report runs/sample/lora runs/sample/full --out runs/sample/report.html",
    ]


def test_the_papers_experiment(script):
    lora, full, _ = script("ag_news", "--encoder", "roberta-base", "--recipe", "paper")
    assert lora == "train ag_news --out runs/ag_news/lora --final --encoder roberta-base --recipe paper"
    assert full == "train ag_news --out runs/ag_news/full --final --encoder roberta-base --recipe paper --method full"


def test_settings_of_an_adapter_do_not_reach_full_fine_tuning(script):
    words = ("t.csv", "--rank", "4", "--epochs", "1", "--targets=query", "--set", "method.alpha=8", "--set", "training.seed=3", "--rslora")
    lora, full, report = script(*words)
    assert lora == "train t.csv --out runs/t/lora --final --rank 4 --epochs 1 --targets=query --set method.alpha=8 --set training.seed=3 --rslora"
    assert full == "train t.csv --out runs/t/full --final --epochs 1 --set training.seed=3 --method full"
    assert report == "report runs/t/lora runs/t/full --out runs/t/report.html"


def test_a_finished_run_is_made_again_and_a_stopped_one_goes_on(script):
    (script.folder / "runs/sample/lora").mkdir(parents=True)
    (script.folder / "runs/sample/lora/record.json").write_text("{}")
    (script.folder / "runs/sample/full/checkpoints").mkdir(parents=True)
    lora, full, _ = script()
    assert lora == "train sample --out runs/sample/lora --final --overwrite"
    assert full == "train sample --out runs/sample/full --final --resume --method full"


def test_overwrite_makes_a_stopped_run_again(script):
    (script.folder / "runs/sample/lora/checkpoints").mkdir(parents=True)
    lora, full, _ = script("--overwrite")
    assert lora == "train sample --out runs/sample/lora --final --overwrite"
    assert full == "train sample --out runs/sample/full --final --overwrite --method full"


def test_a_table_is_found_from_where_the_script_is_called(script, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "mine.csv").touch()
    assert script("mine.csv", cwd=elsewhere)[0] == f"train {elsewhere}/mine.csv --out runs/mine/lora --final"
    assert script("ag_news", cwd=elsewhere)[0] == "train ag_news --out runs/ag_news/lora --final"


def test_help_installs_and_runs_nothing(script):
    shutil.rmtree(script.folder / ".venv")
    text = script("--help")
    assert "./run.sh my_texts.csv" in text
    assert not (script.folder / ".venv").exists()


def test_results_of_another_table_of_the_same_name_are_kept(script):
    lora = script.folder / "runs/t/lora"
    lora.mkdir(parents=True)
    (lora / "record.json").write_text("{}")
    (lora / "config.yaml").write_text("data:\n  source: a/t.csv\n")
    assert script("a/t.csv")[0] == "train a/t.csv --out runs/t/lora --final --overwrite"
    first, second, _ = script("b/t.csv")
    folder = first.split()[3].removesuffix("/lora")
    assert folder.startswith("runs/t-")
    assert first == f"train b/t.csv --out {folder}/lora --final"
    assert second == f"train b/t.csv --out {folder}/full --final --method full"
