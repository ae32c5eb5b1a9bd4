"""The paper's techniques on AG News: `lorabel ablate` with the paper's recipe and without each technique, the figures in the README.

Embedded encoder with the family's own head, as the paper's classifier has, three seeds, a stratified draw of the training rows, judged on a draw of the validation rows (the test
split is not opened). A stopped run goes on from the work folder. Each cell is scored once, at its end.

    python benchmarks/ablation.py [--rows N] [--validation-rows N] [--epochs N] [--seeds N] [--threads N] [--data FOLDER] [--work FOLDER]
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import RESULTS, data_folder, environment, environment_lines, save_json
from lorabel.artifacts.compares import CompareLayout, read_compare
from lorabel.reports.ablation import sentences


def main() -> None:
    """Run the command and keep its table, its sentences and its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--validation-rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data")
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "lorabel-ablation"), help="folder of the ablation under way")
    arguments = parser.parse_args()
    out = Path(arguments.work)
    words = ["ablate", str(data_folder(arguments.data) / "ag_news"), "--limit-rows", str(arguments.rows), "--validation-rows", str(arguments.validation_rows)]
    words += ["--head", "native", "--epochs", str(arguments.epochs), "--evaluate-every", str(10**6)]
    words += ["--seeds", str(arguments.seeds), "--threads", str(arguments.threads), "--out", str(out), *(["--resume"] if out.exists() else [])]
    subprocess.run([sys.executable, "-m", "lorabel", *words], check=True)
    record = read_compare(CompareLayout(out, "ablate").record)
    rows = [row.model_dump(mode="json", exclude={"probabilities"}) for row in record.rows]
    env = environment(arguments.threads)
    save_json(RESULTS / "ablation.json", {"environment": env, "rows": rows})
    text = (
        f"# The paper's techniques on AG News, {arguments.rows:,} training rows, {arguments.epochs} epochs, {arguments.validation_rows:,} validation rows\n\n"
    )
    text += (out / "table.md").read_text() + "\n" + "\n".join(f"- {sentence}" for sentence in sentences(record))
    (RESULTS / "ablation.md").write_text(f"{text}\n\n{environment_lines(env)}")
    shutil.rmtree(out)


if __name__ == "__main__":
    main()
