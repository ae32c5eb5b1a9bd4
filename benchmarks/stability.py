"""How often the default recipe breaks: many seeds of LoRA on 2,000 rows of SST-2, at its rate and at twice that, with the recipe and with what might steady it.

A run is called broken where its validation accuracy lies more than five points below the median of all runs at its rate. A recipe that holds at twice its rate has a margin.
Each (candidate, rate, seed) is a cell, kept in benchmarks/results/stability/; the seeds of a candidate at a rate fill one bank. The test split is never read.

    python benchmarks/stability.py [--candidates …] [--rates …] [--seeds N] [--threads N] [--data FOLDER] [--work FOLDER] [--table-only]
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from cells import parser_of_banks, train_bank
from harness import RESULTS, cells_lines, data_folder, environment, markdown, save_cell, save_json

CELLS = RESULTS / "stability"
DATA = {"limit_rows": 2000}
RATES = (1e-3, 2e-3)
CANDIDATES: dict[str, dict] = {
    "recipe": {},
    "warm-up 20 %": {"schedule": {"warmup_ratio": 0.2}},
    "beta2 0.98": {"optimizer": {"betas": [0.9, 0.98]}},
    "B at A's rate": {"method": {"lora_plus_ratio": 1}},
    "beta2 0.95": {"optimizer": {"betas": [0.9, 0.95]}},
    "norm clipped at 0.3": {"training": {"max_grad_norm": 0.3}},
    "norm clipped at 0.1": {"training": {"max_grad_norm": 0.1}},
    "head at 3e-3": {"optimizer": {"head_learning_rate": 3e-3}},
    "mean pooling": {"head": {"kind": "linear", "pooling": "mean"}},
    "first token, no pooler": {"head": {"kind": "linear", "pooling": "cls"}},
    "rank 7": {"method": {"rank": 7, "alpha": 14, "targets": ["all-linear"]}},
    "rank 6": {"method": {"rank": 6, "alpha": 12, "targets": ["all-linear"]}},
    "query and value": {"method": {"rank": 34, "alpha": 68, "targets": ["query", "value"]}},
    "attention": {"method": {"rank": 17, "alpha": 34, "targets": ["attention"]}},
    "feed-forward": {"method": {"rank": 13, "alpha": 26, "targets": ["ffn"]}},
}
FAR_BELOW = 0.05


def cell_path(candidate: str, rate: float, seed: int) -> Path:
    """Where a cell is kept."""
    kept = candidate.replace(" %", "").replace("'", "").replace(" ", "-")
    return CELLS / f"{kept}_{rate:g}_{seed}.json"


def run_bank(arguments: argparse.Namespace, candidate: str, rate: float, seeds: list[int]) -> None:
    """Train the seeds that are missing side by side and keep their validation scores; 0 where training diverged."""
    from lorabel.artifacts.records import read_record

    asked = CANDIDATES[candidate]
    data = {"source": str(data_folder(arguments.data) / "sst2_sentences"), **DATA}
    settings = {**asked, "optimizer": {"learning_rate": rate, **asked.get("optimizer", {})}}
    settings["training"] = {"threads": arguments.threads, "evaluate_every_steps": 1_000_000, **asked.get("training", {})}
    work = Path(arguments.work) / cell_path(candidate, rate, seeds[0]).stem
    for seed, (member, run) in zip(seeds, train_bank(work, data, settings, [{"training.seed": seed} for seed in seeds]), strict=True):
        found = {"accuracy": member.accuracy or 0.0, "failure": member.reason, "bank": len(seeds)}
        if member.has_scores:
            record = read_record(run.record)
            found |= {"precision": record.plan["precision"], "versions": record.versions}
        save_cell(cell_path(candidate, rate, seed), found)
        print(f"{candidate}, {rate:g}, seed {seed}: {100 * found['accuracy']:.2f} %", flush=True)
    shutil.rmtree(work)


def write_table() -> None:
    """One row per candidate and rate."""
    rows, results = [], {}
    for rate in RATES:
        cells = {
            name: [json.loads(path.read_text())["accuracy"] for path in sorted(CELLS.glob(cell_path(name, rate, 0).name[:-6] + "*.json"))]
            for name in CANDIDATES
        }
        every = [value for found in cells.values() for value in found]
        for name, found in cells.items():
            if found:
                broken = int(np.sum(np.array(found) < np.median(every) - FAR_BELOW))
                results[f"{name}, {rate:g}"] = {
                    "seeds": len(found),
                    "broken": broken,
                    "median": float(np.median(found)),
                    "worst": min(found),
                    "best": max(found),
                }
                rows.append([f"{rate:g}", name, str(len(found)), str(broken), *(f"{100 * value:.2f}" for value in (np.median(found), min(found), max(found)))])
    env = environment(1)
    text = "# How often the default recipe breaks\n\nLoRA on 2,000 rows of SST-2, embedded encoder, validation accuracy in percent. "
    text += f"Broken: more than {100 * FAR_BELOW:.0f} points below the median of all runs at the rate.\n\n"
    text += markdown(["rate", "candidate", "seeds", "broken", "median", "worst", "best"], rows)
    (RESULTS / "stability.md").write_text(text + "\n" + cells_lines(env, CELLS))
    save_json(RESULTS / "stability.json", {"environment": env, "candidates": results})


def main() -> None:
    """Run what is missing, then write the table."""
    parser = parser_of_banks(__doc__, "stability")
    parser.add_argument("--candidates", nargs="*", default=list(CANDIDATES))
    parser.add_argument("--rates", nargs="*", type=float, default=list(RATES))
    parser.add_argument("--seeds", type=int, default=6)
    arguments = parser.parse_args()
    for rate in [] if arguments.table_only else arguments.rates:
        for candidate in arguments.candidates:
            missing = [seed for seed in range(arguments.seeds) if not cell_path(candidate, rate, seed).exists()]
            if missing:
                run_bank(arguments, candidate, rate, missing)
    write_table()


if __name__ == "__main__":
    main()
