"""Training on one GPU against the usual stack: one adapter (P6), a bank of sixteen (P5), the paper's amount of work (P7); what precisions and accumulation cost.

RoBERTa-base's shape with random weights (speed does not depend on them), the embedded encoder's tokenizer, AG News rows: LoRA r = 8 on every linear layer, as our default
recipe, 32 rows a step, bf16. The usual stack trains the same targets in three forms: (a) its defaults, (b) dropout of encoder and attention 0, as ours, (c) as (b) with
its grouping by length. Its part of P5 is one run times sixteen, and of P7 its rate times the work, because its steps do not differ; ours are made in full. Rows beyond those in
the data set come up again, so that P7 has 120,000. Last, sixteen members of the embedded encoder on AG News, with the accuracy of each.

    python benchmarks/gpu_train.py [--encoder FOLDER] [--data FOLDER]     # about 5 minutes on one H100; FOLDER of the embedded encoder, where its package is not installed
    python benchmarks/gpu_train.py --smoke                                 # the same on a CPU with few rows: does it run at all
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from harness import RESULTS, data_folder, environment, environment_lines, in_a_process, markdown, save_json
from roberta_speed import make_encoder
from train_speed import measure

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
GRID = {"optimizer.learning_rate": [2e-4, 5e-4, 1e-3, 2e-3], "optimizer.weight_decay": [0.0, 0.01], "training.seed": [0, 1]}
ALONE = {"training.seed": [0]}
PEERS = {"a": {"dropout": True, "group": False}, "b": {"dropout": False, "group": False}, "c": {"dropout": False, "group": True}}
WORK = 120_000 * 4
WARMUP = 10


def main() -> None:
    """Measure everything in turn and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--data")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    few, many, steps = (96, 128, 4) if arguments.smoke else (9_600, 120_000, 150)
    from lorabel.families import LINEAR_SITES

    with tempfile.TemporaryDirectory() as scratch:
        source = data_folder(arguments.data) / "ag_news"
        folders = {rows: make_rows(source, Path(scratch) / str(rows), rows) for rows in (few, many)}
        encoder = make_encoder(Path(scratch) / "random", arguments.encoder, **(TINY if arguments.smoke else {}))
        lora = {"rank": 8, "alpha": 16, "targets": list(LINEAR_SITES), "dropout": 0.0, "learning_rate": 1e-3}
        peer = {
            "who": "peer",
            "precision": "bf16",
            "device": "cpu" if arguments.smoke else "cuda",
            "threads": 8,
            "warmup_steps": 2 if arguments.smoke else WARMUP,
            "lora": lora,
            "rows_per_step": 32,
            "scratch": scratch,
            "pad_to": None,
            "encoder": str(encoder),
            "data": str(make_rows(source, Path(scratch) / "peer", 32 * (steps + WARMUP))),
        }
        peers: dict[str, list[dict]] = {name: [] for name in PEERS}
        for _ in range(arguments.repetitions):
            for name, options in PEERS.items():
                peers[name].append(measure(f"peer ({name})", {**peer, **options}))
        cells = our_cells(arguments, scratch, str(encoder), str(folders[few]), str(folders[many]), str(source))
        ours = in_a_process("ours", [str(Path(__file__).with_name("gpu_worker.py")), json.dumps(cells)])
    write(arguments, peers, ours)


def make_rows(source: Path, folder: Path, rows: int) -> Path:
    """Rows of a seeded shuffle of the training split, again from the start where it has too few, as a folder both sides read."""
    import numpy as np
    import pyarrow.parquet as parquet

    folder.mkdir()
    table = parquet.read_table(source / "train.parquet")
    parquet.write_table(table.take(np.resize(np.random.default_rng(0).permutation(len(table)), rows)), folder / "train.parquet")
    for split in ("validation", "test"):
        parquet.write_table(parquet.read_table(source / f"{split}.parquet").slice(0, 40), folder / f"{split}.parquet")
    return folder


def our_cells(arguments: argparse.Namespace, scratch: str, encoder: str, few: str, many: str, real: str) -> dict[str, dict]:
    """What ours runs: settings, grid, folder, and the share of the steps that the rate leaves out at the start."""
    device = "cpu" if arguments.smoke else "cuda"

    def cell(name: str, data: str, grid: dict, skip: float = 0.5, *, embedded: bool = False, recipe: str = "default", **training: object) -> dict:
        own = {} if recipe == "paper" else {"precision": "bf16", "batch_size": 32}
        settings = {
            "recipe": recipe,
            "data": {"source": data, "validation_rows": 2000 if embedded else 40},
            "encoder": {"name": arguments.encoder if embedded else encoder},
            "training": {"num_epochs": 1, "device": device, "evaluate_every_steps": 1_000_000, **own, **training},
            "budget": "100%",
        }
        return {"settings": settings, "grid": grid, "out": f"{scratch}/out-{name}", "skip": skip, "rows": 32}

    short = {"num_epochs": 4}
    cells = {
        "alone": cell("alone", few, ALONE, **short),
        "bank": cell("bank", few, GRID, 0.3),
        "fp16": cell("fp16", few, ALONE, **short, precision="fp16"),
        "fp32": cell("fp32", few, ALONE, 0.2, precision="fp32"),
        "accumulated": cell("accumulated", few, ALONE, **short, batch_size=16, gradient_accumulation_steps=2),
        "paper": cell("paper", few, ALONE, 0.2, recipe="paper"),
        "long": cell("long", many, ALONE, 0.25, num_epochs=4),
        "real": cell("real", real, GRID, 0.3, embedded=True),
    }
    if arguments.smoke:
        for name in ("fp16", "real"):
            del cells[name]
    return cells


def write(arguments: argparse.Namespace, peers: dict[str, list[dict]], ours: dict[str, dict]) -> None:
    """JSON and Markdown results; a smoke run writes none."""
    rates = {name: statistics.median(one["samples_per_second"] for one in found) for name, found in peers.items()}
    rows = []
    for label, name, asked in (("P6 one adapter", "alone", "4× / 8×"), ("P5 sixteen adapters in a bank", "bank", "10× / 20×")):
        rate = ours[name]["samples_per_second"]
        ratios = [f"{rate / rates[peer]:.1f}×" for peer in PEERS]
        rows.append([label, f"{rate:,.0f}", *(f"{rates[peer]:,.0f}" for peer in PEERS), *ratios, asked])
    long = ours["long"]
    seconds = [WORK / rates[peer] for peer in PEERS]
    rows.append(
        [
            "P7 120,000 rows × 4 epochs, seconds",
            f"{long['training_seconds']:.0f} ({long['whole_seconds']:.0f} with reading, tokenising, evaluating and saving)",
            *(f"{one:.0f}" for one in seconds),
            *(f"{one / long['training_seconds']:.1f}×" for one in seconds),
            "120 s / 60 s",
        ]
    )
    text = "# Training on one GPU\n\nRoBERTa-base's shape, LoRA r = 8 on every linear layer, 32 rows a step, bf16, AG News rows. Samples a second; floor and goal in the last column.\n\n"
    text += markdown(["work", "ours", *(f"usual stack ({peer})" for peer in PEERS), *(f"ratio ({peer})" for peer in PEERS), "asked for"], rows)
    text += "\nThe usual stack: (a) its defaults, (b) dropout of encoder and attention 0 as ours, (c) as (b) with its grouping by length. "
    text += (
        "Its repetitions: "
        + "; ".join(f"({name}) " + ", ".join(f"{one['samples_per_second']:,.0f}" for one in found) for name, found in peers.items())
        + ".\n\n"
    )
    columns = {
        "alone": "bf16, batch 32",
        "fp16": "fp16, batch 32",
        "fp32": "fp32, batch 32",
        "accumulated": "bf16, 2 × 16 accumulated",
        "paper": "`--recipe paper`: fp16, 2 × 16, all dropouts, augmented texts",
        "bank": "bank of 16, bf16",
    }
    text += "What the paper's techniques cost here, one adapter on the same rows:\n\n"
    shown = [(label, ours[name]) for name, label in columns.items() if name in ours]
    text += markdown(
        ["setting", "samples/s", "ms a step", "peak memory"],
        [
            [label, f"{one['samples_per_second']:,.0f}", f"{1e3 * one['seconds_per_step']:.1f}", f"{one['peak_memory_bytes'] / 1e9:.2f} GB"]
            for label, one in shown
        ],
    )
    text += (
        "\nPeak memory of the usual stack: " + ", ".join(f"({name}) {found[0]['peak_memory_bytes'] / 1e9:.2f} GB" for name, found in peers.items()) + ".\n\n"
    )
    if "real" in ours:
        real = ours["real"]
        accuracies = ", ".join("-" if value is None else f"{100 * value:.1f}" for value in real["accuracies"])
        text += f"A bank of 16 MiniLM members (4 rates × 2 decays × 2 seeds) on the 54,620 rows of AG News here, one epoch, {real['training_seconds']:.0f} s together; "
        text += f"validation accuracy of each: {accuracies}.\n\n"
    print(text)
    if arguments.smoke:
        return
    import torch

    env = {**environment(8), "gpu": torch.cuda.get_device_name()}
    save_json(RESULTS / "gpu_train.json", {"environment": env, "peers": peers, "ours": ours})
    (RESULTS / "gpu_train.md").write_text(text + f"{env['gpu']}\n\n" + environment_lines(env))


if __name__ == "__main__":
    main()
