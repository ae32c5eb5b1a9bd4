"""Our cells of gpu_train.py, one after the other in one process; each result in a file of its own. Called by gpu_train.py."""

import gc
import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Read the cells and where to keep them from the command line, and run those that are not there."""
    jobs, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    for name, job in jobs.items():
        path = folder / f"{name}.json"
        if not path.exists():
            found = run(job)
            print(f"{name}: {found['samples_per_second']:,.0f} samples/s, {1e3 * found['seconds_per_step']:.1f} ms a step", flush=True)
            path.write_text(json.dumps(found))


def run(job: dict) -> dict:
    """Train a grid of members in one bank: its speed once its shapes have come up, its whole training time, memory, and each member's validation accuracy.

    Args:
        job: `settings`, `grid`, `out`, `rows` of a step, `skip` (share of the steps before the clock of the rate starts).
    """
    import torch

    from lorabel.events import StepDone
    from lorabel.search.space import expand_grid
    from lorabel.workflows.sweep import SweepOptions, run_sweep

    marks: dict[int, float] = {}

    def note(event: object) -> None:
        if isinstance(event, StepDone):
            marks[event.step] = time.perf_counter()

    is_gpu = job["settings"]["training"]["device"] == "cuda"
    gc.collect()
    if is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    grid = expand_grid(job["grid"], "grid")
    started = time.perf_counter()
    record = run_sweep([job["settings"]], grid, Path(job["out"]), SweepOptions(bank_size=len(grid)), on_event=note).record
    whole = time.perf_counter() - started
    last = max(marks)
    first = min(step for step in marks if step >= last * job["skip"])
    rate = (last - first) * job["rows"] * len(grid) / (marks[last] - marks[first])
    return {
        "samples_per_second": rate,
        "seconds_per_step": (marks[last] - marks[first]) / (last - first),
        "steps": last,
        "training_seconds": sum(member.seconds or 0.0 for member in record.members),
        "whole_seconds": whole,
        "accuracies": [member.accuracy for member in record.members],
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if is_gpu else 0,
    }


if __name__ == "__main__":
    main()
