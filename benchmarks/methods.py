"""Every method under one budget on the same rows: 2,000 training rows of AG News, TREC-6 and SST-2, three seeds, embedded encoder.

First each method's learning rate is chosen once: three rates around a first guess, 1,500 training rows of TREC-6 and of SST-2, mean validation accuracy; where the best is the
highest or the lowest, three times as much or a third is tried too, until it is neither. Of the rates within a point of the best, about one standard error, the lowest is taken:
a few times more and most methods diverge. The methods' defaults were chosen from what came of it. Then each (data set, method, seed) is a cell that reads the test split once.
The rates of a method on a data set fill one bank, and so do its seeds. Trials and cells are kept in benchmarks/results/methods/; a stopped run goes on, a bank from its
checkpoint.

    python benchmarks/methods.py [--methods …] [--sets …] [--seeds N] [--threads N] [--max-minutes N] [--data FOLDER] [--work FOLDER] [--table-only]
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from cells import parser_of_banks, tested_seeds, tfidf_cell, train_bank
from harness import RESULTS, cells_lines, data_folder, environment, markdown, save_cell, save_json
from lorabel.methods.base import method_class
from quality import paired

SETS = ("ag_news", "trec6", "sst2_sentences")
TUNED_ON = ("trec6", "sst2_sentences")
ROWS, TUNING_ROWS, SEEDS = 2000, 1500, 3
# AG News has none of its own; 2,000 rows, the default, would take longer to score after each epoch than to train.
VALIDATION_ROWS = {"ag_news": 1000}
# Where the search for each method's rate begins; elsewhere at its default.
FIRST_GUESS = {"full": 1e-4, "head_only": 0.14, "bitfit": 2e-3, "ia3": 1e-2, "vera": 1e-2, "prompt": 3e-2, "prefix": 3e-2}
FIRST_GUESS |= dict.fromkeys(("lora", "dora", "adalora", "lora_prefix", "bottleneck"), 1e-3)
# Forms of a method that have a rate of their own; their rates alone are tried.
FORMS = {
    "prefix_reparameterised": {"method": {"name": "prefix", "reparameterise": True}},
    "head_only_first_token": {"method": {"name": "head_only"}, "head": {"pooling": "cls"}},
    "prompt_first_token": {"method": {"name": "prompt"}, "head": {"pooling": "cls"}},
}
FIRST_GUESS |= {"prefix_reparameterised": 3e-3, "head_only_first_token": 5e-3, "prompt_first_token": 3e-2}
FACTOR = 3.0
# About one standard error of the mean of the two validation splits.
WITHIN = 0.01
# What must be shown to train at all: trained vectors that a wrong rate or start leaves as they were.
INPUT_METHODS = ("prompt", "prefix")
CELLS = RESULTS / "methods"


def method_names() -> list[str]:
    """Trained methods, the default one first."""
    from lorabel.registry import METHODS

    return sorted(METHODS.names(), key=lambda name: (name != "lora", name != "full", name))


def form_of(method: str) -> dict:
    """Settings of a method, or of a form of one."""
    return FORMS.get(method, {"method": {"name": method}})


def tried(method: str) -> dict[float, float]:
    """Rate -> mean validation accuracy, ascending, of the rates that were tried on all the sets they are chosen on."""
    found: dict[float, list[float]] = {}
    for name in TUNED_ON:
        for path in CELLS.glob(f"rate-{method}-{name}-*.json"):
            rate = float(path.stem.removeprefix(f"rate-{method}-{name}-"))
            found.setdefault(rate, []).append(json.loads(path.read_text())["accuracy"])
    return {rate: float(np.mean(found[rate])) for rate in sorted(found) if len(found[rate]) == len(TUNED_ON)}


def chosen_rate(method: str) -> float | None:
    """The lowest rate whose mean validation accuracy is within a point of the best; None while the best may lie beyond what was tried."""
    means = tried(method)
    return None if rates_to_try(method) else min(rate for rate in means if means[rate] >= max(means.values()) - WITHIN)


def rates_to_try(method: str) -> list[float]:
    """Rates that are to be tried next: the first three, then beyond the end at which the best one lies."""
    from lorabel.registry import METHODS

    guess, means = FIRST_GUESS.get(method) or METHODS.get(method).default_learning_rate, tried(method)
    first = [_rounded(guess * factor) for factor in (1 / FACTOR, 1.0, FACTOR)]
    if not set(first) <= set(means):
        return [rate for rate in first if rate not in means]
    best = max(means, key=lambda rate: (means[rate], -rate))
    return [_rounded(best * FACTOR)] if best == max(means) else [_rounded(best / FACTOR)] if best == min(means) else []


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


def trial_path(method: str, name: str, rate: float) -> Path:
    """Where a trial is kept."""
    return CELLS / f"rate-{method}-{name}-{rate:g}.json"


def cell_path(name: str, method: str, seed: int) -> Path:
    """Where a cell is kept."""
    return CELLS / f"{name}-{method}-{seed}.json"


def run_trials(arguments: argparse.Namespace, method: str, name: str) -> None:
    """Validation accuracy of each rate that is missing on one data set; 0 where training diverged."""
    rates = [rate for rate in rates_to_try(method) if not trial_path(method, name, rate).exists()]
    data = {"source": str(data_folder(arguments.data) / name), "limit_rows": TUNING_ROWS}
    # Read as tables with many rows are: a rate is to serve those, too, and most of what a layer learns does not depend on it.
    head = {"pooling": "cls"} if method_class(form_of(method)["method"]).trains_layers else {}
    settings = {"head": head, **form_of(method), "training": {"seed": 0, "threads": arguments.threads}}
    work = Path(arguments.work) / "-".join(["rates", method, name, *(f"{rate:g}" for rate in rates)])
    for rate, (member, _) in zip(rates, train_bank(work, data, settings, [{"optimizer.learning_rate": rate} for rate in rates]), strict=True):
        found = {"accuracy": 0.0, "failure": member.reason} if member.accuracy is None else {"accuracy": member.accuracy, "seconds": member.seconds}
        save_cell(trial_path(method, name, rate), found)
    shutil.rmtree(work)


def run_cells(arguments: argparse.Namespace, method: str, name: str) -> None:
    """Train and test the seeds that are missing of one method on one data set."""
    data = {"source": str(data_folder(arguments.data) / name), "limit_rows": ROWS, "validation_rows": VALIDATION_ROWS.get(name)}
    if method == "tfidf":
        save_cell(cell_path(name, method, 0), tfidf_cell(data))
        return
    rate = chosen_rate(method)
    assert rate is not None
    seeds = [seed for seed in range(arguments.seeds) if not cell_path(name, method, seed).exists()]
    settings = {"method": {"name": method}, "optimizer": {"learning_rate": rate}, "training": {"threads": arguments.threads}}
    work = Path(arguments.work) / "-".join(["cells", method, name, *map(str, seeds)])
    for seed, cell in zip(seeds, tested_seeds(work, data, settings, seeds, "test"), strict=True):
        save_cell(cell_path(name, method, seed), cell)


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
        rate = None if method == "tfidf" else chosen_rate(method)
        scores = []
        for of_set in found:
            mean, deviation = mean_and_spread([cell["accuracy"] for cell in of_set]) if of_set else (float("nan"), 0.0)
            scores.append("—" if not of_set else f"{100 * mean:.2f}" + (f" ± {100 * deviation:.2f}" if len(of_set) > 1 else ""))
        mean = f"{100 * np.mean([np.mean([cell['accuracy'] for cell in of_set]) for of_set in found]):.2f}" if all(found) else "—"
        trainable = next((f"{cell['trainable']:,}" for of_set in found for cell in of_set if "trainable" in cell), "—")
        seeds = "/".join(str(len(of_set)) for of_set in found)
        rows.append([method, trainable, "—" if rate is None else f"{rate:g}", *scores, mean, seeds])
        for name in SETS:
            mine, its = cells[name, method], cells[name, "lora"]
            # What has no seeds stands beside all of LoRA's.
            shared = len(its) if method == "tfidf" else min(len(mine), len(its))
            if method != "lora" and mine and shared:
                tests.append([name, method, shared, *paired(mine[:shared], its[:shared])])
    corrected = holm([test[-1] for test in tests])
    differences = [
        [name, method, str(seeds), f"{100 * mean:+.2f}", f"{100 * low:+.2f} … {100 * high:+.2f}", f"{p:.3f}"]
        for (name, method, seeds, mean, low, high, _), p in zip(tests, corrected, strict=True)
    ]
    of_inputs = [
        over_head(name, method, cells[name, method], cells[name, "head_only"])
        for method in INPUT_METHODS
        for name in SETS
        if cells[name, method] and cells[name, "head_only"]
    ]
    trials = [[name, ", ".join(f"{rate:g}: {100 * mean:.2f}" for rate, mean in tried(name).items())] for name in (*method_names(), *FORMS) if tried(name)]
    missing = [f"{name}/{method} ({len(of_set)} of {wanted(method)})" for (name, method), of_set in cells.items() if len(of_set) < wanted(method)]
    untouched = [name for name in SETS if not any(of_set for (one, _), of_set in cells.items() if one == name)]
    left = [f"all of {name}" for name in untouched] + [text for text in missing if text.partition("/")[0] not in untouched]
    text = f"# Every method, {ROWS:,} training rows, embedded encoder, fewer than a million trained parameters (but for full)\n\n"
    if rows:
        text += "Test accuracy in percent, mean ± deviation over seeds. The default heads: on TREC-6, 333 rows per class, and of head_only and "
        text += "prompt on all three, linear on the mean of all tokens, else the family's own on the first token.\n\n"
        text += markdown(["method", "trainable", "rate", *SETS, "mean", "seeds"], rows)
        text += "\n## Minus LoRA, the same seeds and test rows (paired bootstrap over rows and seeds, points; p after Holm's correction)\n\n"
        text += markdown(["data", "method", "seeds", "difference", "95 % interval", "p"], differences)
        text += "\n## What trained inputs add to the head alone (points; paired bootstrap over rows and seeds, p without correction)\n\n"
        text += markdown(["data", "method", "difference", "95 % interval", "p", "worst seed minus the head's best"], of_inputs)
    text += f"\n## Learning rates tried: mean validation accuracy on {' and '.join(TUNED_ON)}, {TUNING_ROWS:,} training rows, one seed"
    text += "; the head of methods that train layers reads the first token\n\n"
    text += markdown(["method", "rate: accuracy"], trials)
    text += f"\n{said_of_precision(cells)}\n\nNot run yet: {', '.join(left) if left else 'nothing'}.\n"
    env = environment(1)
    (RESULTS / "methods.md").write_text(text + "\n" + cells_lines(env, CELLS))
    means = {f"{name}/{method}": float(np.mean([cell["accuracy"] for cell in of_set])) for (name, method), of_set in cells.items() if of_set}
    save_json(RESULTS / "methods.json", {"environment": env, "accuracy": means, "missing": missing})


def over_head(name: str, method: str, mine: list[dict], head: list[dict]) -> list[str]:
    """A row of the table against the head alone."""
    mean, low, high, p = paired(mine, head)
    gap = min(cell["accuracy"] for cell in mine) - max(cell["accuracy"] for cell in head)
    return [name, method, f"{100 * mean:+.2f}", f"{100 * low:+.2f} … {100 * high:+.2f}", f"{p:.3f}", f"{100 * gap:+.2f}"]


def said_of_precision(cells: dict[tuple[str, str], list[dict]]) -> str:
    """Which cells were multiplied in which number format: `auto` takes bf16 where the processor multiplies it natively, and cells come from several machines."""
    found: dict[str, list[str]] = {}
    for (name, method), of_set in cells.items():
        for precision in sorted({cell["precision"] for cell in of_set if "precision" in cell}):
            found.setdefault(precision, []).append(f"{name}/{method}")
    few = sorted(found, key=lambda precision: len(found[precision]))[:-1]
    return (
        "Number format: "
        + "".join(f"{precision} for {', '.join(found[precision])}; " for precision in few)
        + f"{'else ' if few else ''}{max(found, key=lambda one: len(found[one]), default='—')}."
    )


def wanted(method: str) -> int:
    """Seeds asked for."""
    return 1 if method == "tfidf" else SEEDS


def run_missing(arguments: argparse.Namespace) -> None:
    """Rates first, then the cells, each bank in its own process, so that memory and threads of one do not reach the next."""
    deadline = time.monotonic() + 60 * arguments.max_minutes

    def run(kind: str, method: str, name: str, paths: list[Path]) -> None:
        if all(path.exists() for path in paths) or time.monotonic() > deadline:
            return
        started = time.monotonic()
        words = ["--bank", kind, method, name, "--data", str(data_folder(arguments.data)), "--seeds", str(arguments.seeds), "--work", arguments.work]
        subprocess.run([sys.executable, __file__, *words, *(["--threads", str(arguments.threads)] if arguments.threads else [])], check=True)
        scores = " ".join(f"{100 * json.loads(path.read_text())['accuracy']:.2f}" for path in paths)
        print(f"{kind} of {method} on {name}: {scores} %, {time.monotonic() - started:.0f} s", flush=True)

    for method in arguments.methods:
        while method != "tfidf" and (rates := rates_to_try(method)) and time.monotonic() < deadline:
            for name in TUNED_ON:
                run("trials", method, name, [trial_path(method, name, rate) for rate in rates])
    for name in arguments.sets:
        for method in (method for method in arguments.methods if method not in FORMS):
            run("cells", method, name, [cell_path(name, method, seed) for seed in range(min(arguments.seeds, wanted(method)))])


def main() -> None:
    """Run what is missing until done or out of time, then write the table."""
    parser = parser_of_banks(__doc__, "methods")
    parser.add_argument("--methods", nargs="*", default=[*method_names(), "tfidf"])
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--max-minutes", type=float, default=1e9)
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
