"""What the head should read on an encoder that was trained with mean pooling: the first token through the family's own head, or the mean of all tokens through a linear layer.

LoRA's default recipe on the embedded encoder, from about a hundred training rows per class to all there are, judged on validation splits; the test splits are never read. The
seeds of a table and pooling fill one bank; each (table, pooling, seed) is a cell, kept in benchmarks/results/pooling/; a stopped run goes on from its checkpoint.

    python benchmarks/pooling.py [--tables …] [--seeds 3] [--threads N] [--data FOLDER] [--work FOLDER] [--table-only]
"""

import json
from pathlib import Path

import numpy as np

from cells import parser_of_banks, tested_seeds
from harness import RESULTS, cells_lines, data_folder, environment, markdown, save_cell, save_json
from lorabel.config import DataConfig
from quality import paired

# Name -> data set, training rows (None: all).
TABLES = {
    "banking77-all": ("banking77", None),
    "trec6-1200": ("trec6", 1200),
    "sst2_sentences-600": ("sst2_sentences", 600),
    "trec6-2500": ("trec6", 2500),
    "sst2_sentences-2000": ("sst2_sentences", 2000),
    "ag_news-2000": ("ag_news", 2000),
    "trec6-all": ("trec6", None),
    "sst2_sentences-all": ("sst2_sentences", None),
}
POOLINGS = {"cls": {"pooling": "cls"}, "mean": {"kind": "linear", "pooling": "mean"}}
CELLS = RESULTS / "pooling"


def data_of(table: str, folder: Path) -> dict:
    """Where a table lies and how many rows it has."""
    name, rows = TABLES[table]
    return {"source": str(folder / name), **({"limit_rows": rows} if rows else {})}


def cell_path(table: str, pooling: str, seed: int) -> Path:
    """Where a cell is kept."""
    return CELLS / f"{table}-{pooling}-{seed}.json"


def run_bank(work: Path, folder: Path, table: str, pooling: str, seeds: list[int], threads: int | None) -> None:
    """Train the seeds that are missing of one pooling on one table."""
    from lorabel.data.load import load_data

    data, settings = data_of(table, folder), {"head": POOLINGS[pooling], "training": {"threads": threads}}
    loaded = load_data(DataConfig(**data))
    sizes = {"rows": len(loaded.splits["train"]), "classes": len(loaded.labels)}
    for seed, cell in zip(seeds, tested_seeds(work, data, settings, seeds, "validation"), strict=True):
        save_cell(cell_path(table, pooling, seed), {**sizes, **cell})


def write_table() -> None:
    """Validation accuracy of both, and their difference on the same seeds and rows."""
    rows, means = [], {}
    for table in TABLES:
        both = [[json.loads(path.read_text()) for path in sorted(CELLS.glob(f"{table}-{pooling}-?.json"))] for pooling in POOLINGS]
        shared = min(map(len, both))
        if not shared:
            continue
        cls, mean = (cells[:shared] for cells in both)
        difference, low, high, p = paired(mean, cls)
        means[table] = {pooling: float(np.mean([cell["accuracy"] for cell in cells])) for pooling, cells in (("cls", cls), ("mean", mean))}
        worst = [min(cell["accuracy"] for cell in cells) for cells in (cls, mean)]
        facts = [TABLES[table][0], f"{cls[0]['rows']:,}", f"{cls[0]['rows'] / cls[0]['classes']:,.0f}", str(shared)]
        scores = [f"{100 * value:.2f}" for value in (*means[table].values(), *worst)]
        rows.append([*facts, *scores, f"{100 * difference:+.2f}", f"{100 * low:+.2f} … {100 * high:+.2f}", f"{p:.3f}"])
    text = (
        "# The first token or the mean of all\n\nLoRA, default recipe, embedded encoder, which was trained with mean pooling; validation accuracy in percent. "
    )
    text += "*cls*: the family's own head, which reads the first token through the checkpoint's pooler; *mean*: a linear layer on the mean of all tokens. "
    text += "Difference: mean minus cls, the same seeds and rows (paired bootstrap over rows and seeds, points, 95 % interval, p without correction).\n\n"
    text += markdown(["data", "rows", "per class", "seeds", "cls", "mean", "worst cls", "worst mean", "difference", "95 % interval", "p"], rows)
    missing = [table for table in TABLES if table not in means]
    text += f"\nNot run yet: {', '.join(missing) or 'nothing'}.\n"
    env = environment(1)
    (RESULTS / "pooling.md").write_text(text + "\n" + cells_lines(env, CELLS))
    save_json(RESULTS / "pooling.json", {"environment": env, "accuracy": means})


def main() -> None:
    """Run what is missing, then write the table."""
    parser = parser_of_banks(__doc__, "pooling")
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for table in [] if arguments.table_only else arguments.tables:
        for pooling in POOLINGS:
            missing = [seed for seed in range(arguments.seeds) if not cell_path(table, pooling, seed).exists()]
            if missing:
                work = Path(arguments.work) / f"{table}-{pooling}-{len(missing)}"
                run_bank(work, data_folder(arguments.data), table, pooling, missing, arguments.threads)
                print(
                    f"{table} {pooling}: {' '.join(format(json.loads(cell_path(table, pooling, seed).read_text())['accuracy'], '.4f') for seed in missing)}",
                    flush=True,
                )
    write_table()


if __name__ == "__main__":
    main()
