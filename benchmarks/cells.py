"""What benchmarks over many cells share: the seeds of a setting trained side by side in a bank, their scores on the test split, and TF-IDF + linear SVM on the same rows."""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.records import RunRecord
from lorabel.artifacts.sweeps import SweepMember
from lorabel.config import DataConfig
from lorabel.data.types import LabelledData, SplitName
from lorabel.stats import Difference, paired_difference


def parser_of_banks(description: str | None, name: str) -> argparse.ArgumentParser:
    """What every benchmark over banks is told: threads, where data and banks under way lie, or that only the table is asked for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--threads", type=int, default=None, help="CPU threads of a bank; two processes of one thread each finish more cells an hour than one of two"
    )
    parser.add_argument("--data")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / f"lorabel-{name}"), help="folder of banks under way")
    return parser


def train_bank(work: Path, data: dict, settings: dict, members: list[dict]) -> list[tuple[SweepMember, RunLayout]]:
    """Members that differ in a few settings, side by side; gone on with where the work folder, which is of these members alone, holds its beginning."""
    from lorabel.artifacts.sweeps import SweepLayout
    from lorabel.workflows.sweep import run_sweep

    layout = SweepLayout(work)
    found = run_sweep([settings, {"data": data}], members, work, resume=layout.record.exists()).record
    return [(member, layout.member(member.number)) for member in found.members]


def tested_seeds(work: Path, data: dict, settings: dict, seeds: list[int], split: SplitName) -> list[dict]:
    """Train seeds of one setting side by side, read a split once for each; one cell per seed, with what `paired` comparisons need. The work folder is removed after."""
    from lorabel.artifacts.records import read_record
    from lorabel.data.load import load_data

    found = train_bank(work, data, settings, [{"training.seed": seed} for seed in seeds])
    cells, loaded = [], load_data(DataConfig(**data))
    for member, run in found:
        assert member.has_scores, member.reason
        cells.append({**score_adapter(run.adapter, loaded, split), **facts_of(read_record(run.record)), "bank": len(seeds)})
    shutil.rmtree(work)
    return cells


def score_adapter(adapter: Path, data: LabelledData, split: SplitName = "test") -> dict:
    """Scores of an adapter on a split, and the bits they can be compared by."""
    from lorabel.data.packing import tokenise
    from lorabel.inference.predictor import table_logits
    from lorabel.workflows.building import load_predictor

    predictor, _ = load_predictor(adapter)
    table = tokenise(data.splits[split].texts, predictor.tokenizer, predictor.tokenizer_digest, predictor.max_length_tokens)
    found = predictor.rule.probabilities(table_logits(predictor.bank, table))
    return scores_of(data, found, predictor.rule.answers(found), predictor.rule.thresholds, split)


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
        "head": record.plan["head"],
        "learning_rate": record.plan["learning_rate"],
        "epochs": record.training.epochs,
        "versions": record.versions,
    }


def tfidf_cell(data_settings: dict) -> dict:
    """The linear baseline on the same rows."""
    from lorabel.data.load import load_data

    data = load_data(DataConfig(**data_settings))
    started = time.perf_counter()
    predicted = tfidf(data) if data.task == "single_label" else tfidf_of_labels(data)
    found = np.eye(len(data.labels))[predicted] if data.task == "single_label" else predicted.astype(float)
    return {**scores_of(data, found, predicted), "seconds": time.perf_counter() - started}


def scores_of(data: LabelledData, found: np.ndarray, predicted: np.ndarray, thresholds: tuple[float, ...] | None = None, split: SplitName = "test") -> dict:
    """Scores on a split, and the bits they can be compared by."""
    from lorabel.evaluation import evaluate_probabilities

    labels = data.splits[split].labels
    result = evaluate_probabilities(labels, found, data.labels, thresholds=thresholds)
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


def paired_accuracy(a: list[dict], b: list[dict]) -> Difference:
    """Accuracy of a's cells minus that of b's on the same rows: rows are resampled, and so are seeds; a single cell stands for all seeds of the other."""
    mine, its = (np.stack([from_bits(cell["correct"], cell["n"]) for cell in cells]).astype(float) for cells in (a, b))
    return paired_difference(lambda rows: mine[:, rows].mean(axis=1) - its[:, rows].mean(axis=1), max(len(a), len(b)), mine.shape[1])


def tfidf(data: LabelledData) -> np.ndarray:
    """Words and word pairs, sublinear TF-IDF, linear SVM with C = 1; trained on the training split alone."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    train, test = data.splits["train"], data.splits["test"]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=1)
    features = vectorizer.fit_transform(list(train.texts))
    return LinearSVC(C=1.0).fit(features, train.labels).predict(vectorizer.transform(list(test.texts)))


def tfidf_of_labels(data: LabelledData) -> np.ndarray:
    """The same with one machine per label; its margin's threshold is chosen on the validation split as ours are."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.svm import LinearSVC

    from lorabel.inference.answers import given_labels, label_probabilities
    from lorabel.thresholds import fit_thresholds

    train, validation, test = (data.splits[name] for name in ("train", "validation", "test"))
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=1)
    model = OneVsRestClassifier(LinearSVC(C=1.0)).fit(vectorizer.fit_transform(list(train.texts)), train.labels)
    scored, found = (label_probabilities(model.decision_function(vectorizer.transform(list(split.texts)))) for split in (validation, test))
    return given_labels(found, fit_thresholds(validation.labels, scored))
