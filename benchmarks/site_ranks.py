"""Whether a rank for each site pays: LoRA on all linear layers of the embedded encoder, as many parameters spread evenly and unevenly, on validation splits of four data sets.

The rank is 3 everywhere, or rises or falls with the layer, or is higher in attention or in the feed-forward layers; the number of parameters is the same or a little less. The
scaling is the same at every site. The test splits are never read. The choices and seeds of a data set fill one bank; each (choice, data set, seed) is a cell, kept in
benchmarks/results/site_ranks/; a stopped run goes on from its checkpoint.

    python benchmarks/site_ranks.py [--sets …] [--seeds 3] [--threads N] [--data FOLDER] [--work FOLDER] [--table-only]
"""

import json
import shutil
from pathlib import Path

import numpy as np

from budget_solver import HEADS, SETS
from cells import facts_of, paired_accuracy, parser_of_banks, score_adapter, train_bank
from harness import RESULTS, cells_lines, data_folder, environment, markdown, save_cell, save_json
from lorabel.config import DataConfig

RANK = 3
ATTENTION, FEED_FORWARD = ("query", "key", "value", "attention_output"), ("ffn_up", "ffn_down")
# Ranks in attention and in the feed-forward layers, by layer from the bottom.
CHOICES = {
    "the same everywhere": ([3] * 6, [3] * 6),
    "rising": ([1, 2, 3, 3, 4, 5], [1, 2, 3, 3, 4, 5]),
    "upper half": ([0, 0, 2, 4, 6, 6], [0, 0, 2, 4, 6, 6]),
    "falling": ([5, 4, 3, 3, 2, 1], [5, 4, 3, 3, 2, 1]),
    "attention": ([4] * 6, [2] * 6),
    "feed-forward": ([1] * 6, [4] * 6),
}
EVEN = next(iter(CHOICES))
CELLS = RESULTS / "site_ranks"


def method_of(choice: str) -> dict:
    """The recipe's method with a choice's ranks."""
    options = {"name": "lora", "rank": RANK, "alpha": 2 * RANK, "targets": ["all-linear"], "lora_plus_ratio": 2}
    groups = zip(CHOICES[choice], (ATTENTION, FEED_FORWARD), strict=True)
    ranks = {f"layers.{layer}.{site}": rank for of_layers, sites in groups for layer, rank in enumerate(of_layers) for site in sites if rank != RANK}
    return {**options, "ranks": ranks} if ranks else options


def cell_path(choice: str, name: str, seed: int) -> Path:
    """Where a cell is kept."""
    return CELLS / f"{choice.replace(' ', '-')}-{name}-{seed}.json"


def run_bank(work: Path, folder: Path, name: str, threads: int | None, missing: list[tuple[str, int]]) -> None:
    """Train what is missing on one data set, side by side."""
    from lorabel.artifacts.records import read_record
    from lorabel.data.load import load_data

    data, settings = {"source": str(folder / name), **SETS[name]}, {"head": HEADS[name], "training": {"threads": threads}}
    members = [{"method": method_of(choice), "training.seed": seed} for choice, seed in missing]
    found = train_bank(work, data, settings, members)
    loaded = load_data(DataConfig(**data))
    for (choice, seed), (member, run) in zip(missing, found, strict=True):
        assert member.has_scores, member.reason
        save_cell(cell_path(choice, name, seed), {**facts_of(read_record(run.record)), **score_adapter(run.adapter, loaded, "validation")})
    shutil.rmtree(work)


def difference(choice: str, name: str, cells: dict) -> str:
    """Minus the even spread, the same seeds and rows: points, 95 % interval."""
    found = paired_accuracy(cells[choice, name], cells[EVEN, name])
    return f"{100 * found.mean:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})"


def write_table() -> None:
    """Mean validation accuracy of each choice, and its difference from the even spread."""
    cells = {
        (choice, name): [json.loads(path.read_text()) for path in sorted(CELLS.glob(cell_path(choice, name, 0).name[:-6] + "?.json"))]
        for choice in CHOICES
        for name in SETS
    }
    names = [name for name in SETS if all(cells[choice, name] for choice in CHOICES)]
    if not names:
        print("No data set is complete yet: no table was written.")
        return
    text = f"# A rank for each site\n\nLoRA, default recipe, embedded encoder, all linear layers, as many parameters as rank {RANK} everywhere has, or a little less; validation accuracy in "
    text += "percent, mean over seeds. Ranks of the six layers in attention / feed-forward.\n\n"
    means = {choice: {name: float(np.mean([cell["accuracy"] for cell in cells[choice, name]])) for name in names} for choice in CHOICES}
    rows = []
    for choice, (attention, feed_forward) in CHOICES.items():
        ranks = " ".join(map(str, attention)) + ("" if attention == feed_forward else f" / {' '.join(map(str, feed_forward))}")
        scores = [f"{100 * value:.2f}" for value in (*means[choice].values(), np.mean(list(means[choice].values())))]
        rows.append([choice, ranks, f"{cells[choice, names[0]][0]['trainable']:,}", *scores])
    text += markdown(["rank", "by layer", f"trainable ({names[0]})", *names, "mean"], rows)
    text += f"\n## Minus {EVEN} (paired bootstrap over rows and seeds, points, 95 % interval)\n\n"
    text += markdown(["rank", *names], [[choice, *(difference(choice, name, cells) for name in names)] for choice in CHOICES if choice != EVEN])
    seeds = {name: sorted({len(cells[choice, name]) for choice in CHOICES}) for name in names}
    counts = ", ".join(f"{name} {'–'.join(map(str, found))}" for name, found in seeds.items())
    text += f"\nSeeds: {counts}.\n"
    missing = [name for name in SETS if name not in names]
    if missing:
        text += f"\nNot run yet: {', '.join(missing)}.\n"
    env = environment(1)
    (RESULTS / "site_ranks.md").write_text(text + "\n" + cells_lines(env, CELLS))
    save_json(RESULTS / "site_ranks.json", {"environment": env, "accuracy": means})


def main() -> None:
    """Run what is missing, then write the table."""
    parser = parser_of_banks(__doc__, "site-ranks")
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for name in [] if arguments.table_only else arguments.sets:
        missing = [(choice, seed) for choice in CHOICES for seed in range(arguments.seeds) if not cell_path(choice, name, seed).exists()]
        if missing:
            run_bank(Path(arguments.work) / f"{name}-{len(missing)}", data_folder(arguments.data), name, arguments.threads, missing)
            print(f"{name}: {len(missing)} cells", flush=True)
    write_table()


if __name__ == "__main__":
    main()
