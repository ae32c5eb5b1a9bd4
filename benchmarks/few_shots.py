"""How many steps few rows need: LoRA, default recipe, 8 and 32 rows per class of three data sets, on 500 validation rows; the test splits are never read.

Six passes were the most that the recipe made of small tables at first; the others are passes for about so many optimiser steps, with the family's own head, which reads the first
token, with a linear head on the mean of all tokens, and with the supervised contrastive loss beside it. Each (data set, rows per class, form, draw) is a bank whose members
differ in passes, each member a cell kept in benchmarks/results/few_shots/; a stopped run goes on.

    python benchmarks/few_shots.py [--sets …] [--shots …] [--forms …] [--steps …] [--draws N] [--threads N] [--data FOLDER] [--work FOLDER] [--table-only]
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np

from cells import parser_of_banks, train_bank
from harness import RESULTS, cells_lines, data_folder, environment, markdown, save_cell, save_json

CELLS = RESULTS / "few_shots"
SETS = {"trec6": 6, "sst2_sentences": 2, "ag_news": 4}
SHOTS = (8, 32)
STEPS = (0, 25, 50, 100, 200)
MEAN = {"kind": "linear", "pooling": "mean"}
FORMS: dict[str, dict] = {
    "native": {"head": {"kind": "native"}},
    "mean": {"head": MEAN, "loss": {"contrastive_alpha": 0.0}},
    "contrastive": {"head": MEAN, "loss": {"contrastive_alpha": 1.0}},
}
BATCH, VALIDATION_ROWS, SIX = 32, 500, 6


def cell_path(name: str, shots: int, form: str, steps: int, draw: int) -> Path:
    """Where a cell is kept."""
    return CELLS / f"{name}-{shots}-{form}-{steps}-{draw}.json"


def passes(name: str, shots: int, steps: int) -> int:
    """Epochs that make at least so many steps; six where none are given."""
    return math.ceil(steps / math.ceil(SETS[name] * shots / BATCH)) if steps else SIX


def run_bank(arguments: argparse.Namespace, name: str, shots: int, form: str, draw: int, steps: list[int]) -> None:
    """Train a draw of the rows for each number of steps that is missing."""
    data = {"source": str(data_folder(arguments.data) / name), "limit_rows": SETS[name] * shots, "validation_rows": VALIDATION_ROWS, "split_seed": draw}
    settings = {**FORMS[form], "training": {"seed": draw, "threads": arguments.threads, "evaluate_every_steps": 1_000_000}}
    work = Path(arguments.work) / f"{name}-{shots}-{form}-{draw}"
    found = train_bank(work, data, settings, [{"training.num_epochs": passes(name, shots, count)} for count in steps])
    for count, (member, _) in zip(steps, found, strict=True):
        save_cell(
            cell_path(name, shots, form, count, draw), {"accuracy": member.accuracy or 0.0, "failure": member.reason, "passes": passes(name, shots, count)}
        )
        print(f"{name}, {shots} a class, {form}, draw {draw}, {count or 'six passes'}: {100 * (member.accuracy or 0):.2f} %", flush=True)
    shutil.rmtree(work)


def write_table() -> None:
    """One row per form and number of steps, one column per set and rows per class; the mean is over the columns that every row has."""
    columns = [(name, shots) for shots in SHOTS for name in SETS]
    cells = {}
    for form in FORMS:
        for steps in STEPS:
            found = {column: sorted(CELLS.glob(cell_path(*column, form, steps, 0).name[:-6] + "*.json")) for column in columns}
            if any(found.values()):
                cells[form, steps] = {column: [json.loads(path.read_text())["accuracy"] for path in paths] for column, paths in found.items() if paths}
    shared = [column for column in columns if all(column in found for found in cells.values())]
    rows, results = [], {}
    for (form, steps), found in cells.items():
        label = str(steps) if steps else "six passes"
        means = {column: float(np.mean(values)) for column, values in found.items()}
        results[f"{form}, {label}"] = {f"{name}, {shots}": mean for (name, shots), mean in means.items()}
        texts = [f"{100 * means[column]:.1f} ({len(found[column])})" if column in means else "—" for column in columns]
        rows.append([form, label, *texts, f"{100 * np.mean([means[column] for column in shared]):.1f}" if shared else "—"])
    env = environment(1)
    text = "# How many steps few rows need\n\nLoRA, default recipe, embedded encoder, 32 rows a step; validation accuracy in percent, in brackets the number of draws.\n\n"
    text += markdown(["form", "steps", *(f"{name}, {shots} a class" for name, shots in columns), "mean of complete columns"], rows)
    (RESULTS / "few_shots.md").write_text(text + "\n" + cells_lines(env, CELLS))
    save_json(RESULTS / "few_shots.json", {"environment": env, "accuracy": results})


def main() -> None:
    """Run what is missing, then write the table."""
    parser = parser_of_banks(__doc__, "few-shots")
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--shots", nargs="*", type=int, default=list(SHOTS))
    parser.add_argument("--forms", nargs="*", default=list(FORMS))
    parser.add_argument("--steps", nargs="*", type=int, default=list(STEPS))
    parser.add_argument("--draws", type=int, default=3)
    arguments = parser.parse_args()
    banks = [(draw, shots, name, form) for draw in range(arguments.draws) for shots in arguments.shots for name in arguments.sets for form in arguments.forms]
    for draw, shots, name, form in [] if arguments.table_only else banks:
        missing = [steps for steps in arguments.steps if not cell_path(name, shots, form, steps, draw).exists()]
        if missing:
            run_bank(arguments, name, shots, form, draw, missing)
    write_table()


if __name__ == "__main__":
    main()
