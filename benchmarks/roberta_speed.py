"""Step time and peak memory on RoBERTa-base's shape with random weights, against the usual trainer + adapter library, in turn, fp32 and bf16.

LoRA of the default rank and targets on AG News rows; the tokenizer is the embedded one, so lengths are those of the other benchmarks. The peer has dropout 0 and its
grouping by length; in a table of so few batches it groups next to nothing, so this is its form (b) of train_speed.py rather than (c).

    python benchmarks/roberta_speed.py [--repetitions 3] [--steps 6] [--data FOLDER]     # about 8 minutes on two cores
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from harness import RESULTS, data_folder, environment, environment_lines, markdown, save_json, spread
from train_speed import THREADS, make_rows, measure

WARMUP = 2


def main() -> None:
    """Measure all cells in turn, several times, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--data")
    arguments = parser.parse_args()
    from lorabel.config import load_config
    from lorabel.families import LINEAR_SITES

    recipe = load_config().training
    rows_per_step = recipe.batch_size * recipe.gradient_accumulation_steps
    # Ours runs with the budget lifted: the default rank on all linear layers needs more than a million parameters at this width.
    lora = {"rank": 8, "alpha": 16, "targets": list(LINEAR_SITES), "dropout": 0.0, "learning_rate": 1e-3}
    found: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        rows = make_rows(data_folder(arguments.data) / "ag_news", Path(scratch) / "rows", rows_per_step * (arguments.steps + WARMUP))
        encoder = make_encoder(Path(scratch) / "roberta-base-random")
        common = {"threads": THREADS, "warmup_steps": WARMUP, "lora": lora, "rows_per_step": rows_per_step, "scratch": scratch, "pad_to": None}
        for _ in range(arguments.repetitions):
            for precision in ("bf16", "fp32"):
                for who in ("ours", "peer"):
                    job = {"who": who, "precision": precision, "dropout": False, "group": True, "encoder": str(encoder), "data": str(rows)}
                    found.setdefault(f"{who}-{precision}", []).append(measure(f"roberta-base-{who}-{precision}", {**common, **job}))
    write(found, rows_per_step)


def make_encoder(folder: Path, embedded: str = "minilm", **shape: int) -> Path:
    """RoBERTa-base from its configuration, or another shape of its family; random weights, with the tokenizer of another (the embedded one)."""
    import torch
    import transformers

    from lorabel.config import EncoderConfig
    from lorabel.models.checkpoint import resolve_encoder

    torch.manual_seed(0)
    config = transformers.RobertaConfig(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=4, **shape)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    source = resolve_encoder(EncoderConfig(name=embedded)).folder
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def write(found: dict[str, list[dict]], rows_per_step: int) -> None:
    """JSON and Markdown results."""
    steps = {name: [rows_per_step / cell["samples_per_second"] for cell in cells] for name, cells in found.items()}
    memory = {name: max(cell["peak_memory_bytes"] for cell in cells) for name, cells in found.items()}
    ratios = {
        precision: spread([peer / ours for ours, peer in zip(steps[f"ours-{precision}"], steps[f"peer-{precision}"], strict=True)])
        for precision in ("bf16", "fp32")
    }
    env = environment(THREADS)
    save_json(
        RESULTS / "roberta_speed.json",
        {"environment": env, "seconds_per_step": {name: spread(values) for name, values in steps.items()}, "peak_memory_bytes": memory, "ratios": ratios},
    )
    text = f"# RoBERTa-base's shape, random weights\n\nLoRA r = 8 on all linear layers, {rows_per_step} AG News rows a step; "
    text += "the peer with dropout 0; its grouping by length has next to no effect on so few rows. "
    text += "Medians of interleaved runs, each in its own process.\n\n"
    text += markdown(
        ["cell", "seconds a step (median)", "range", "peak memory"],
        [[name, f"{statistics.median(v):.2f}", f"{min(v):.2f}–{max(v):.2f}", f"{memory[name] / 1e6:,.0f} MB"] for name, v in steps.items()],
    )
    for precision, ratio in ratios.items():
        text += f"\n{precision}: ours takes the step {ratio['median']:.2f} times as fast ({ratio['min']:.2f}–{ratio['max']:.2f}).\n"
    (RESULTS / "roberta_speed.md").write_text(text + "\n" + environment_lines(env))
    print(text)


if __name__ == "__main__":
    main()
