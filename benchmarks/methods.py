"""Every method under one budget on the same rows: 2,000 training rows of AG News, TREC-6 and SST-2, three seeds, embedded encoder.

First each method's learning rate is chosen once: three rates around its default, 1,500 training rows of TREC-6 and of SST-2, mean validation accuracy. Then each
(data set, method, seed) is a cell that reads the test split once. The rates of a method on a data set fill one bank, and so do its seeds. Trials and cells are kept in
benchmarks/results/methods/; a stopped run goes on, a bank from its checkpoint.

    python benchmarks/methods.py [--methods …] [--sets …] [--seeds N] [--threads N] [--max-minutes N] [--data FOLDER] [--work FOLDER] [--table-only]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from harness import RESULTS, data_folder, environment, environment_lines, markdown, save_json
from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.sweeps import SweepMember
from quality import facts_of, paired, test_adapter, tfidf_cell

SETS = ("ag_news", "trec6", "sst2_sentences")
TUNED_ON = ("trec6", "sst2_sentences")
ROWS, TUNING_ROWS, SEEDS = 2000, 1500, 3
# AG News has none of its own; 2,000 rows, the default, would take longer to score after each epoch than to train.
VALIDATION_ROWS = {"ag_news": 1000}
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


def train_bank(work: Path, data: dict, settings: dict, name: str, values: list) -> list[tuple[SweepMember, RunLayout]]:
    """One setting at several values, side by side; gone on with where the work folder, which is of these values alone, holds its beginning."""
    from lorabel.artifacts.sweeps import SweepLayout
    from lorabel.workflows.sweep import run_sweep

    layout = SweepLayout(work)
    found = run_sweep([settings, {"data": data}], [{name: value} for value in values], work, resume=layout.record.exists()).record
    return [(member, layout.member(member.number)) for member in found.members]


def run_trials(arguments: argparse.Namespace, method: str, name: str) -> None:
    """Validation accuracy of each rate that is missing on one data set; 0 where training diverged."""
    rates = [rate for rate in rates_of(method) if not trial_path(method, name, rate).exists()]
    data = {"source": str(data_folder(arguments.data) / name), "limit_rows": TUNING_ROWS}
    settings = {"method": {"name": method}, "training": {"seed": 0, "threads": arguments.threads}}
    work = Path(arguments.work) / "-".join(["rates", method, name, *(f"{rate:g}" for rate in rates)])
    for rate, (member, _) in zip(rates, train_bank(work, data, settings, "optimizer.learning_rate", rates), strict=True):
        found = {"accuracy": 0.0, "failure": member.reason} if member.accuracy is None else {"accuracy": member.accuracy, "seconds": member.seconds}
        save_json(trial_path(method, name, rate), found)
    shutil.rmtree(work)


def chosen_rate(method: str) -> tuple[float | None, dict[float, float]]:
    """The rate with the best mean validation accuracy (of equals the lower), None while trials are missing; and the means."""
    means = {}
    for rate in rates_of(method):
        paths = [trial_path(method, name, rate) for name in TUNED_ON]
        if not all(path.exists() for path in paths):
            return None, means
        means[rate] = float(np.mean([json.loads(path.read_text())["accuracy"] for path in paths]))
    return max(means, key=lambda rate: (means[rate], -rate)), means


def run_cells(arguments: argparse.Namespace, method: str, name: str) -> None:
    """Train and test the seeds that are missing of one method on one data set."""
    from lorabel.artifacts.records import read_record
    from lorabel.config import DataConfig

    data = {"source": str(data_folder(arguments.data) / name), "limit_rows": ROWS, "validation_rows": VALIDATION_ROWS.get(name)}
    if method == "tfidf":
        save_json(cell_path(name, method, 0), tfidf_cell(data))
        return
    rate, _ = chosen_rate(method)
    seeds = [seed for seed in range(arguments.seeds) if not cell_path(name, method, seed).exists()]
    settings = {"method": {"name": method}, "optimizer": {"learning_rate": rate}, "training": {"threads": arguments.threads}}
    work = Path(arguments.work) / "-".join(["cells", method, name, *map(str, seeds)])
    for seed, (member, run) in zip(seeds, train_bank(work, data, settings, "training.seed", seeds), strict=True):
        assert member.has_scores, member.reason
        scores = test_adapter(run.adapter, DataConfig(**data))
        save_json(cell_path(name, method, seed), {**scores, **facts_of(read_record(run.record)), "learning_rate": rate, "bank": len(seeds)})
    shutil.rmtree(work)


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
        seeds = "/".join(str(len(of_set)) for of_set in found)
        rows.append([method, trainable, "—" if rate is None else f"{rate:g}", *scores, mean, seeds])
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
    text = f"# Every method, {ROWS:,} training rows, embedded encoder, fewer than a million trained parameters (but for full)\n\n"
    text += "Test accuracy in percent, mean ± deviation over seeds.\n\n"
    text += markdown(["method", "trainable", "rate", *SETS, "mean", "seeds"], rows)
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


def run_missing(arguments: argparse.Namespace) -> None:
    """Rates first, then the cells, each bank in its own process, so that memory and threads of one do not reach the next."""
    deadline = time.monotonic() + 60 * arguments.max_minutes
    trials = [("trials", m, n, [trial_path(m, n, rate) for rate in rates_of(m)]) for m in arguments.methods if m != "tfidf" for n in TUNED_ON]
    cells = [("cells", m, n, [cell_path(n, m, seed) for seed in range(min(arguments.seeds, wanted(m)))]) for n in arguments.sets for m in arguments.methods]
    for kind, method, name, paths in trials + cells:
        if all(path.exists() for path in paths) or time.monotonic() > deadline:
            continue
        started = time.monotonic()
        words = ["--bank", kind, method, name, "--data", str(data_folder(arguments.data)), "--seeds", str(arguments.seeds), "--work", arguments.work]
        subprocess.run([sys.executable, __file__, *words, *(["--threads", str(arguments.threads)] if arguments.threads else [])], check=True)
        scores = " ".join(f"{100 * json.loads(path.read_text())['accuracy']:.2f}" for path in paths)
        print(f"{kind} of {method} on {name}: {scores} %, {time.monotonic() - started:.0f} s", flush=True)


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
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "lorabel-methods"), help="folder of banks under way")
    parser.add_argument("--bank", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bank:
        kind, method, name = arguments.bank
        (run_trials if kind == "trials" else run_cells)(arguments, method, name)
        return
    if not arguments.table_only:
        run_missing(arguments)
    write_table()


if __name__ == "__main__":
    main()
