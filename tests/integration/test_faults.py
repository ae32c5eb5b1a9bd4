"""The fault campaign for training: kill -9 at random instants, races for one folder, a disk that fills up. `LORABEL_FAULTS=full` runs the long column."""

import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

IS_FULL = os.environ.get("LORABEL_FAULTS") == "full"
KILLED_RUNS = 40 if IS_FULL else 2
KILLS_PER_RUN = 5 if IS_FULL else 3
FAILING_CALLS = 100 if IS_FULL else 15


def command(encoder, table, out, *more):
    words = [
        sys.executable,
        "-m",
        "lorabel",
        "train",
        str(table),
        "--encoder",
        str(encoder),
        "--out",
        str(out),
        "--epochs",
        "30" if IS_FULL else "12",
        "--batch-size",
        "4",
        "--quiet",
    ]
    return [*words, "--evaluate-every", "5", "--threads", "1", "--precision", "fp32", "--dropout", "0.2", "--targets", "all-linear", *more]


def weights(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def straight(tiny_encoder, tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("straight")
    table = request.getfixturevalue("tmp_path_factory").mktemp("table") / "t.csv"
    words = {"a": "the team won", "b": "bank shares fell"}
    table.write_text("text,label\n" + "".join(f"{words['ab'[i % 2]]} {i},{'ab'[i % 2]}\n" for i in range(60)))
    started = time.monotonic()
    subprocess.run(command(tiny_encoder("bert"), table, folder / "run"), check=True, capture_output=True, timeout=120)
    return table, weights(folder / "run"), time.monotonic() - started


@pytest.mark.parametrize("seed", range(KILLED_RUNS))
def test_kill_9_at_random_instants_ends_at_the_same_bits(seed, straight, tiny_encoder, tmp_path):
    table, wanted, whole = straight
    chance, run = random.Random(seed), tmp_path / "run"
    kills = 0
    for _ in range(KILLS_PER_RUN):
        more = ["--resume"] if (run / "config.yaml").exists() else []
        process = subprocess.Popen(command(tiny_encoder("bert"), table, run, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.5, 1.0) * whole)
        process.kill()
        process.wait()
        kills += 1
        if (run / "record.json").exists():
            break
    assert kills
    if not (run / "record.json").exists():
        more = ["--resume"] if (run / "config.yaml").exists() else []
        done = subprocess.run(command(tiny_encoder("bert"), table, run, *more), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    got = weights(run)
    assert got.keys() == wanted.keys()
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


def test_of_racing_writers_exactly_one_runs(straight, tiny_encoder, tmp_path):
    table, wanted, _ = straight
    racers = [
        subprocess.Popen(command(tiny_encoder("bert"), table, tmp_path / "run"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    messages = [racer.communicate(timeout=180)[1] for racer in racers]
    codes = sorted(racer.returncode for racer in racers)
    # A late starter may find the folder in use (75) or already begun (2); it never runs beside the first.
    assert codes[0] == 0, messages
    assert all(code in (2, 75) for code in codes[1:]), messages
    assert all(np.array_equal(weights(tmp_path / "run")[name], wanted[name]) for name in wanted)


def fill_the_disk(monkeypatch, call):
    """The system calls that make a file last fail from that one on."""
    left = [call]

    def failing(real):
        def fail_later(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        return fail_later

    for name in ("fsync", "replace", "rename"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))


@pytest.mark.parametrize("call", [round(index * 60 / FAILING_CALLS) for index in range(FAILING_CALLS)])
def test_a_disk_that_fills_up_exits_74_and_resume_ends_at_the_same_bits(call, straight, tiny_encoder, tmp_path, run_cli):
    table, wanted, _ = straight
    run = tmp_path / "run"
    words = command(tiny_encoder("bert"), table, run)[3:]
    with pytest.MonkeyPatch.context() as monkeypatch:
        fill_the_disk(monkeypatch, call)
        done = run_cli(*words)
    assert done.code == 74, done.err
    assert "No space left" in done.err
    assert not (run / "record.json").exists()
    if not (run / "config.yaml").exists():
        shutil.rmtree(run, ignore_errors=True)
    again = run_cli(*words, *(["--resume"] if run.exists() else []))
    assert again.code == 0, again.err
    assert all(np.array_equal(weights(run)[name], wanted[name]) for name in wanted)
