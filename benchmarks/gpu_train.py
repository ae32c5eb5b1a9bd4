"""Training on one GPU against the usual stack: one adapter (P6), a bank of sixteen (P5), the paper's amount of work (P7); what precisions and accumulation cost.

RoBERTa-base's shape with random weights (speed does not depend on them), the embedded encoder's tokenizer, AG News rows: LoRA r = 8 on every linear layer, as our default
recipe, 32 rows a step, bf16. The usual stack trains the same targets in three forms: (a) its defaults, (b) dropout of encoder and attention 0, as ours, (c) as (b) with
its grouping by length. Its part of P5 is one run times sixteen, and of P7 its rate times the work, because its steps do not differ; ours are made in full. Rows beyond those in
the data set come up again, so that P7 has 120,000. Last, sixteen members of the embedded encoder on AG News, with the accuracy of each.

Cells are kept in benchmarks/results/gpu_train/; a stopped run goes on.

    python benchmarks/gpu_train.py [--encoder FOLDER] [--data FOLDER]     # about 6 minutes on one H100
    # FOLDER of the embedded encoder, or $LORABEL_ENCODER, where its package is not installed
    python benchmarks/gpu_train.py --table-only                            # the table of what is there
    python benchmarks/gpu_train.py --smoke                                 # the same on a CPU with few rows: does it run at all
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import RESULTS, data_folder, environment, environment_lines, markdown, once
from roberta_speed import make_encoder
from train_speed import make_rows, measure

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
GRID = {"optimizer.learning_rate": [2e-4, 5e-4, 1e-3, 2e-3], "optimizer.weight_decay": [0.0, 0.01], "training.seed": [0, 1]}
ALONE = {"training.seed": [0]}
PEERS = {"a": {"dropout": True, "group": False}, "b": {"dropout": False, "group": False}, "c": {"dropout": False, "group": True}}
WORK = 120_000 * 4
WARMUP = 10
CELLS = RESULTS / "gpu_train"
SETTINGS = {
    "alone": "bf16, batch 32",
    "two-sites": "the same, query and value only",
    "fp16": "fp16, batch 32",
    "fp32": "fp32, batch 32",
    "accumulated": "bf16, 2 × 16 accumulated",
    "paper": "`--recipe paper`: fp16, 2 × 16, encoder dropout, augmented texts",
    "bank": "bank of 16, bf16",
    "long": "bf16, batch 32, 120,000 rows",
}


def main() -> None:
    """Measure everything in turn and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default=os.environ.get("LORABEL_ENCODER", "minilm"))
    parser.add_argument("--data")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100, help="of the usual stack")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        cells = Path(scratch) / "cells" if arguments.smoke else CELLS
        cells.mkdir(parents=True, exist_ok=True)
        if not arguments.table_only:
            run(arguments, Path(scratch), cells)
        write(arguments, {path.stem: json.loads(path.read_text()) for path in sorted(cells.glob("*.json"))})


def run(arguments: argparse.Namespace, scratch: Path, cells: Path) -> None:
    """Measure what is not there yet."""
    few, many, steps = (96, 128, 4) if arguments.smoke else (9_600, 120_000, arguments.steps)
    from lorabel.families import LINEAR_SITES

    source = data_folder(arguments.data) / "ag_news"
    folders = {rows: make_rows(source, scratch / str(rows), rows) for rows in (few // 2, few, many)}
    encoder = make_encoder(scratch / "random", arguments.encoder, **(TINY if arguments.smoke else {}))
    once(cells / "environment.json", lambda: {**environment(8), "gpu": gpu_name()})
    job = {
        "who": "peer",
        "precision": "bf16",
        "device": "cpu" if arguments.smoke else "cuda",
        "threads": 8,
        "warmup_steps": 2 if arguments.smoke else WARMUP,
        "lora": {"rank": 8, "alpha": 16, "targets": list(LINEAR_SITES), "dropout": 0.0, "learning_rate": 1e-3},
        "rows_per_step": 32,
        "scratch": str(scratch),
        "pad_to": None,
        "encoder": str(encoder),
        "data": str(make_rows(source, scratch / "peer", 32 * (steps + WARMUP))),
    }
    ours = our_cells(arguments, str(scratch), str(encoder), [str(folder) for folder in folders.values()], str(source))
    for repetition in range(arguments.repetitions):
        for name, options in PEERS.items():
            once(cells / f"peer-{name}-{repetition}.json", lambda name=name, options=options: measure(f"peer ({name})", {**job, **options}))
    subprocess.run([sys.executable, str(Path(__file__).with_name("gpu_worker.py")), json.dumps(ours), str(cells)], check=True)


def gpu_name() -> str:
    """The GPU, or that there is none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def our_cells(arguments: argparse.Namespace, scratch: str, encoder: str, folders: list[str], real: str) -> dict[str, dict]:
    """What ours runs: settings, grid, folder, rows of a step, and the share of the steps that the rate leaves out at the start."""
    device = "cpu" if arguments.smoke else "cuda"
    fewest, few, many = folders

    def cell(
        name: str, data: str, grid: dict, skip: float = 0.5, *, embedded: bool = False, recipe: str = "default", method: dict | None = None, **training: object
    ) -> dict:
        own = {} if recipe == "paper" else {"precision": "bf16", "batch_size": 32}
        settings = {
            "recipe": recipe,
            "data": {"source": data, "validation_rows": 2000 if embedded else 40},
            "encoder": {"name": arguments.encoder if embedded else encoder},
            "training": {"num_epochs": 1, "device": device, "evaluate_every_steps": 1_000_000, **own, **training},
            "budget": "100%",
            **({"method": method} if method else {}),
        }
        return {"settings": settings, "grid": grid, "out": f"{scratch}/out-{name}", "skip": skip, "rows": 32}

    cells = {
        "alone": cell("alone", few, ALONE, num_epochs=4),
        "bank": cell("bank", few, GRID, 0.6),
        "long": cell("long", many, ALONE, 0.25, num_epochs=4),
        "real": cell("real", real, GRID, 0.3, embedded=True),
        "two-sites": cell("two-sites", few, ALONE, num_epochs=4, method={"targets": ["query", "value"]}),
        "fp16": cell("fp16", few, ALONE, num_epochs=4, precision="fp16"),
        "accumulated": cell("accumulated", few, ALONE, num_epochs=4, batch_size=16, gradient_accumulation_steps=2),
        "fp32": cell("fp32", fewest, ALONE, 0.2, precision="fp32"),
        "paper": cell("paper", fewest, ALONE, 0.2, recipe="paper"),
    }
    if arguments.smoke:
        for name in ("fp16", "real"):
            del cells[name]
    return cells


def write(arguments: argparse.Namespace, cells: dict[str, dict]) -> None:
    """JSON and Markdown results; a smoke run writes none."""
    peers = {name: [cells[key] for key in sorted(cells) if key.startswith(f"peer-{name}-")] for name in PEERS}
    rates = {name: statistics.median(one["samples_per_second"] for one in found) for name, found in peers.items()}
    text = "# Training on one GPU\n\nRoBERTa-base's shape, LoRA r = 8 on every linear layer, 32 rows a step, bf16, AG News rows. Samples a second; floor and goal in the last column.\n\n"
    columns = ["work", "ours", *(f"usual stack ({peer})" for peer in PEERS), *(f"ratio ({peer})" for peer in PEERS), "asked for"]
    text += markdown(columns, figures(cells, rates)) + "\n"
    text += "The usual stack: (a) its defaults, (b) dropout of encoder and attention 0 as ours, (c) as (b) with its grouping by length; "
    text += "its repetitions: " + "; ".join(f"({name}) " + ", ".join(f"{one['samples_per_second']:,.0f}" for one in found) for name, found in peers.items())
    text += ". Its part of P5 is one run times sixteen, of P7 its rate times the work.\n\n"
    text += "Its steps took " + ", ".join(f"({name}) {32e3 / rate:.0f} ms" for name, rate in rates.items())
    text += (
        f", timed from the {WARMUP + 1}th to the last of a single short run, ours after the first part of a longer one, when all shapes have been captured. "
    )
    text += "The usual stack launches several thousand kernels a step one by one, which this host does slowly: on a faster one the ratios will be smaller.\n\n"
    text += "What the paper's techniques cost here, one adapter on the same rows:\n\n"
    shown = [(label, cells[name]) for name, label in SETTINGS.items() if name in cells]
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
    if "real" in cells:
        real = cells["real"]
        accuracies = ", ".join("–" if value is None else f"{100 * value:.1f}" for value in real["accuracies"])
        text += f"A bank of 16 MiniLM members (4 rates × 2 decays × 2 seeds) on the 54,620 training rows of AG News here, one epoch: {real['training_seconds']:.0f} s together, "
        text += f"{real['whole_seconds']:.0f} s with everything around it; "
        text += f"{real['samples_per_second']:,.0f} samples/s; validation accuracy of each (%): {accuracies}.\n\n"
    print(text)
    if arguments.smoke:
        return
    env = cells["environment"]
    planned = our_cells(arguments, "", "", ["", "", ""], "")
    text += f"Not run yet: {', '.join(name for name in planned if name not in cells) or 'nothing'}.\n\n"
    (RESULTS / "gpu_train.md").write_text(text + f"{env['gpu']}\n\n" + environment_lines(env))


def figures(cells: dict[str, dict], rates: dict[str, float]) -> list[list[str]]:
    """The rows of P6, P5 and P7."""
    rows = []
    for label, name, asked in (("P6 one adapter", "alone", "4× / 8×"), ("P5 sixteen adapters in a bank", "bank", "10× / 20×")):
        rate = cells[name]["samples_per_second"]
        rows.append([label, f"{rate:,.0f}", *(f"{rates[peer]:,.0f}" for peer in PEERS), *(f"{rate / rates[peer]:.1f}×" for peer in PEERS), asked])
    if "long" in cells:
        long, seconds = cells["long"], [WORK / rates[peer] for peer in PEERS]
        ours = f"{long['training_seconds']:.0f} ({long['whole_seconds']:.0f} with reading, tokenising, evaluating, saving)"
        ratios = [f"{one / long['training_seconds']:.1f}×" for one in seconds]
        rows.append(["P7 120,000 rows × 4 epochs, seconds", ours, *(f"{one:.0f}" for one in seconds), *ratios, "120 s / 60 s"])
    return rows


if __name__ == "__main__":
    main()
