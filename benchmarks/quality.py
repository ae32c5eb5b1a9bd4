"""The quality table: the default recipe against full fine-tuning, head-only, and TF-IDF + linear SVM, on the same rows.

Embedded encoder, fewer than 1 M trainable parameters. Each (data set, method, seed) is a cell, run once and kept in benchmarks/results/quality/; the seeds of a method on a
data set fill one bank, in a process of its own; a stopped run goes on, a bank from its checkpoint. The test split of a cell is read once, at its end. GoEmotions, whose texts
have several labels, is judged by macro-F1, every other set by accuracy.

    python benchmarks/quality.py [--sets …] [--methods …] [--seeds N] [--threads N] [--max-minutes N] [--data FOLDER] [--work FOLDER] [--table-only]
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cells import from_bits, paired_accuracy, parser_of_banks, tested_seeds, tfidf_cell
from harness import RESULTS, cells_lines, data_folder, environment, markdown, save_cell, save_json
from lorabel.stats import Difference, holm, paired_difference

SETS = {"trec6": 3, "sst2_sentences": 3, "banking77": 3, "ag_news": 3, "imdb_10k": 1, "dbpedia14": 3, "goemotions": 3}
# The sets that the default recipe was judged on first, and those that the solver's default is.
FIVE = ("trec6", "sst2_sentences", "banking77", "ag_news", "imdb_10k")
SIX = ("ag_news", "trec6", "sst2_sentences", "banking77", "dbpedia14", "goemotions")
RIVALS = ("dora", "prefix", "bitfit")
METHODS = ("lora", "full", *RIVALS, "head_only", "tfidf")
CELLS = RESULTS / "quality"
# Sets with fewer training rows per class than `lorabel.solver.FEW_ROWS_PER_CLASS`: their heads read the mean of all tokens.
FEW_ROWS = ("banking77",)
# Of cells that do not say it.
EARLIER_RATES = {"full": 1e-4}


def cell_path(name: str, method: str, seed: int) -> Path:
    """Where a cell is kept."""
    return CELLS / f"{name}-{method}-{seed}.json"


def missing_seeds(name: str, method: str, most: int | None) -> list[int]:
    """Seeds of a cell that were not run yet, or with an earlier default; at most so many in all."""
    paths = {seed: cell_path(name, method, seed) for seed in range(min(wanted(name, method), most or 99))}
    return [seed for seed, path in paths.items() if not (path.exists() and is_of_todays_default(name, json.loads(path.read_text())))]


def run_bank(arguments: argparse.Namespace, name: str, method: str, seeds: list[int]) -> None:
    """Train and test seeds of one method on one data set."""
    data = {"source": str(data_folder(arguments.data) / name)}
    if method == "tfidf":
        save_cell(cell_path(name, method, 0), tfidf_cell(data))
        return
    settings = {"training": {"threads": arguments.threads}, **({} if method == "lora" else {"method": {"name": method}})}
    work = Path(arguments.work) / "-".join([name, method, *map(str, seeds)])
    for seed, cell in zip(seeds, tested_seeds(work, data, settings, seeds, "test"), strict=True):
        save_cell(cell_path(name, method, seed), cell)


def headline(name: str) -> str:
    """The score that a set is judged by."""
    return "macro_f1" if name == "goemotions" else "accuracy"


def paired(a: list[dict], b: list[dict]) -> tuple[float, float, float, float]:
    """Difference of two methods' headline scores over the same seeds and rows: mean, 95 % interval over rows and seeds, p-value."""
    found = paired_accuracy(a, b) if "correct" in a[0] else paired_macro_f1(a, b)
    return found.mean, found.low, found.high, found.p_value


def paired_macro_f1(a: list[dict], b: list[dict]) -> Difference:
    """The same of macro-F1 where texts have several labels."""
    from lorabel.metrics.multi_label import macro_f1_of_counts

    truth = label_bits(a[0], "true")
    actual = truth.astype(float)

    def of_rows(cells: list[dict]) -> Callable[[np.ndarray], np.ndarray]:
        given = [label_bits(cell, "given") for cell in cells]
        # Products with how often each row was drawn are several times faster than picking the rows.
        counts = [((truth & one).astype(float), one.astype(float), (truth | one).any(axis=0)) for one in given]
        return lambda drawn: np.array([macro_f1_of_counts(drawn @ hits, drawn @ answered, drawn @ actual, seen) for hits, answered, seen in counts])

    mine, its = of_rows(a), of_rows(b)

    def gaps(rows: np.ndarray) -> np.ndarray:
        drawn = np.bincount(rows, minlength=len(truth)).astype(float)
        return mine(drawn) - its(drawn)

    return paired_difference(gaps, max(len(a), len(b)), len(truth))


def label_bits(cell: dict, which: str) -> np.ndarray:
    """Indicators (rows, C)."""
    return from_bits(cell[which], cell["n"] * cell["labels"]).reshape(cell["n"], cell["labels"])


def load_cells(name: str, method: str) -> list[dict]:
    """All finished seeds of a data set and method."""
    return [{**json.loads(path.read_text()), "seed": int(path.stem[-1])} for path in sorted(CELLS.glob(f"{name}-{method}-?.json"))]


def is_of_todays_default(data: str, cell: dict) -> bool:
    """Whether a data set's cell was run with the pooling and with what the default recipe says now, or at its method's rate of now; cells of baselines always were."""
    from lorabel.config import load_config
    from lorabel.methods.base import make_method, method_class
    from lorabel.workflows.methods import run_methods

    default, name = load_config().method, cell.get("method", {}).get("name")
    if name is None:
        return True
    pooling = "mean" if data in FEW_ROWS or not method_class({"name": name}).trains_layers else "cls"
    # Cells that do not say what the head read are of when all read the first token.
    is_pooled_so = cell.get("head", {"pooling": "cls"})["pooling"] == pooling
    if name != default["name"]:
        (facts,) = run_methods(name)
        return is_pooled_so and (cell.get("learning_rate") or EARLIER_RATES[name]) == facts.learning_rate
    settled = {option: cell["method"][option] for option in ("rank", "alpha", "targets")}
    now, then = (make_method({**options, **settled}) for options in (default, cell["method"]))
    return is_pooled_so and now == then


def write_table() -> None:
    """The table of what is finished, with paired comparisons of each method with full fine-tuning."""
    cells = {(name, method): load_cells(name, method) for name in SETS for method in METHODS}
    cells = {key: found for key, found in cells.items() if found}
    summary = {name: {method: headline_score(name, cells[name, method]) for method in METHODS if (name, method) in cells} for name in SETS}
    text = "# Quality, embedded encoder, default recipe\n\nTest scores in percent; accuracy as mean ± deviation over seeds, 95 % bootstrap interval of a seed, macro-F1. "
    text += "GoEmotions has several labels per text: its accuracy is that of the whole set of labels. "
    text += "Heads read the first token, where rows are few (Banking77) or no layer is trained the mean of all tokens. "
    text += "Each method at its default rate, which was chosen on validation splits of TREC-6 and SST-2 ([rates](methods.md)); full fine-tuning with the encoder's dropout off. "
    text += "Of lora the sites, ranks, B's rate and passes were chosen too ([recipe](recipe.md), [solver](budget_solver.md)); of the others the rate alone. "
    text += "Choices were made on validation splits, but test scores of earlier defaults of lora were known when later ones were chosen (its B's rate was doubled after a first table, "
    text += "for 0.18 points on validation). tfidf is words and pairs of words with a linear support vector machine. "
    text += "Splits are scored as they come: 11 of 500 test rows of TREC-6 and 7 of 3,080 of Banking77 have the text of a training row (`lorabel audit`).\n\n"
    text += markdown(["method", "trainable", *SIX, "mean"], overview(cells, summary))
    text += "\nHeadline scores of the six sets (GoEmotions: macro-F1), of three seeds; in brackets: of so many.\n\n## All scores\n\n"
    rows = [score_row(name, method, found) for (name, method), found in cells.items()]
    text += markdown(["data", "method", "trainable", "seeds", "accuracy", "interval", "macro-F1"], rows)
    text += "\n## Minus full fine-tuning, the same seeds and test rows (paired bootstrap over rows and seeds, points; of one seed over rows alone; "
    text += "p after Holm's correction)\n\n"
    differences = {key: difference(found, cells[key[0], "full"]) for key, found in cells.items() if key[1] != "full"}
    corrected = holm([found[-1] for _, found in differences.values()])
    rows = [difference_row(*key, seeds, found, p) for (key, (seeds, found)), p in zip(differences.items(), corrected, strict=True)]
    text += markdown(["data", "method", "score", "seeds", "difference", "95 % interval", "p"], rows)
    text += "\n" + verdict(differences) + "\n"
    for sets in (FIVE, SIX, tuple(SETS)):
        text += f"\nMean over {', '.join(sets)}: {shown_means(sets, summary)}.\n"
    earlier = [f"{name}/{method}" for (name, method), found in cells.items() if not all(is_of_todays_default(name, cell) for cell in found)]
    if earlier:
        text += f"\nRun with an earlier default recipe, rate or head, to be run again: {', '.join(earlier)}.\n"
    counts = {(name, method): (len(cells.get((name, method), [])), wanted(name, method)) for name in SETS for method in METHODS}
    missing = [f"{name}/{method} ({count} of {asked} seeds)" for (name, method), (count, asked) in counts.items() if count < asked]
    text += f"\nNot run yet: {', '.join(missing) if missing else 'nothing'}.\n"
    env = environment(2)
    (RESULTS / "quality.md").write_text(text + "\n" + cells_lines(env, CELLS))
    save_json(RESULTS / "quality.json", {"environment": env, "accuracy": summary, "missing": missing, "earlier_recipe": earlier})


def overview(cells: dict[tuple[str, str], list[dict]], summary: dict[str, dict[str, float]]) -> list[list[str]]:
    """Rows of the first table: each method's headline scores on the six sets, and their mean where all are there."""

    def score(name: str, method: str) -> str:
        if method not in summary[name]:
            return "—"
        count = len(cells[name, method])
        return f"{100 * summary[name][method]:.1f}" + (f" ({count})" if count < wanted(name, method) else "")

    def trained(method: str) -> str:
        sizes = {cell["trainable"] for name in SIX for cell in cells.get((name, method), []) if "trainable" in cell}
        return f"{min(sizes):,} to {max(sizes):,}" if sizes else "—"

    means = means_over(SIX, summary)
    return [[method, trained(method), *(score(name, method) for name in SIX), f"{100 * means[method]:.2f}" if method in means else "—"] for method in METHODS]


def headline_score(name: str, cells: list[dict]) -> float:
    """Mean over seeds of the score that a set is judged by."""
    return float(np.mean([cell[headline(name)] for cell in cells]))


def score_row(name: str, method: str, cells: list[dict]) -> list[str]:
    """A row of the first table."""
    from lorabel.stats import mean_and_spread

    mean, deviation = mean_and_spread([cell["accuracy"] for cell in cells])
    low, high = (np.mean([cell["interval"]["accuracy"][end] for cell in cells]) for end in (0, 1))
    f1, _ = mean_and_spread([cell["macro_f1"] for cell in cells])
    trainable = f"{cells[0]['trainable']:,}" if "trainable" in cells[0] else "—"
    spread = f"± {100 * deviation:.2f}" if len(cells) > 1 else "one seed"
    return [name, method, trainable, str(len(cells)), f"{100 * mean:.2f} {spread}", f"{100 * low:.2f}–{100 * high:.2f}", f"{100 * f1:.2f}"]


def difference(cells: list[dict], full: list[dict]) -> tuple[int, tuple[float, float, float, float]]:
    """A method against full fine-tuning, over the seeds that both have, or all of them where it has none: their number, and what `paired` finds."""
    if "method" not in cells[0]:
        return len(full), paired(cells, full)
    shared = {cell["seed"] for cell in cells} & {cell["seed"] for cell in full}
    mine, its = ([cell for cell in of if cell["seed"] in shared] for of in (cells, full))
    return len(shared), paired(mine, its)


def verdict(differences: dict[tuple[str, str], tuple[int, tuple[float, float, float, float]]]) -> str:
    """On which sets each method is worse by a point or more, and surely so: its whole interval lies below."""
    methods = [method for method in METHODS if any(key[1] == method for key in differences)]
    worse = {method: [name for name, one in differences if one == method and differences[name, one][1][2] < -0.01] for method in methods}
    return (
        "Worse than full fine-tuning by more than a point, the whole interval: "
        + "; ".join(f"{method} on {', '.join(sets) or 'none'}" for method, sets in worse.items())
        + "."
    )


def difference_row(name: str, method: str, seeds: int, found: tuple[float, float, float, float], p_value: float) -> list[str]:
    """A row of the second table."""
    mean, low, high, _ = found
    score = headline(name).replace("macro_f1", "macro-F1")
    return [name, method, score, str(seeds), f"{100 * mean:+.2f}", f"{100 * low:+.2f} … {100 * high:+.2f}", f"{p_value:.3f}"]


def means_over(sets: tuple[str, ...], summary: dict[str, dict[str, float]]) -> dict[str, float]:
    """Each method's mean headline score, where it has all the sets."""
    return {method: float(np.mean([summary[name][method] for name in sets])) for method in METHODS if all(method in summary[name] for name in sets)}


def shown_means(sets: tuple[str, ...], summary: dict[str, dict[str, float]]) -> str:
    """The same as text, with the distance from full fine-tuning."""
    means = means_over(sets, summary)
    full = means.get("full", np.nan)
    return ", ".join(f"{method} {100 * mean:.2f}" + (f" ({100 * (mean - full):+.2f})" if method != "full" else "") for method, mean in means.items())


def wanted(name: str, method: str) -> int:
    """Seeds asked for; TF-IDF has no randomness worth repeating, and the rivals are run on the six sets alone."""
    if name not in SIX and method in RIVALS:
        return 0
    return 1 if method == "tfidf" else SETS[name]


def main() -> None:
    """Run missing cells until done or out of time, then write the table."""
    parser = parser_of_banks(__doc__, "quality")
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--max-minutes", type=float, default=1e9)
    parser.add_argument("--bank", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bank:
        run_bank(arguments, *arguments.bank[:2], [int(seed) for seed in arguments.bank[2:]])
        return
    deadline = time.monotonic() + 60 * arguments.max_minutes
    for name, method in [] if arguments.table_only else [(name, method) for name in arguments.sets for method in arguments.methods]:
        seeds = missing_seeds(name, method, arguments.seeds)
        if not seeds or time.monotonic() > deadline:
            continue
        started = time.monotonic()
        words = ["--data", str(data_folder(arguments.data)), "--work", arguments.work, "--bank", name, method, *map(str, seeds)]
        subprocess.run([sys.executable, __file__, *(["--threads", str(arguments.threads)] if arguments.threads else []), *words], check=True)
        scores = " ".join(f"{100 * json.loads(cell_path(name, method, seed).read_text())['accuracy']:.2f}" for seed in seeds)
        print(f"{name} {method}: {scores} %, {time.monotonic() - started:.0f} s", flush=True)
    write_table()


if __name__ == "__main__":
    main()
