"""Banks on a CPU: a sweep against the same runs one after the other.

- P4: eight members on the top two of six layers, three epochs, AG News rows, against eight runs of the usual trainer + adapter library, and against eight runs of ours. The
  library's time is that of one epoch, measured and multiplied: its epochs and runs do not differ in cost.
- Twelve members, all layers adapted, TREC-6 rows, one epoch, against twelve runs of ours.

Seconds are training seconds: the states of frozen layers, where they are computed, are inside; evaluation, saving, loading and tokenising are outside.

    python benchmarks/bank_speed.py [--rows 960] [--repetitions 3] [--data FOLDER]     # about 15 minutes on two cores
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from harness import RESULTS, data_folder, environment, environment_lines, in_a_process, markdown, save_json, spread
from train_speed import make_rows, measure

THREADS, TOP, EPOCHS = 2, (4, 5), 3
# The peer's, at any number of rows.
HEAD = {"kind": "native"}
P4 = {"learning_rate": [5e-4, 1e-3, 2e-3, 4e-3], "weight_decay": [0.0, 0.01]}
TREC = {"learning_rate": [5e-4, 1e-3, 2e-3], "rank": [4, 8], "seed": [0, 1]}


def main() -> None:
    """Measure everything in turn, several times, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=960)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--data")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(run_cell(json.loads(arguments.cell))))
        return
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        ag_news = make_rows(data_folder(arguments.data) / "ag_news", Path(scratch) / "ag_news", arguments.rows)
        trec6 = make_rows_of_trec6(data_folder(arguments.data) / "trec6", Path(scratch) / "trec6")
        for turn in range(arguments.repetitions):
            jobs = {
                "P4 bank": {"kind": "bank", "grid": P4, "data": str(ag_news), "settings": top_layers()},
                "P4 one by one": {"kind": "alone", "grid": P4, "data": str(ag_news), "settings": top_layers()},
                "TREC-6 bank": {"kind": "bank", "grid": TREC, "data": str(trec6), "settings": {"head": HEAD, "training": {"num_epochs": 1}}},
                "TREC-6 one by one": {"kind": "alone", "grid": TREC, "data": str(trec6), "settings": {"head": HEAD, "training": {"num_epochs": 1}}},
            }
            for name, job in jobs.items():
                seconds = cell({**job, "out": f"{scratch}/{name.replace(' ', '-')}-{turn}", "cache": f"{scratch}/cache-{name.replace(' ', '-')}-{turn}"})
                found.setdefault(name, []).append(seconds)
                print(f"{name}: {seconds:.1f} s", flush=True)
            for name, options in (("P4 peer (a)", {"dropout": True, "group": False}), ("P4 peer (c)", {"dropout": False, "group": True})):
                result = measure(name, peer_job(str(ag_news), scratch, options))
                found.setdefault(name, []).append(len(P4["learning_rate"]) * len(P4["weight_decay"]) * EPOCHS * arguments.rows / result["samples_per_second"])
    write(found, arguments.rows)


def top_layers() -> dict:
    """Adapters on the top two layers alone, three epochs, scored once at the end."""
    return {"method": {"layers": list(TOP)}, "head": HEAD, "training": {"num_epochs": EPOCHS, "evaluate_every_steps": 1_000_000}}


def make_rows_of_trec6(source: Path, folder: Path) -> Path:
    """1,536 training rows: 48 steps a member."""
    import pyarrow.parquet as parquet

    folder.mkdir()
    table = parquet.read_table(source / "train.parquet")
    parquet.write_table(table.slice(0, 1536), folder / "train.parquet")
    parquet.write_table(table.slice(4000, 60), folder / "validation.parquet")
    return folder


def peer_job(data: str, scratch: str, options: dict) -> dict:
    """One epoch of the library with adapters on the top two layers; the default recipe's rank, targets and rows per step."""
    from lorabel.config import EncoderConfig, load_config
    from lorabel.families import LINEAR_SITES
    from lorabel.models.checkpoint import resolve_encoder

    recipe = load_config().training
    lora = {"rank": 8, "alpha": 16, "targets": list(LINEAR_SITES), "dropout": 0.0, "learning_rate": 1e-3}
    return {
        **{"who": "peer", "precision": "bf16", "threads": THREADS, "warmup_steps": 3, "pad_to": None, "layers": list(TOP), "lora": lora, "data": data},
        **{"encoder": str(resolve_encoder(EncoderConfig(name="minilm")).folder), "scratch": scratch, **options},
        "rows_per_step": recipe.batch_size * recipe.gradient_accumulation_steps,
    }


def cell(job: dict) -> float:
    """One measurement in a process of its own, with nothing cached."""
    return float(in_a_process(job["kind"], [__file__, "--cell", json.dumps(job)], {"LORABEL_CACHE": job["cache"]})["seconds"])


def run_cell(job: dict) -> dict:
    """Train all members of a grid in a bank, or each in a run of its own; returns training seconds."""
    from lorabel.config import load_config
    from lorabel.search.space import expand_grid, nested
    from lorabel.workflows.sweep import run_sweep
    from lorabel.workflows.train import run_train

    settings = {"data": {"source": job["data"]}, **job["settings"]}
    settings["training"] = {**settings["training"], "threads": THREADS}
    grid = expand_grid(job["grid"], "grid")
    states = StatesClock()
    if job["kind"] == "bank":
        record = run_sweep([settings], grid, Path(job["out"]), on_event=states).record
        return {"seconds": sum(member.seconds for member in record.members) + states.seconds}
    total = 0.0
    for number, assignment in enumerate(grid):
        total += run_train(load_config(settings, nested(assignment)), Path(job["out"]) / str(number), on_event=states).record.training.seconds
    return {"seconds": total + states.seconds}


class StatesClock:
    """Seconds in which states of frozen layers were computed, told by their progress."""

    def __init__(self) -> None:
        self.seconds, self._last = 0.0, 0.0

    def __call__(self, event: object) -> None:
        """Add the time since the last event of the same phase; the first batch of a phase counts from the note before it."""
        import time

        from lorabel.events import Note, Progress

        now = time.perf_counter()
        if isinstance(event, Progress) and event.phase == "frozen layers":
            self.seconds += now - self._last
        if isinstance(event, Note | Progress):
            self._last = now


def write(found: dict[str, list[float]], rows: int) -> None:
    """JSON and Markdown results."""
    ratios = [
        ("P4: bank against the library's defaults (a), bf16", "P4 peer (a)", "P4 bank", 6.0, 10.0),
        ("P4: bank against the library without dropout, grouped (c), bf16", "P4 peer (c)", "P4 bank", 6.0, 10.0),
        ("P4: bank against our own runs one by one", "P4 one by one", "P4 bank", None, None),
        ("TREC-6, 12 members: bank against our own runs one by one", "TREC-6 one by one", "TREC-6 bank", 1.0, 1 / 0.75),
    ]
    table, kept = [], {}
    for label, slow, fast, floor, goal in ratios:
        pairs = [a / b for a, b in zip(found[slow], found[fast], strict=True)]
        middle = statistics.median(pairs)
        verdict = "—" if floor is None else "goal reached" if middle >= goal else "floor passed" if middle >= floor else "below the floor"
        kept[label] = {**spread(pairs), "floor": floor, "goal": goal}
        table.append([label, f"{middle:.2f}×", f"{min(pairs):.2f}–{max(pairs):.2f}", f"{floor:g}×" if floor else "—", f"{goal:.2f}×" if goal else "—", verdict])
    env = environment(THREADS)
    save_json(
        RESULTS / "bank_speed.json", {"environment": env, "rows": rows, "seconds": {name: spread(values) for name, values in found.items()}, "ratios": kept}
    )
    text = f"# Banks on a CPU\n\n{rows} AG News rows, three epochs, eight members on layers 4 and 5 (P4); 1,536 TREC-6 rows, one epoch, twelve members on all layers. "
    text += (
        "Training seconds, medians of interleaved runs, each in its own process.\n\n"
        + markdown(["figure", "ratio", "range", "floor", "goal", ""], table)
        + "\n"
    )
    text += (
        markdown(["cell", "seconds (median)", "range"], [[name, f"{statistics.median(v):.1f}", f"{min(v):.1f}–{max(v):.1f}"] for name, v in found.items()])
        + "\n"
    )
    (RESULTS / "bank_speed.md").write_text(text + environment_lines(env))
    print(text)


if __name__ == "__main__":
    main()
