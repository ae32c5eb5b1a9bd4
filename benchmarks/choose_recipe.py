"""Choose the default recipe on validation splits: AG News (3,000 training rows), TREC-6 and SST-2 (3,500 training rows).

The test splits are never read. Each (candidate, data set, seed) is a cell that is run once and kept in benchmarks/results/recipe/.

    python benchmarks/choose_recipe.py [--candidates NAME …] [--seeds 1] [--data FOLDER]
"""

import argparse
import tempfile
from pathlib import Path

import yaml

from harness import RESULTS, cells_lines, data_folder, environment, markdown, once, save_json

FOLDERS = {False: "recipe", True: "recipe_few"}
SETS = {
    "ag_news": {"limit_rows": 3000},
    "trec6": {"validation_rows": 1000},
    "sst2_sentences": {"limit_rows": 3500},
}
# The same sets with 100 training rows per class, for the number of epochs and the head where rows are few.
FEW = {"ag_news": {"limit_rows": 400}, "trec6": {"limit_rows": 600, "validation_rows": 1000}, "sst2_sentences": {"limit_rows": 200}}


def run_cell(folder: Path, name: str, settings: dict, seed: int, threads: int | None, few: bool) -> dict:
    """Train one candidate on one data set; returns its validation scores and speed."""
    from lorabel.config import load_config
    from lorabel.workflows.train import run_train

    data = {"data": {"source": str(folder / name), **(FEW if few else SETS)[name]}, "training": {"seed": seed, "threads": threads}}
    if few:
        # Scored once, at the end: a validation split many times the training rows would otherwise take most of the time.
        data["training"]["evaluate_every_steps"] = 1_000_000
    # What a candidate does not name is what all were run with, whatever the recipe has become.
    base = {"head": {"kind": "native"}, "training": {"num_epochs": 6 if few else 3}}
    with tempfile.TemporaryDirectory() as out:
        record = run_train(load_config(base, settings, data), Path(out) / "run").record
    print(f"{name}: {100 * record.metrics.validation.accuracy:.2f} %, {record.training.samples_per_second:.0f} samples/s", flush=True)
    return {
        "accuracy": record.metrics.validation.accuracy,
        "macro_f1": record.metrics.validation.macro_f1,
        "trainable": record.parameters.trainable,
        "samples_per_second": record.training.samples_per_second,
        "settings": settings,
        "versions": record.versions,
    }


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", nargs="*")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--table-only", action="store_true", help="run nothing, write the table of what is there")
    parser.add_argument("--few", action="store_true", help="100 training rows per class")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of a cell")
    parser.add_argument("--data")
    arguments = parser.parse_args()
    candidates = yaml.safe_load((Path(__file__).parent / "recipe_candidates.yaml").read_text())
    folder = data_folder(arguments.data)
    for candidate in [] if arguments.table_only else arguments.candidates or candidates:
        print(candidate, flush=True)
        for seed in range(arguments.seeds):
            for name in SETS:
                path = RESULTS / FOLDERS[arguments.few] / f"{candidate}-{name}-{seed}.json"
                once(path, lambda c=candidate, n=name, s=seed: run_cell(folder, n, candidates[c], s, arguments.threads, arguments.few))
    env = environment(arguments.threads or 2)
    text = "# How the default recipe was chosen\n\nValidation accuracy, embedded encoder, native head, 3 epochs (6 with 100 rows per class) where the name says nothing else; "
    text += "the test splits were not read.\n"
    results = {"environment": env}
    for few, title in ((False, "3,000 rows of AG News, all of TREC-6, 3,500 of SST-2"), (True, "100 training rows per class")):
        ranking = rank(list(candidates), few)
        results[FOLDERS[few]] = [{"name": n, "mean": m, "sets": s, "trainable": t, "seeds": k} for m, n, s, t, k in ranking]
        table = [[n, f"{t:,}", str(k), *(f"{100 * s[name]:.2f}" for name in SETS), f"{100 * m:.2f}"] for m, n, s, t, k in ranking]
        text += f"\n## {title}\n\n" + markdown(["candidate", "trainable (AG News)", "seeds", *SETS, "mean validation accuracy"], table)
    save_json(RESULTS / "recipe.json", results)
    (RESULTS / "recipe.md").write_text(text + "\n" + cells_lines(env, RESULTS / "recipe", RESULTS / "recipe_few"))


def rank(candidates: list[str], few: bool) -> list[tuple[float, str, dict[str, float], int, int]]:
    """Mean validation accuracy per candidate over the sets and seeds that are complete, best first."""
    rows = []
    for candidate in candidates:
        cells = {name: sorted((RESULTS / FOLDERS[few]).glob(f"{candidate}-{name}-?.json")) for name in SETS}
        if not all(cells.values()):
            continue
        loaded = {name: [yaml.safe_load(path.read_text()) for path in paths] for name, paths in cells.items()}
        means = {name: sum(cell["accuracy"] for cell in found) / len(found) for name, found in loaded.items()}
        first = next(iter(loaded.values()))[0]
        rows.append((sum(means.values()) / len(means), candidate, means, first["trainable"], len(next(iter(loaded.values())))))
    return sorted(rows, reverse=True)


if __name__ == "__main__":
    main()
