"""`lorabel compare --fractions --shots` on TREC-6: how scores grow with the training rows, test split.

Fractions with three seeds, shots with ten draws of one seed each, default learning rates, embedded encoder. A stopped run goes on where it was.

    python benchmarks/sizes.py [--threads N] [--data FOLDER] [--work FOLDER]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import RESULTS, data_folder, environment, environment_lines, save_json

METHODS = "lora,head_only"
SIZES = {"fractions": ["--fractions", "3,10,30,100", "--seeds", "3"], "shots": ["--shots", "8,64", "--draws", "10", "--seeds", "1"]}


def main() -> None:
    """Run both commands and keep their tables and points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data")
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "lorabel-sizes"), help="folder of the comparisons under way")
    arguments = parser.parse_args()
    source, work = str(data_folder(arguments.data) / "trec6"), Path(arguments.work)
    env = environment(arguments.threads)
    points, text = {}, "# Scores by training rows, TREC-6\n"
    for name, words in SIZES.items():
        out = work / name
        command = ["compare", source, "--methods", METHODS, *words, "--final", "--threads", str(arguments.threads), "--out", str(out)]
        subprocess.run([sys.executable, "-m", "lorabel", *command, *(["--resume"] if out.exists() else [])], check=True, stdout=subprocess.DEVNULL)
        points[name] = json.loads((out / "sizes.json").read_text())["points"]
        text += f"\n## `--{name}`\n\n{(out / 'sizes.md').read_text()}"
    save_json(RESULTS / "sizes.json", {"environment": env, "points": points})
    (RESULTS / "sizes.md").write_text(f"{text}\n{environment_lines(env)}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
