"""Every method under one budget on the same rows: at most 5,000 training rows of AG News, TREC-6 and SST-2, three seeds, embedded encoder.

First each method's learning rate is chosen once: three rates around its default, 1,500 training rows of TREC-6 and of SST-2, mean validation accuracy. Then each
(data set, method, seed) is a cell that reads the test split once. Trials and cells are kept in benchmarks/results/methods/; a stopped run goes on.

    python benchmarks/methods.py [--methods …] [--sets …] [--seeds N] [--threads N] [--max-minutes N] [--data FOLDER] [--table-only]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from harness import RESULTS, data_folder, environment, environment_lines, markdown, save_json
from quality import paired, tfidf_cell, train_and_test

SETS = ("ag_news", "trec6", "sst2_sentences")
TUNED_ON = ("trec6", "sst2_sentences")
ROWS, TUNING_ROWS, SEEDS = 5000, 1500, 3
FACTORS = (1 / 3, 1.0, 3.0)
CELLS = RESULTS / "methods"


def method_names() -> list[str]:
    """Trained methods, the default one first."""
    from lorabel.registry import METHODS

    return sorted(METHODS.names(), key=lambda name: (name != "lora", name != "full", name))


def rates_of(method: str) -> list[float]:
    """Learning rates that are tried: the method's own, a third of it and three times it."""
    from lorabel.budget import DEFAULT_LIMIT, settle
    from lorabel.config import EncoderConfig, load_config
    from lorabel.methods.base import make_method
    from lorabel.models.checkpoint import resolve_encoder

    shape = resolve_encoder(EncoderConfig(name="minilm")).shape
    own = make_method(settle(load_config({"method": {"name": method}}).method, shape, DEFAULT_LIMIT)).default_learning_rate
    return [float(f"{own * factor:.2g}") for factor in FACTORS]


def trial_path(method: str, name: str, rate: float) -> Path:
    """Where a trial is kept."""
    return CELLS / f"rate-{method}-{name}-{rate:g}.json"


def cell_path(name: str, method: str, seed: int) -> Path:
    """Where a cell is kept."""
    return CELLS / f"{name}-{method}-{seed}.json"


def run_trial(folder: Path, method: str, name: str, rate: float, threads: int | None) -> dict:
    """Validation accuracy of one rate on one data set."""
    from lorabel.config import load_config
    from lorabel.errors import DataError
    from lorabel.workflows.train import run_train

    data = {"source": str(folder / name), "limit_rows": TUNING_ROWS}
    config = load_config({"method": {"name": method}, "optimizer": {"learning_rate": rate}, "data": data, "training": {"seed": 0, "threads": threads}})
    with tempfile.TemporaryDirectory() as out:
        try:
            record = run_train(config, Path(out) / "run").record
        except DataError as error:  # Training diverged: that is what the trial found.
            return {"accuracy": 0.0, "failure": str(error)}
    return {"accuracy": record.metrics.validation.accuracy, "seconds": record.training.seconds}


def chosen_rate(method: str) -> tuple[float | None, dict[float, float]]:
    """The rate with the best mean validation accuracy (of equals the lower), None while trials are missing; and the means."""
    means = {}
    for rate in rates_of(method):
        paths = [trial_path(method, name, rate) for name in TUNED_ON]
        if not all(path.exists() for path in paths):
            return None, means
        means[rate] = float(np.mean([json.loads(path.read_text())["accuracy"] for path in paths]))
    return max(means, key=lambda rate: (means[rate], -rate)), means


def run_cell(folder: Path, name: str, method: str, seed: int, threads: int | None) -> dict:
    """Train and test one cell."""
    data = {"source": str(folder / name), "limit_rows": ROWS}
    if method == "tfidf":
        return tfidf_cell(data)
    rate, _ = chosen_rate(method)
    assert rate is not None
    return {**train_and_test({"method": {"name": method}, "optimizer": {"learning_rate": rate}}, data, seed, threads), "learning_rate": rate}


def write_table() -> None:
    """The table of what is finished: mean over seeds, against LoRA on the same rows, and the rates that were tried."""
    from lorabel.stats import holm, mean_and_spread

    names = [*method_names(), "tfidf"]
    cells = {(name, method): [json.loads(path.read_text()) for path in sorted(CELLS.glob(f"{name}-{method}-?.json"))] for name in SETS for method in names}
    rows, tests = [], []
    for method in names:
        found = [cells[name, method] for name in SETS]
        if not any(found):
            continue
        rate, _ = chosen_rate(method) if method != "tfidf" else (None, {})
        scores = []
        for of_set in found:
            mean, deviation = mean_and_spread([cell["accuracy"] for cell in of_set]) if of_set else (float("nan"), 0.0)
            scores.append("—" if not of_set else f"{100 * mean:.2f}" + (f" ± {100 * deviation:.2f}" if len(of_set) > 1 else ""))
        mean = f"{100 * np.mean([np.mean([cell['accuracy'] for cell in of_set]) for of_set in found]):.2f}" if all(found) else "—"
        trainable = next((f"{cell['trainable']:,}" for of_set in found for cell in of_set if "trainable" in cell), "—")
        speed = f"{found[0][0]['samples_per_second']:.0f}" if found[0] and "samples_per_second" in found[0][0] else "—"
        seeds = "/".join(str(len(of_set)) for of_set in found)
        rows.append([method, trainable, "—" if rate is None else f"{rate:g}", *scores, mean, seeds, speed])
        for name in SETS:
            both = cells[name, method], cells[name, "lora"]
            shared = min(map(len, both))
            if method != "lora" and shared:
                tests.append([name, method, shared, *paired(both[0][:shared], both[1][:shared])])
    corrected = holm([test[-1] for test in tests])
    differences = [
        [name, method, str(seeds), f"{100 * mean:+.2f}", f"{100 * low:+.2f} … {100 * high:+.2f}", f"{p:.3f}"]
        for (name, method, seeds, mean, low, high, _), p in zip(tests, corrected, strict=True)
    ]
    tried = [[method, *(f"{rate:g}: {100 * mean:.2f}" for rate, mean in chosen_rate(method)[1].items())] for method in method_names() if chosen_rate(method)[1]]
    missing = [f"{name}/{method} ({len(of_set)} of {wanted(method)})" for (name, method), of_set in cells.items() if len(of_set) < wanted(method)]
    text = "# Every method, at most 5,000 training rows, embedded encoder, fewer than a million trained parameters (but for full)\n\n"
    text += "Test accuracy in percent, mean ± deviation over seeds; samples/s of training on AG News with one thread beside another process, for orientation alone.\n\n"
    text += markdown(["method", "trainable", "rate", *SETS, "mean", "seeds", "samples/s"], rows)
    text += "\n## Minus LoRA, the same seeds and test rows (paired bootstrap, points; p after Holm's correction)\n\n"
    text += markdown(["data", "method", "seeds", "difference", "95 % interval", "p"], differences)
    text += f"\n## Learning rates tried: mean validation accuracy on {' and '.join(TUNED_ON)}, {TUNING_ROWS:,} training rows, one seed\n\n"
    text += markdown(["method", "low", "own", "high"], [[*row, *["—"] * (4 - len(row))] for row in tried])
    text += f"\nNot run yet: {', '.join(missing) if missing else 'nothing'}.\n"
    env = environment(1)
    (RESULTS / "methods.md").write_text(text + "\n" + environment_lines(env))
    means = {f"{name}/{method}": float(np.mean([cell["accuracy"] for cell in of_set])) for (name, method), of_set in cells.items() if of_set}
    save_json(RESULTS / "methods.json", {"environment": env, "accuracy": means, "missing": missing})


def wanted(method: str) -> int:
    """Seeds asked for."""
    return 1 if method == "tfidf" else SEEDS


def in_own_process(arguments: argparse.Namespace, *words: str) -> None:
    """One trial or cell, so that memory and threads of one do not reach the next."""
    command = [sys.executable, __file__, "--data", str(data_folder(arguments.data)), *words]
    subprocess.run([*command, *(["--threads", str(arguments.threads)] if arguments.threads else [])], check=True)


def run_missing(arguments: argparse.Namespace) -> None:
    """Rates first, then the cells of one seed after the other."""
    deadline = time.monotonic() + 60 * arguments.max_minutes
    todo = [(trial_path(m, n, r), ("--trial", m, n, f"{r:g}")) for m in arguments.methods if m != "tfidf" for n in TUNED_ON for r in rates_of(m)]
    cells = [(s, m, n) for s in range(arguments.seeds) for m in arguments.methods for n in arguments.sets if s < wanted(m)]
    todo += [(cell_path(n, m, s), ("--cell", n, m, str(s))) for s, m, n in cells]
    for path, words in todo:
        if path.exists():
            continue
        if time.monotonic() > deadline:
            return
        started = time.monotonic()
        in_own_process(arguments, *words)
        print(f"{' '.join(words[1:])}: {100 * json.loads(path.read_text())['accuracy']:.2f} %, {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    """Run what is missing until done or out of time, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", default=[*method_names(), "tfidf"])
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--max-minutes", type=float, default=1e9)
    parser.add_argument("--data")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--trial", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = data_folder(arguments.data)
    if arguments.trial:
        method, name, rate = arguments.trial
        save_json(trial_path(method, name, float(rate)), run_trial(folder, method, name, float(rate), arguments.threads))
    elif arguments.cell:
        name, method, seed = arguments.cell
        save_json(cell_path(name, method, int(seed)), run_cell(folder, name, method, int(seed), arguments.threads))
    else:
        if not arguments.table_only:
            run_missing(arguments)
        write_table()


if __name__ == "__main__":
    main()
