"""How fast the command line answers where it needs no torch (P11): help of every verb, import, plan.

python benchmarks/cli_speed.py [--runs 9]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from harness import RESULTS, environment, environment_lines, markdown, save_json, spread

LORABEL = str(Path(sys.executable).with_name("lorabel"))
PLAN = "plan --encoder roberta-base --classes 4 --method lora --rank 8 --alpha 16 --targets query,value --head native --json".split()
# What, command, floor in seconds, goal in seconds.
COMMANDS = [
    ("python -c pass (for comparison)", [sys.executable, "-c", "pass"], None, None),
    ("import lorabel", [sys.executable, "-c", "import lorabel"], 0.2, 0.05),
    ("lorabel --help", [LORABEL, "--help"], 0.5, 0.25),
    *[(f"lorabel {verb} --help", [LORABEL, verb, "--help"], 0.5, 0.25) for verb in ("train", "evaluate", "predict", "plan", "report", "methods", "doctor")],
    ("lorabel plan (roberta-base)", [LORABEL, *PLAN], 1.0, 0.4),
]


def main() -> None:
    """Time every command several times, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name, *_ in COMMANDS}
    for turn in range(arguments.runs + 1):
        for name, command, *_ in COMMANDS:
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if turn:  # The first turn fills the disk cache.
                times[name].append(time.perf_counter() - started)
    rows = []
    for name, _, floor, goal in COMMANDS:
        middle = statistics.median(times[name])
        verdict = "" if floor is None else "goal reached" if middle <= goal else "floor passed" if middle <= floor else "too slow"
        limits = [f"{value:g} s" if value else "—" for value in (floor, goal)]
        rows.append([f"`{name}`", f"{middle:.3f} s", f"{min(times[name]):.3f}–{max(times[name]):.3f}", *limits, verdict])
    env = environment(1)
    save_json(RESULTS / "cli_speed.json", {"environment": env, "seconds": {name: spread(values) for name, values in times.items()}})
    text = "# How fast the command line answers\n\n" + markdown(["command", "median", "range", "floor", "goal", ""], rows) + "\n"
    (RESULTS / "cli_speed.md").write_text(text + environment_lines(env))
    print(text)


if __name__ == "__main__":
    main()
