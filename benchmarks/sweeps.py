"""Sweeps on the bundled sample: the paper's grid timed, and 64 configurations killed twice and resumed against the same sweep left alone.

The head is the family's own. The second adapts the top layer alone, so that the frozen ones below are computed once and the whole takes minutes. Kills are SIGKILL at a third and
two thirds of the time that the sweep took when it was left alone. Asked for: the paper's grid in minutes; the same table after a kill.

    python benchmarks/sweeps.py [--threads 2] [--skip-paper]     # about 15 minutes on two cores
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import RESULTS, environment, environment_lines, markdown, save_json

GRID = "learning_rate: [3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 7e-3, 1e-2]\nrank: [1, 2, 4, 8]\nseed: [0, 1]\n"
SMALL = ("--layers", "5", "--epochs", "1", "--targets", "all-linear")


def command(out: Path, threads: int, *words: str) -> list[str]:
    """A sweep on the sample."""
    return [sys.executable, "-m", "lorabel", "sweep", "sample", "--head", "native", "--out", str(out), "--threads", str(threads), "--quiet", *words]


def table(out: Path) -> list[dict[str, Any]]:
    """What must come out the same: each member's settings, outcome and scores."""
    members = json.loads((out / "sweep.json").read_text())["members"]
    return [{name: member[name] for name in ("number", "assignment", "status", "accuracy", "macro_f1", "loss", "trainable", "steps")} for member in members]


def killed(words: list[str], after_s: float, cache: dict[str, str]) -> bool:
    """Run a command and kill it; whether it was still running then."""
    process = subprocess.Popen(words, env={**os.environ, **cache})
    try:
        process.wait(timeout=after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def main() -> None:
    """Run both and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-paper", action="store_true")
    arguments = parser.parse_args()
    rows, facts = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "grid.yaml").write_text(GRID)
        alone, resumed = folder / "alone", folder / "resumed"
        words = ("--grid", str(folder / "grid.yaml"), *SMALL)
        started = time.monotonic()
        # Each sweep computes its frozen states itself: what the other left in a shared cache would end it before it is killed.
        caches = [{"LORABEL_CACHE": str(folder / name)} for name in ("cache-alone", "cache-resumed")]
        subprocess.run(command(alone, arguments.threads, *words), check=True, env={**os.environ, **caches[0]})
        seconds = time.monotonic() - started
        kills = sum(killed(command(resumed, arguments.threads, *words, *more), seconds / 3, caches[1]) for more in ((), ("--resume",)))
        subprocess.run(command(resumed, arguments.threads, *words, "--resume"), check=True, env={**os.environ, **caches[1]})
        is_same = table(alone) == table(resumed)
        facts["killed"] = {"members": len(table(alone)), "seconds": seconds, "kills": kills, "is_same": is_same}
        rows.append(
            [
                "64 configurations, top layer",
                str(len(table(alone))),
                f"{seconds:.0f}",
                f"killed {kills} times and resumed: {'the same table' if is_same else 'ANOTHER TABLE'}",
            ]
        )
        if not arguments.skip_paper:
            started = time.monotonic()
            subprocess.run(command(folder / "paper", arguments.threads, "--grid", "paper"), check=True)
            seconds, found = time.monotonic() - started, table(folder / "paper")
            best = max(found, key=lambda member: member["accuracy"] or 0.0)
            facts["paper"] = {"members": len(found), "seconds": seconds, "best": best}
            rows.append(["the paper's grid", str(len(found)), f"{seconds:.0f}", f"best validation accuracy {100 * best['accuracy']:.2f} %"])
    env = environment(arguments.threads)
    save_json(RESULTS / "sweeps.json", {"environment": env, **facts})
    text = "# Sweeps on the bundled sample\n\n" + markdown(["sweep", "members", "seconds, start to report", "outcome"], rows)
    (RESULTS / "sweeps.md").write_text(text + "\n" + environment_lines(env))
    print(text)
    if kills < 2 or not is_same:
        sys.exit("error: the sweep was not killed twice, or did not come out the same")


if __name__ == "__main__":
    main()
