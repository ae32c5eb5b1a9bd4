"""Choose what differs where texts have several labels: the head's learning rate. GoEmotions, 4,000 training and 1,500 validation rows; the test split is never read.

With one label per text the head learns at the adapter's rate. With several, each label is a rare yes among many noes, and the candidates here say what that needs. Each (candidate,
seed) is a cell, kept in benchmarks/results/multi_label/; a stopped run goes on.

    python benchmarks/choose_multi_label.py [--candidates NAME …] [--seeds 1] [--threads N] [--data FOLDER] [--table-only]
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from harness import RESULTS, cells_lines, data_folder, environment, markdown, once, save_json

CANDIDATES = {
    **{f"lora, head at {factor} x": {"optimizer": {"head_learning_rate": factor * 1e-3}} for factor in (1, 3, 10, 30)},
    **{f"full, head at {factor} x": {"method": {"name": "full"}, "optimizer": {"head_learning_rate": factor * 1e-4}} for factor in (1, 10, 100)},
    "lora, head at 10 x, rate 5e-4": {"optimizer": {"learning_rate": 5e-4, "head_learning_rate": 5e-3}},
    "lora, head at 5 x, rate 2e-3": {"optimizer": {"learning_rate": 2e-3, "head_learning_rate": 1e-2}},
    "lora, linear head of the mean, 10 x": {"optimizer": {"head_learning_rate": 1e-2}, "head": {"kind": "linear", "pooling": "mean"}},
}
# Of most candidates; the default when they were run.
EARLIER_HEAD = {"head": {"pooling": "cls"}}
CELLS = RESULTS / "multi_label"
SCORES = ("macro_f1", "micro_f1", "lrap", "accuracy")


def cell_path(name: str, seed: int) -> Path:
    """Where a cell is kept."""
    return CELLS / f"{name.replace(',', '').replace(' ', '-')}-{seed}.json"


def run_cell(folder: Path, settings: dict, seed: int, threads: int | None) -> dict:
    """Train one candidate; returns its validation scores."""
    from lorabel.config import load_config
    from lorabel.workflows.train import run_train

    data = {"source": str(folder / "goemotions"), "limit_rows": 4000, "validation_rows": 1500}
    with tempfile.TemporaryDirectory() as out:
        record = run_train(load_config(EARLIER_HEAD, settings, {"data": data, "training": {"seed": seed, "threads": threads}}), Path(out) / "run").record
    found = record.metrics.validation
    return {**{name: getattr(found, name) for name in SCORES}, "loss": found.loss, "settings": settings, "versions": record.versions}


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", nargs="*", default=list(CANDIDATES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--data")
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    folder = data_folder(arguments.data)
    for seed, name in [] if arguments.table_only else [(s, n) for s in range(arguments.seeds) for n in arguments.candidates]:
        found = once(cell_path(name, seed), lambda n=name, s=seed: run_cell(folder, CANDIDATES[n], s, arguments.threads))
        print(f"{name}: macro-F1 {100 * found['macro_f1']:.2f} %", flush=True)
    rows, results = [], {}
    for name in CANDIDATES:
        cells = [json.loads(path.read_text()) for path in sorted(CELLS.glob(cell_path(name, 0).name.replace("-0.json", "-?.json")))]
        if cells:
            means = {score: float(np.mean([cell[score] for cell in cells])) for score in (*SCORES, "loss")}
            results[name] = {**means, "seeds": len(cells)}
            rows.append((means["macro_f1"], [name, str(len(cells)), *(f"{100 * means[score]:.2f}" for score in SCORES), f"{means['loss']:.4f}"]))
    env = environment(arguments.threads or 2)
    text = "# The head's learning rate where texts have several labels\n\nGoEmotions, 4,000 training rows, validation scores in percent; "
    text += "1 x is the method's own rate (LoRA 1e-3, full fine-tuning 1e-4).\n\n"
    text += markdown(
        ["candidate", "seeds", "macro-F1", "micro-F1", "ranking precision", "subset accuracy", "loss"], [row for _, row in sorted(rows, reverse=True)]
    )
    (RESULTS / "multi_label.md").write_text(text + "\n" + cells_lines(env, CELLS))
    save_json(RESULTS / "multi_label.json", {"environment": env, "candidates": results})


if __name__ == "__main__":
    main()
