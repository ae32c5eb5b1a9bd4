"""Ten times more rows (P12): time and peak memory of reading, tokenising and training one epoch.

Rows are drawn with AG News lengths from its training split; labels and texts are real, repeated with a running number so that all differ. A narrow random encoder keeps
the training part short, so that whatever grows with the table would show.

    python benchmarks/scaling.py [--rows 20000] [--data FOLDER]
"""

import argparse
import json
import resource
import tempfile
import threading
import time
from pathlib import Path

from harness import RESULTS, data_folder, environment, environment_lines, in_a_process, markdown, save_json


def main() -> None:
    """Measure N and 10 N rows, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--data")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        run_cell(*arguments.cell)
        return
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        encoder = make_encoder(Path(scratch) / "encoder")
        for factor in (1, 10):
            rows = arguments.rows * factor
            table = make_table(data_folder(arguments.data) / "ag_news", Path(scratch) / f"{factor}", rows)
            found[rows] = in_a_process(f"{rows} rows", [__file__, "--cell", str(table), str(encoder), scratch])
            print(rows, found[rows], flush=True)
    small, large = found.values()
    time_ratio, memory_ratio, own_ratio = (large[name] / small[name] for name in ("seconds", "peak_memory_bytes", "own_memory_bytes"))
    env = environment(2)
    save_json(RESULTS / "scaling.json", {"environment": env, "cells": found, "time_ratio": time_ratio, "memory_ratio": memory_ratio, "own_ratio": own_ratio})
    rows = [
        [f"{n:,}", f"{cell['seconds']:.1f} s", f"{cell['peak_memory_bytes'] / 1e6:,.0f} MB", f"{cell['own_memory_bytes'] / 1e6:,.0f} MB"]
        for n, cell in found.items()
    ]
    verdict = f"Ten times the rows: {time_ratio:.2f}× the time (floor 10.5×, goal 10×), "
    verdict += f"{100 * (memory_ratio - 1):+.0f} % peak memory, {100 * (own_ratio - 1):+.0f} % without mapped files (floor +10 %).\n\n"
    verdict += f"Mapped files are the texts and tokens on disk, whose pages the system takes back when it needs them. Computed in {large['precision']}.\n\n"
    text = (
        "# Ten times more rows\n\n"
        + markdown(["training rows", "read, tokenise, train one epoch", "peak memory", "of it not mapped files"], rows)
        + "\n"
        + verdict
    )
    (RESULTS / "scaling.md").write_text(text + environment_lines(env))
    print(text)


def run_cell(table: str, encoder: str, scratch: str) -> None:
    """Train one epoch on a table with nothing cached; print seconds and peak memory."""
    import os

    os.environ["LORABEL_CACHE"] = tempfile.mkdtemp(dir=scratch)
    from lorabel.config import load_config
    from lorabel.workflows.train import run_train

    settings = {"data": {"source": table}, "encoder": {"name": encoder}, "head": {"kind": "linear"}, "training": {"num_epochs": 1, "batch_size": 64}}
    own, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            facts = Path("/proc/self/status").read_text().splitlines()
            own[0] = max(own[0], next(int(line.split()[1]) * 1024 for line in facts if line.startswith("RssAnon")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    record = run_train(load_config(settings), Path(tempfile.mkdtemp(dir=scratch)) / "run").record
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_memory_bytes": peak, "own_memory_bytes": own[0], "precision": record.plan["precision"]}))


def make_table(source: Path, folder: Path, rows: int) -> Path:
    """A training split of `rows` distinct texts, and small validation and test splits."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder.mkdir()
    table = parquet.read_table(source / "train.parquet")
    chosen = table.take(np.random.default_rng(0).integers(0, len(table), size=rows))
    texts = [f"{text} {index}" for index, text in enumerate(chosen["text"].to_pylist())]
    parquet.write_table(pa.table({"text": texts, "label": chosen["label"]}), folder / "train.parquet", row_group_size=50_000)
    for split in ("validation", "test"):
        parquet.write_table(parquet.read_table(source / f"{split}.parquet").slice(0, 500), folder / f"{split}.parquet")
    return folder


def make_encoder(folder: Path) -> Path:
    """A narrow random encoder with the embedded tokenizer."""
    import torch
    import transformers

    from lorabel.config import EncoderConfig
    from lorabel.models.checkpoint import resolve_encoder

    torch.manual_seed(0)
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((resolve_encoder(EncoderConfig(name="minilm")).folder / "tokenizer.json").read_bytes())
    return folder


if __name__ == "__main__":
    main()
