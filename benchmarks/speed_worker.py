"""One measurement of training speed in a process of its own: ours or the usual stack. Called by train_speed.py; prints one JSON object.

Both train LoRA with the same rank, alpha and targets on the same table, with the same rows per optimiser step. The clock starts after the warm-up steps and stops at the last
optimiser step; evaluation, saving, loading and tokenising are outside it.

Both sort by length within runs of 50 batches, the peer where it groups: it does so only in tables of at least 200 batches (in smaller ones its runs are shorter, and of few batches
it groups nothing), longest first. So its steps are limited, not its table, and a whole run of 50 steps is timed.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path


def main() -> None:
    """Read the job from the command line, run it, print the result."""
    job = json.loads(sys.argv[1])
    import torch

    torch.set_num_threads(job["threads"])
    seconds, samples = (ours if job["who"] == "ours" else peer)(job)
    on_gpu = job.get("device", "cpu") == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"samples_per_second": samples / seconds, "seconds": seconds, "samples": samples, "peak_memory_bytes": peak}))


def ours(job: dict) -> tuple[float, int]:
    """Our trainer through its public entry point, with the default recipe."""
    import tempfile

    from lorabel.config import load_config
    from lorabel.events import StepDone
    from lorabel.workflows.train import run_train

    marks: dict[int, float] = {}

    def note(event: object) -> None:
        if isinstance(event, StepDone):
            marks[event.step] = time.perf_counter()

    settings = {
        "data": {"source": job["data"], "validation_rows": 4},
        "encoder": {"name": job["encoder"]},
        "training": {"num_epochs": 1, "precision": job["precision"], "threads": job["threads"], "device": job.get("device", "cpu")},
        "budget": "100%",
    }
    with tempfile.TemporaryDirectory() as folder:
        record = run_train(load_config(settings), Path(folder) / "run", on_event=note).record
    warmup, last = job["warmup_steps"], max(marks)
    rows = record.config["training"]["batch_size"] * record.config["training"]["gradient_accumulation_steps"]
    return marks[last] - marks[warmup], (last - warmup) * rows


def peer(job: dict) -> tuple[float, int]:
    """Trainer + adapter library."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import datasets
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(job["encoder"], num_labels=4)
    if not job["dropout"]:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    # The adapter stays in float32 whatever the frozen weights are in: its own default.
    dtype = torch.bfloat16 if job.get("bf16_weights") else torch.float32
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        job["encoder"], config=config, attn_implementation=job.get("attention", "sdpa"), dtype=dtype
    )
    lora = job["lora"]
    targets = {"bert": PEFT_NAMES, "roberta": PEFT_NAMES}[config.model_type]
    layers = "|".join(map(str, job["layers"])) if job.get("layers") else r"\d+"
    expression = rf".*\.layer\.({layers})\.(" + "|".join(targets[site].replace(".", r"\.") for site in lora["targets"]) + ")"
    model = get_peft_model(
        model, LoraConfig(task_type="SEQ_CLS", r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=expression)
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["encoder"])
    table = datasets.Dataset.from_parquet(str(Path(job["data"]) / "train.parquet"))
    names = sorted(set(table["label"]))
    padding = {"padding": "max_length"} if job["pad_to"] else {}
    table = table.map(
        lambda row: {**tokenizer(row["text"], truncation=True, max_length=512, **padding), "labels": names.index(row["label"])},
        remove_columns=table.column_names,
    )
    if job["group"]:
        table = table.map(lambda row: {"length": len(row["input_ids"])})
    clock = Clock(job["warmup_steps"])
    arguments = transformers.TrainingArguments(
        output_dir=job["scratch"],
        per_device_train_batch_size=job["rows_per_step"],
        num_train_epochs=1,
        max_steps=job.get("max_steps", -1),
        learning_rate=lora["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=2,
        weight_decay=0.01,
        use_cpu=job.get("device", "cpu") == "cpu",
        bf16=job["precision"] == "bf16",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=0,
        train_sampling_strategy="group_by_length" if job["group"] else "random",
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=table,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        callbacks=[clock.callback(transformers)],
    )
    trainer.train()
    return clock.last - clock.first, (clock.steps - job["warmup_steps"]) * job["rows_per_step"]


class Clock:
    """Time between the end of the warm-up and the last optimiser step."""

    def __init__(self, warmup: int) -> None:
        self.warmup, self.steps, self.first, self.last = warmup, 0, 0.0, 0.0

    def callback(self, transformers: object) -> object:
        """A Trainer callback that reads this clock."""
        clock = self

        class Callback(transformers.TrainerCallback):  # type: ignore[name-defined, misc]
            """Marks each step's end."""

            def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
                """Mark one step."""
                clock.steps += 1
                clock.last = time.perf_counter()
                if clock.steps == clock.warmup:
                    clock.first = clock.last

        return Callback()


PEFT_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
}

if __name__ == "__main__":
    main()
