"""The quality table: the default recipe against full fine-tuning, head-only, and TF-IDF + linear SVM, on the same rows.

Embedded encoder, fewer than 1 M trainable parameters. Each (data set, method, seed) is a cell, run once in a process of its own and kept in
benchmarks/results/quality/; a stopped run goes on. The test split of a cell is read once, at its end. GoEmotions, whose texts have several labels, is judged by macro-F1,
every other set by accuracy.

    python benchmarks/quality.py [--sets …] [--methods …] [--max-minutes N] [--data FOLDER] [--table-only]
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
from lorabel.artifacts.records import RunRecord
from lorabel.config import DataConfig

SETS = {"trec6": 3, "sst2_sentences": 3, "banking77": 3, "ag_news": 1, "imdb_10k": 1, "dbpedia14": 1, "goemotions": 1}
# The sets that the default recipe was judged on first, and those that the solver's default is.
FIVE = ("trec6", "sst2_sentences", "banking77", "ag_news", "imdb_10k")
SIX = ("ag_news", "trec6", "sst2_sentences", "banking77", "dbpedia14", "goemotions")
RIVALS = ("dora", "prefix", "bitfit")
METHODS = ("lora", "full", *RIVALS, "head_only", "tfidf")
CELLS = RESULTS / "quality"
# Of cells that do not say it.
EARLIER_RATES = {"full": 1e-4, "head_only": 5e-3}


def run_cell(folder: Path, name: str, method: str, seed: int, threads: int | None) -> dict:
    """Train and test one cell of the table."""
    if method == "tfidf":
        return tfidf_cell({"source": str(folder / name)})
    settings = {} if method == "lora" else {"method": {"name": method}}
    return train_and_test(settings, {"source": str(folder / name)}, seed, threads)


def train_and_test(settings: dict, data_settings: dict, seed: int, threads: int | None) -> dict:
    """Train with some settings, read the test split once; keeps what was right, or which labels were given and true, as hexadecimal bits for paired comparisons."""
    from lorabel.config import load_config
    from lorabel.workflows.train import run_train

    config = load_config(settings, {"data": data_settings, "training": {"seed": seed, "threads": threads}})
    with tempfile.TemporaryDirectory() as out:
        record = run_train(config, Path(out) / "run").record
        return {**test_adapter(Path(out) / "run" / "adapter", config.data), **facts_of(record)}


def test_adapter(adapter: Path, data_config: DataConfig) -> dict:
    """Scores of an adapter on the test split, and the bits they can be compared by."""
    from lorabel.data.load import load_data
    from lorabel.data.packing import tokenise
    from lorabel.inference.predictor import table_logits
    from lorabel.workflows.building import load_predictor

    predictor, _ = load_predictor(adapter)
    data = load_data(data_config)
    table = tokenise(data.splits["test"].texts, predictor.tokenizer, predictor.tokenizer_digest, predictor.max_length_tokens)
    found = predictor.rule.probabilities(table_logits(predictor.bank, table))
    return scores_of(data, found, predictor.rule.answers(found), predictor.rule.thresholds)


def facts_of(record: RunRecord) -> dict:
    """What a cell keeps of how it was trained."""
    return {
        "validation": record.metrics.validation.accuracy,
        "trainable": record.parameters.trainable,
        "bytes": record.bytes.adapter_file,
        "seconds": record.training.seconds,
        "samples_per_second": record.training.samples_per_second,
        "precision": record.plan["precision"],
        "method": record.plan["method"],
        "learning_rate": record.plan["learning_rate"],
        "epochs": record.training.epochs,
        "versions": record.versions,
    }


def tfidf_cell(data_settings: dict) -> dict:
    """The linear baseline on the same rows."""
    from lorabel.config import DataConfig
    from lorabel.data.load import load_data

    data = load_data(DataConfig(**data_settings))
    started = time.perf_counter()
    predicted = tfidf(data) if data.task == "single_label" else tfidf_of_labels(data)
    found = np.eye(len(data.labels))[predicted] if data.task == "single_label" else predicted.astype(float)
    return {**scores_of(data, found, predicted), "seconds": time.perf_counter() - started}


def scores_of(data: object, found: np.ndarray, predicted: np.ndarray, thresholds: tuple[float, ...] | None = None) -> dict:
    """Scores on the test split, and the bits they can be compared by."""
    from lorabel.evaluation import evaluate_probabilities

    labels = data.splits["test"].labels  # type: ignore[attr-defined]
    result = evaluate_probabilities(labels, found, data.labels, thresholds=thresholds)  # type: ignore[attr-defined]
    scores = {"accuracy": result.accuracy, "macro_f1": result.macro_f1, "n": result.n, "interval": result.interval}
    if labels.ndim == 2:
        return {**scores, "labels": labels.shape[1], "given": as_bits(predicted), "true": as_bits(labels), "micro_f1": result.micro_f1, "lrap": result.lrap}
    return {**scores, "correct": as_bits(predicted == labels)}


def as_bits(flags: np.ndarray) -> str:
    """Zeros and ones as hexadecimal text."""
    return np.packbits(flags).tobytes().hex()


def from_bits(text: str, count: int) -> np.ndarray:
    """What `as_bits` was given, flat."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:count]


def tfidf(data: object) -> np.ndarray:
    """Words and word pairs, sublinear TF-IDF, linear SVM with C = 1; trained on the training split alone."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    train, test = data.splits["train"], data.splits["test"]  # type: ignore[attr-defined]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=1)
    features = vectorizer.fit_transform(list(train.texts))
    return LinearSVC(C=1.0).fit(features, train.labels).predict(vectorizer.transform(list(test.texts)))


def tfidf_of_labels(data: object) -> np.ndarray:
    """The same with one machine per label; its margin's threshold is chosen on the validation split as ours are."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.svm import LinearSVC

    from lorabel.inference.answers import given_labels, label_probabilities
    from lorabel.thresholds import fit_thresholds

    train, validation, test = (data.splits[name] for name in ("train", "validation", "test"))  # type: ignore[attr-defined]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=1)
    model = OneVsRestClassifier(LinearSVC(C=1.0)).fit(vectorizer.fit_transform(list(train.texts)), train.labels)
    scored, found = (label_probabilities(model.decision_function(vectorizer.transform(list(split.texts)))) for split in (validation, test))
    return given_labels(found, fit_thresholds(validation.labels, scored))


def headline(name: str) -> str:
    """The score that a set is judged by."""
    return "macro_f1" if name == "goemotions" else "accuracy"


def paired(a: list[dict], b: list[dict]) -> tuple[float, float, float, float]:
    """Difference of two methods' headline scores over the same seeds and rows: mean, 95 % interval, p-value."""
    from lorabel.stats import paired_bootstrap

    if "correct" in a[0]:
        found = paired_bootstrap(*(np.concatenate([from_bits(cell["correct"], cell["n"]).astype(bool) for cell in cells]) for cells in (a, b)))
        return found.mean, found.low, found.high, found.p_value
    truth, given = label_bits(a, "true"), [label_bits(cells, "given") for cells in (a, b)]
    drawn = np.random.default_rng(0).multinomial(len(truth), np.full(len(truth), 1 / len(truth)), size=2000).astype(float)
    differences = macro_f1(drawn, truth, given[0]) - macro_f1(drawn, truth, given[1])
    low, high = np.quantile(differences, [0.025, 0.975])
    once = np.ones((1, len(truth)))
    mean = float((macro_f1(once, truth, given[0]) - macro_f1(once, truth, given[1]))[0])
    return mean, float(low), float(high), float(min(1.0, 2 * min((differences <= 0).mean(), (differences >= 0).mean())))


def label_bits(cells: list[dict], which: str) -> np.ndarray:
    """Indicators (rows of all seeds, C)."""
    return np.concatenate([from_bits(cell[which], cell["n"] * cell["labels"]).reshape(cell["n"], cell["labels"]) for cell in cells])


def macro_f1(weights: np.ndarray, truth: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Macro-F1 of each resample, (S, N) -> (S,)."""
    from lorabel.metrics.multi_label import f1_of_counts

    return f1_of_counts(weights @ (truth & given), weights @ given, weights @ truth).mean(axis=1)


def load_cells(name: str, method: str) -> list[dict]:
    """All finished seeds of a data set and method."""
    return [json.loads(path.read_text()) for path in sorted(CELLS.glob(f"{name}-{method}-?.json"))]


def is_of_todays_default(cell: dict) -> bool:
    """Whether a cell was run with what the default recipe says now, or at its method's rate of now; cells of baselines always were."""
    from lorabel.config import load_config
    from lorabel.methods.base import make_method
    from lorabel.registry import METHODS

    default, name = load_config().method, cell.get("method", {}).get("name")
    if name != default["name"]:
        return name is None or (cell.get("learning_rate") or EARLIER_RATES[name]) == METHODS.get(name)().learning_rate_for(1)
    settled = {option: cell["method"][option] for option in ("rank", "alpha", "targets")}
    now, then = (make_method({**options, **settled}) for options in (default, cell["method"]))
    return now == then


def write_table() -> None:
    """The table of what is finished, with paired comparisons of each method with full fine-tuning."""
    cells = {(name, method): load_cells(name, method) for name in SETS for method in METHODS}
    cells = {key: found for key, found in cells.items() if found}
    summary = {name: {method: headline_score(name, cells[name, method]) for method in METHODS if (name, method) in cells} for name in SETS}
    text = (
        "# Quality, embedded encoder, default recipe\n\nTest accuracy in percent (mean ± deviation over seeds), 95 % bootstrap interval of a seed, macro-F1. "
    )
    text += "GoEmotions has several labels per text: its accuracy is that of the whole set of labels. "
    text += "Each method at its default rate, which was chosen on validation splits of TREC-6 and SST-2 ([rates](methods.md)); full fine-tuning with the encoder's dropout off.\n\n"
    rows = [score_row(name, method, found) for (name, method), found in cells.items()]
    text += markdown(["data", "method", "trainable", "seeds", "accuracy", "interval", "macro-F1"], rows)
    text += "\n## Minus full fine-tuning, the same seeds and test rows (paired bootstrap, points)\n\n"
    differences = [difference_row(name, method, found, cells[name, "full"]) for (name, method), found in cells.items() if method != "full"]
    text += markdown(["data", "method", "score", "seeds", "difference", "95 % interval", "p"], differences)
    for sets in (FIVE, SIX):
        text += f"\nMean over {', '.join(sets)}: {means_over(sets, summary)}.\n"
    earlier = [f"{name}/{method}" for (name, method), found in cells.items() if not all(map(is_of_todays_default, found))]
    if earlier:
        text += f"\nRun with an earlier default recipe or rate, to be run again: {', '.join(earlier)}.\n"
    counts = {(name, method): (len(cells.get((name, method), [])), wanted(name, method)) for name in SETS for method in METHODS}
    missing = [f"{name}/{method} ({count} of {asked} seeds)" for (name, method), (count, asked) in counts.items() if count < asked]
    text += f"\nNot run yet: {', '.join(missing) if missing else 'nothing'}.\n"
    env = environment(2)
    (RESULTS / "quality.md").write_text(text + "\n" + environment_lines(env))
    save_json(RESULTS / "quality.json", {"environment": env, "accuracy": summary, "missing": missing, "earlier_recipe": earlier})


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


def difference_row(name: str, method: str, cells: list[dict], full: list[dict]) -> list[str]:
    """A row of the second table, over the seeds that both have."""
    seeds = min(len(cells), len(full))
    mean, low, high, p_value = paired(cells[:seeds], full[:seeds])
    score = headline(name).replace("macro_f1", "macro-F1")
    return [name, method, score, str(seeds), f"{100 * mean:+.2f}", f"{100 * low:+.2f} … {100 * high:+.2f}", f"{p_value:.3f}"]


def means_over(sets: tuple[str, ...], summary: dict[str, dict[str, float]]) -> str:
    """Each method's mean headline score where it has all the sets, and its distance from full fine-tuning."""
    means = {method: np.mean([summary[name][method] for name in sets]) for method in METHODS if all(method in summary[name] for name in sets)}
    full = means.get("full", np.nan)
    return ", ".join(f"{method} {100 * mean:.2f}" + (f" ({100 * (mean - full):+.2f})" if method != "full" else "") for method, mean in means.items())


def wanted(name: str, method: str) -> int:
    """Seeds asked for; TF-IDF has no randomness worth repeating, and the rivals are run on the six sets alone."""
    if name not in SIX and method in RIVALS:
        return 0
    return 1 if method == "tfidf" else SETS[name]


def main() -> None:
    """Run missing cells until done or out of time, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument(
        "--threads", type=int, default=None, help="CPU threads of a cell; two processes of one thread each finish more cells an hour than one of two"
    )
    parser.add_argument("--max-minutes", type=float, default=1e9)
    parser.add_argument("--data")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = data_folder(arguments.data)
    if arguments.cell:
        name, method, seed = arguments.cell
        save_json(CELLS / f"{name}-{method}-{seed}.json", run_cell(folder, name, method, int(seed), arguments.threads))
        return
    deadline = time.monotonic() + 60 * arguments.max_minutes
    cells = [(n, m, s) for s in range(3) for n in arguments.sets for m in arguments.methods if s < min(wanted(n, m), arguments.seeds or 99)]
    for name, method, seed in [] if arguments.table_only else cells:
        path = CELLS / f"{name}-{method}-{seed}.json"
        if (path.exists() and is_of_todays_default(json.loads(path.read_text()))) or time.monotonic() > deadline:
            continue
        started = time.monotonic()
        command = [sys.executable, __file__, "--data", str(folder), "--cell", name, method, str(seed)]
        command += ["--threads", str(arguments.threads)] if arguments.threads else []
        subprocess.run(command, check=True)
        print(
            f"{name} {method} seed {seed}: {100 * json.loads(path.read_text())['accuracy']:.2f} %, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    write_table()


if __name__ == "__main__":
    main()
