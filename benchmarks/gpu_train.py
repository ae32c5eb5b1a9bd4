"""Training on one GPU against the usual stack: one adapter (P6), a bank of sixteen (P5), the paper's amount of work (P7).

RoBERTa-base's shape with random weights (speed does not depend on them) and the embedded encoder's tokenizer on AG News rows, bf16, encoder dropout 0. The library's run of
P7 is not made in full: its steps do not differ, so their rate is measured and multiplied; ours is made in full. Sixteen runs of the library are one run, multiplied.
Also: a bank of sixteen members of the embedded encoder on AG News, with the accuracy of each.

    python benchmarks/gpu_train.py [--rows 60000] [--epochs 4] [--data FOLDER]     # under 10 minutes on one H100
    python benchmarks/gpu_train.py --smoke                                          # the same on a CPU with few rows: does it run at all
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from harness import RESULTS, data_folder, environment, environment_lines, in_a_process, markdown, save_json
from roberta_speed import make_encoder
from train_speed import make_rows, measure

WARMUP = 10
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
GRID = {"learning_rate": [2e-4, 5e-4, 1e-3, 2e-3], "weight_decay": [0.0, 0.01], "seed": [0, 1]}


def main() -> None:
    """Measure everything in turn and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--data")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(run_cell(json.loads(arguments.cell))))
        return
    device, rows, steps = ("cpu", 256, 4) if arguments.smoke else ("cuda", arguments.rows, arguments.steps)
    warmup = 2 if arguments.smoke else WARMUP
    with tempfile.TemporaryDirectory() as scratch:
        source = data_folder(arguments.data) / "ag_news"
        many, few = make_rows(source, Path(scratch) / "many", rows), make_rows(source, Path(scratch) / "few", 32 * (steps + warmup))
        encoder = make_encoder(Path(scratch) / "random", **(TINY if arguments.smoke else {}))
        lora = {"rank": 8, "alpha": 16, "targets": ["query", "value"], "dropout": 0.0, "learning_rate": 1e-3}
        common = {
            "precision": "bf16",
            "device": device,
            "threads": 8,
            "warmup_steps": warmup,
            "lora": lora,
            "rows_per_step": 32,
            "scratch": scratch,
            "pad_to": None,
        }
        job = {**common, "dropout": False, "group": False, "encoder": str(encoder), "data": str(few)}
        peer = measure("P6 peer", {**job, "who": "peer"})
        base = {"encoder": str(encoder), "device": device, "method": {"name": "lora", "rank": 8, "alpha": 16, "targets": ["query", "value"]}}
        alone = cell({**base, "data": str(few), "out": f"{scratch}/alone", "grid": {"seed": [0]}, "epochs": 1})
        bank = cell({**base, "data": str(few), "out": f"{scratch}/bank", "grid": GRID, "epochs": 1})
        long = cell({**base, "data": str(many), "out": f"{scratch}/long", "grid": {"seed": [0]}, "epochs": 1 if arguments.smoke else arguments.epochs})
        real = cell(
            {"encoder": str(encoder) if arguments.smoke else "minilm", "device": device, "data": str(many), "out": f"{scratch}/real", "grid": GRID, "epochs": 1}
        )
    write(arguments, peer, alone, bank, long, real)


def cell(job: dict) -> dict:
    """One sweep in a process of its own: its training seconds, samples and memory, and each member's accuracy."""
    result = in_a_process(Path(job["out"]).name, [__file__, "--cell", json.dumps(job)])
    print(f"{Path(job['out']).name}: {result['seconds']:.1f} s, {result['samples']:,} samples", flush=True)
    return result


def run_cell(job: dict) -> dict:
    """Train the members of a grid in one bank."""
    import torch

    from lorabel.events import StepDone
    from lorabel.search.space import expand_grid
    from lorabel.workflows.sweep import SweepOptions, run_sweep

    marks: dict[int, float] = {}

    def note(event: object) -> None:
        if isinstance(event, StepDone):
            marks[event.step] = time.perf_counter()

    settings = {
        "data": {"source": job["data"], "validation_rows": 40},
        "encoder": {"name": job["encoder"]},
        "training": {"num_epochs": job["epochs"], "precision": "bf16", "device": job["device"], "evaluate_every_steps": 1_000_000},
        "budget": "100%",
        **({"method": job["method"]} if "method" in job else {}),
    }
    grid = expand_grid(job["grid"], "grid")
    record = run_sweep([settings], grid, Path(job["out"]), SweepOptions(bank_size=len(grid)), on_event=note).record
    first, last = min(marks), max(marks)
    skipped = min(WARMUP, last // 2)
    start = min(step for step in marks if step >= max(first, skipped))
    share = (last - start) / last
    samples = sum(member.steps or 0 for member in record.members) * 32
    return {
        "seconds": marks[last] - marks[start],
        "samples": round(samples * share),
        "whole_seconds": sum(member.seconds or 0.0 for member in record.members),
        "accuracies": [member.accuracy for member in record.members],
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if job["device"] == "cuda" else 0,
    }


def write(arguments: argparse.Namespace, peer: dict, alone: dict, bank: dict, long: dict, real: dict) -> None:
    """JSON and Markdown results; a smoke run writes none."""
    rates = {name: one["samples"] / one["seconds"] for name, one in (("alone", alone), ("bank", bank), ("long", long), ("real", real))}
    work = 120_000 * 4
    ours_s, peer_s = work / rates["long"], work / peer["samples_per_second"]
    rows = [
        [
            "P6 one adapter, RoBERTa-base",
            f"{rates['alone']:,.0f}",
            f"{peer['samples_per_second']:,.0f}",
            f"{rates['alone'] / peer['samples_per_second']:.1f}×",
            "4× / 8×",
        ],
        [
            "P5 bank of 16, RoBERTa-base",
            f"{rates['bank']:,.0f}",
            f"{peer['samples_per_second']:,.0f}",
            f"{rates['bank'] / peer['samples_per_second']:.1f}×",
            "10× / 20×",
        ],
        ["P7 120k rows × 4 epochs", f"{ours_s:.0f} s", f"{peer_s:.0f} s", f"{peer_s / ours_s:.1f}×", "120 s / 60 s"],
    ]
    text = f"# One GPU\n\n{arguments.rows:,} AG News rows; P7 ran {arguments.epochs} epochs of these rows and is scaled to 120,000. Samples a second; floor and goal in the last column.\n\n"
    text += markdown(["work", "ours", "the usual stack", "ratio", "asked for"], rows)
    memory = {name: f"{one['peak_memory_bytes'] / 1e9:.2f} GB" for name, one in (("alone", alone), ("bank", bank), ("peer", peer))}
    text += f"\nMemory: ours {memory['alone']} alone, {memory['bank']} for 16 members, the usual stack {memory['peer']}.\n\n"
    text += (
        "Validation accuracy of 16 MiniLM members after one epoch: "
        + ", ".join(f"{100 * value:.1f}" for value in real["accuracies"] if value is not None)
        + "\n\n"
    )
    print(text)
    if arguments.smoke:
        return
    import torch

    env = {**environment(8), "gpu": torch.cuda.get_device_name()}
    save_json(RESULTS / "gpu_train.json", {"environment": env, "peer": peer, "alone": alone, "bank": bank, "long": long, "real": real})
    (RESULTS / "gpu_train.md").write_text(text + f"{env['gpu']}\n\n" + environment_lines(env))


if __name__ == "__main__":
    main()
