"""Planted label errors on AG News rows: how many of them `audit --label-errors` puts first.

A share of the training labels is changed to another class, seeded; the audit never learns which. Asked for: at least 70 % of 2 % planted flips among the first 4 % of
the rows.

    python benchmarks/label_errors.py [--rows 6000] [--share 0.02] [--folds 5] [--threads 2] [--data FOLDER]     # about 12 minutes on two cores
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from harness import RESULTS, data_folder, environment, environment_lines, markdown, save_json


def main() -> None:
    """Plant, audit, count, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data")
    arguments = parser.parse_args()
    from lorabel.workflows.label_errors import run_label_errors

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "planted"
        flipped = plant(data_folder(arguments.data) / "ag_news", folder, arguments.rows, arguments.share)
        # No test split is carved out: rows are counted in the training split as it was written.
        settings = {"data": {"source": str(folder), "validation_rows": 500, "test_rows": 0}, "training": {"threads": arguments.threads}}
        found = run_label_errors([settings], Path(scratch) / "audit", folds=arguments.folds)
    order = [row.row - 1 for row in found.ranked]
    shares = (0.02, 0.04, 0.10)
    caught = {share: len(flipped & set(order[: round(share * arguments.rows)])) / len(flipped) for share in shares}
    suspects = {row.row - 1 for row in found.ranked if row.is_suspect}
    facts = {
        "rows": arguments.rows,
        "planted": len(flipped),
        "caught": {f"{share:g}": value for share, value in caught.items()},
        "suspects": len(suspects),
        "suspects_planted": len(flipped & suspects),
        "out_of_fold_accuracy": found.out_of_fold.accuracy,
    }
    env = environment(arguments.threads)
    save_json(RESULTS / "label_errors.json", {"environment": env, **facts})
    verdict = "reached" if caught[0.04] >= 0.7 else "not reached"
    text = f"# Planted label errors\n\n{arguments.rows:,} AG News training rows, {len(flipped)} labels changed to another class; default recipe, {arguments.folds} folds.\n\n"
    text += markdown(["first … of the rows", "planted errors among them"], [[f"{100 * share:g} %", f"{100 * value:.1f} %"] for share, value in caught.items()])
    text += f"\nAsked for: 70 % in the first 4 %: {verdict}. {len(suspects)} rows are called suspect, {len(flipped & suspects)} of them planted; "
    text += "AG News has errors of its own.\n\n"
    (RESULTS / "label_errors.md").write_text(text + environment_lines(env))
    print(text)


def plant(source: Path, folder: Path, rows: int, share: float) -> set[int]:
    """A training split with changed labels, and the given validation split; returns the changed rows, from 0."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder.mkdir()
    random = np.random.default_rng(0)
    table = parquet.read_table(source / "train.parquet")
    table = table.take(random.permutation(len(table))[:rows])
    labels = table["label"].to_pylist()
    names = sorted(set(labels))
    flipped = random.choice(rows, round(share * rows), replace=False)
    for row in flipped:
        labels[row] = random.choice([name for name in names if name != labels[row]])
    parquet.write_table(pa.table({"text": table["text"], "label": labels}), folder / "train.parquet")
    parquet.write_table(parquet.read_table(source / "validation.parquet"), folder / "validation.parquet")
    return {int(row) for row in flipped}


if __name__ == "__main__":
    main()
