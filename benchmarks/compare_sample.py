"""`lorabel compare` on the bundled sample: the table in the README.

Three seeds, each method at the best of three learning rates, embedded encoder, test split. Small on purpose (a few hundred training rows): it shows what the
command prints, not what the methods can do.

    python benchmarks/compare_sample.py [--threads N]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import RESULTS, environment, environment_lines, save_json

METHODS = "lora,full,head_only,zero_shot"


def main() -> None:
    """Run the command and keep its table and its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "compare"
        words = ["compare", "sample", "--methods", METHODS, "--seeds", "3", "--final", "--threads", str(threads), "--out", str(out), "--json"]
        done = subprocess.run([sys.executable, "-m", "lorabel", *words], check=True, stdout=subprocess.PIPE, text=True)
        rows = json.loads(done.stdout)["rows"]
        for row in rows:
            del row["probabilities"]
        env = environment(threads)
        save_json(RESULTS / "compare_sample.json", {"environment": env, "rows": rows})
        text = f"# compare on the bundled sample\n\n{(out / 'table.md').read_text()}\n{environment_lines(env)}"
        (RESULTS / "compare_sample.md").write_text(text)


if __name__ == "__main__":
    main()
