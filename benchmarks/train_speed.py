"""Training speed on AG News rows against the usual trainer + adapter library, measured in turn in one run.

Ours runs its default recipe. The peer trains the same rank, alpha, targets and adapter dropout on the same table, in four forms: (a) its defaults (hidden and attention
dropout 0.1 as the checkpoint says), (b) both dropouts 0, (c) as (b) with its grouping by length, (d) as (c) with plain attention and, in bf16, frozen weights kept in it: what
is fastest on a CPU; each in fp32 and bf16 autocast; and once padded to 512 tokens. Steps of random order are timed from the 11th on, of grouped order from the 51st to the 100th,
a whole run of its sorted batches. Also: arithmetic executed against this machine's own bf16 peak. RoBERTa-base's shape has a script of its own, roberta_speed.py.

    python benchmarks/train_speed.py [--repetitions 3] [--steps 25] [--only CELL …] [--data FOLDER]     # about 40 minutes on two cores
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from harness import RESULTS, data_folder, environment, environment_lines, in_a_process, markdown, save_json, spread

THREADS, WARMUP = 2, 10
# Batches in a run that is sorted by length, on both sides; the peer's are as long from four runs on.
RUN, TABLE_RUNS = 50, 4
GROUPED = {"dropout": False, "group": True, "warmup_steps": RUN, "max_steps": 2 * RUN}
CELLS = {
    "ours-bf16": {"who": "ours", "precision": "bf16"},
    "ours-fp32": {"who": "ours", "precision": "fp32"},
    "peer-a-fp32": {"who": "peer", "precision": "fp32", "dropout": True, "group": False},
    "peer-a-bf16": {"who": "peer", "precision": "bf16", "dropout": True, "group": False},
    "peer-b-fp32": {"who": "peer", "precision": "fp32", "dropout": False, "group": False},
    "peer-b-bf16": {"who": "peer", "precision": "bf16", "dropout": False, "group": False},
    "peer-c-fp32": {"who": "peer", "precision": "fp32", **GROUPED},
    "peer-c-bf16": {"who": "peer", "precision": "bf16", **GROUPED},
    "peer-d-fp32": {"who": "peer", "precision": "fp32", **GROUPED, "attention": "eager"},
    "peer-d-bf16": {"who": "peer", "precision": "bf16", **GROUPED, "attention": "eager", "bf16_weights": True},
}
PADDED = {"peer-padded-512-fp32": {"who": "peer", "precision": "fp32", "dropout": True, "group": False, "pad_to": 512}}
# Label, ours, peer, floor, goal.
RATIOS = [
    ("P1 (a) fp32 peer", "ours-bf16", "peer-a-fp32", 4.5, 6.0),
    ("P1 (a) bf16 peer", "ours-bf16", "peer-a-bf16", 3.2, 4.2),
    ("P1 (b) fp32 peer", "ours-bf16", "peer-b-fp32", 3.0, None),
    ("P1 (b) bf16 peer", "ours-bf16", "peer-b-bf16", 2.8, None),
    ("P1 (c) fp32 peer", "ours-bf16", "peer-c-fp32", 2.0, 2.8),
    ("P1 (c) bf16 peer", "ours-bf16", "peer-c-bf16", 1.9, 2.7),
    ("P1 (d) bf16 peer", "ours-bf16", "peer-d-bf16", 1.9, 2.7),
    ("P1f (a) both fp32", "ours-fp32", "peer-a-fp32", 2.2, 3.0),
    ("P1f (c) both fp32", "ours-fp32", "peer-c-fp32", 1.1, 1.5),
    ("P1f (d) both fp32", "ours-fp32", "peer-d-fp32", 1.1, 1.5),
    ("P2 padded to 512", "ours-bf16", "peer-padded-512-fp32", 30.0, 60.0),
]


def main() -> None:
    """Measure all cells in turn, several times, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--only", nargs="*", choices=list(CELLS), default=list(CELLS), help="leave out the other cells; there is no table then")
    parser.add_argument("--data")
    arguments = parser.parse_args()
    from lorabel.budget import DEFAULT_LIMIT, settle
    from lorabel.config import EncoderConfig, load_config
    from lorabel.methods.base import make_method
    from lorabel.models.checkpoint import resolve_encoder

    recipe, source = load_config(), resolve_encoder(EncoderConfig(name="minilm"))
    method = make_method(settle(recipe.method, source.shape, DEFAULT_LIMIT))
    rows_per_step = recipe.training.batch_size * recipe.training.gradient_accumulation_steps
    lora = {**method.model_dump(mode="json"), "learning_rate": recipe.optimizer.learning_rate or method.default_learning_rate}
    encoder = str(source.folder)
    with tempfile.TemporaryDirectory() as scratch:
        rows = make_rows(data_folder(arguments.data) / "ag_news", Path(scratch) / "rows", rows_per_step * RUN * TABLE_RUNS)
        few = make_rows(data_folder(arguments.data) / "ag_news", Path(scratch) / "few", rows_per_step * 7)
        common = {"threads": THREADS, "warmup_steps": WARMUP, "lora": lora, "rows_per_step": rows_per_step, "scratch": scratch, "pad_to": None}
        common |= {"data": str(rows), "encoder": encoder, "max_steps": WARMUP + arguments.steps}
        found: dict[str, list[dict]] = {}
        for _ in range(arguments.repetitions):
            for name, cell in CELLS.items():
                if name in arguments.only:
                    found.setdefault(name, []).append(measure(name, {**common, **cell}))
        if len(arguments.only) < len(CELLS):
            return
        for name, cell in PADDED.items():
            found.setdefault(name, []).append(measure(name, {**common, "data": str(few), **cell, "warmup_steps": 2, "max_steps": -1}))
        peak = matmul_peak()
        flops = executed_flops(rows, lora)
    write(found, peak, flops, lora, rows_per_step)


def make_rows(source: Path, folder: Path, rows: int) -> Path:
    """The first rows of a seeded shuffle of the training split, again from the start where it has too few, as a folder both sides read."""
    import numpy as np
    import pyarrow.parquet as parquet

    folder.mkdir()
    table = parquet.read_table(source / "train.parquet")
    parquet.write_table(table.take(np.resize(np.random.default_rng(0).permutation(len(table)), rows)), folder / "train.parquet")
    for split in ("validation", "test"):
        parquet.write_table(parquet.read_table(source / f"{split}.parquet").slice(0, 40), folder / f"{split}.parquet")
    return folder


def measure(name: str, job: dict) -> dict:
    """One measurement in a process of its own."""
    result = in_a_process(name, [str(Path(__file__).with_name("speed_worker.py")), json.dumps(job)])
    print(f"{name}: {result['samples_per_second']:.1f} samples/s, peak {result['peak_memory_bytes'] / 1e6:.0f} MB", flush=True)
    return result


def matmul_peak() -> dict[str, float]:
    """Best measured matrix-product speed over a few shapes, in operations per second."""
    import time

    import torch

    torch.set_num_threads(THREADS)
    best = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        rates = []
        for m, k, n in ((1700, 384, 1152), (1700, 384, 1536), (1700, 1536, 384), (2048, 2048, 2048)):
            a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
            a @ b
            times = []
            for _ in range(20):
                started = time.perf_counter()
                a @ b
                times.append(time.perf_counter() - started)
            rates.append(2 * m * k * n / statistics.median(times))
        best[name] = max(rates)
    return best


def executed_flops(rows: Path, lora: dict) -> float:
    """Matrix-product operations per training sample that our step executes on these rows.

    Counted from shapes: frozen products forward and towards activations, adapters forward, towards activations and towards weights, attention products. The first layer
    needs no gradient towards its input; the last layer computes keys and values for all tokens and the rest for first rows only.
    """
    from lorabel.config import DataConfig, EncoderConfig
    from lorabel.data.load import load_data
    from lorabel.data.packing import tokenise
    from lorabel.models.checkpoint import load_tokenizer, resolve_encoder

    source = resolve_encoder(EncoderConfig(name="minilm"))
    tokenizer, digest = load_tokenizer(source.folder)
    lengths = tokenise(load_data(DataConfig(source=str(rows))).splits["train"].texts, tokenizer, digest, 512).lengths
    shape, rank = source.shape, lora["rank"]
    width, tokens = shape.hidden_size, float(lengths.mean())
    pairs = float((lengths.astype(float) ** 2).mean())
    total = 0.0
    for layer in range(shape.num_layers):
        is_first, is_last = layer == 0, layer == shape.num_layers - 1
        for site in ("query", "key", "value", "attention_output", "ffn_up", "ffn_down"):
            out, inputs = shape.linear_shape(site)
            n = 1.0 if is_last and site not in ("key", "value") else tokens
            needs_input_gradient = not (is_first and site in ("query", "key", "value"))
            total += 2 * n * out * inputs * (1 + needs_input_gradient)
            if site in lora["targets"]:
                total += 2 * n * rank * (inputs + out) * (2 + needs_input_gradient)
        # Two products forward, four backward.
        total += 6 * 2 * (tokens if is_last else pairs) * width
    return total


def write(found: dict, peak: dict, flops: float, lora: dict, rows_per_step: int) -> None:
    """JSON and Markdown results."""
    rates = {name: [cell["samples_per_second"] for cell in cells] for name, cells in found.items()}
    memory = {name: max(cell["peak_memory_bytes"] for cell in cells) for name, cells in found.items()}
    ratio_rows, ratios = [], {}
    for label, ours, other, floor, goal in RATIOS:
        # What was measured once stands beside the median of ours.
        pairs = [a / b for a, b in zip(rates[ours] if len(rates[other]) > 1 else [statistics.median(rates[ours])], rates[other], strict=True)]
        ratios[label] = {**spread(pairs), "floor": floor, "goal": goal}
        middle = statistics.median(pairs)
        verdict = "goal reached" if goal and middle >= goal else "floor passed" if middle >= floor else "below the floor"
        ratio_rows.append([label, f"{middle:.2f}×", f"{min(pairs):.2f}–{max(pairs):.2f}", f"{floor:g}×", f"{goal:g}×" if goal else "—", verdict])
    executed = flops * statistics.median(rates["ours-bf16"])
    share = executed / peak["bf16"]
    verdict = "goal reached" if share >= 0.65 else "floor passed" if share >= 0.45 else "below the floor"
    ratio_rows.append(["P3 executed products / bf16 peak", f"{100 * share:.0f} %", "—", "45 %", "65 %", verdict])
    env = environment(THREADS)
    save_json(
        RESULTS / "train_speed.json",
        {
            "environment": env,
            "lora": lora,
            "rows_per_step": rows_per_step,
            "samples_per_second": {name: spread(values) for name, values in rates.items()},
            "peak_memory_bytes": memory,
            "ratios": ratios,
            "executed_flops_per_sample": flops,
            "peak_flops_per_second": peak,
            "share_of_peak": share,
        },
    )
    settings = f"LoRA r = {lora['rank']} on {', '.join(lora['targets'])}, adapter dropout {lora['dropout']}, {rows_per_step} rows a step, embedded encoder, AG News rows."
    text = f"# Training speed\n\n{settings} Median of interleaved runs, each in its own process.\n\n"
    text += markdown(["figure", "ratio", "range", "floor", "goal", ""], ratio_rows) + "\n"
    text += markdown(
        ["cell", "samples/s (median)", "range", "peak memory"],
        [[name, f"{statistics.median(v):.1f}", f"{min(v):.1f}–{max(v):.1f}", f"{memory[name] / 1e6:,.0f} MB"] for name, v in rates.items()],
    )
    text += f"\nExecuted matrix products {flops / 1e9:.2f} GFLOP a sample; peak {peak['bf16'] / 1e9:.0f} GFLOP/s bf16, {peak['fp32'] / 1e9:.0f} fp32.\n\n"
    (RESULTS / "train_speed.md").write_text(text + environment_lines(env))


if __name__ == "__main__":
    main()
