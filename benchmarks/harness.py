"""What all benchmark scripts share: where the data is, what the machine is, cells that are run once and kept, results as JSON and Markdown."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "scikit-learn", "lorabel")


def data_folder(given: str | None = None) -> Path:
    """The folder of real data sets: as given, `$LORABEL_DATA`, or `shared/data` beside the checkout; exits with a message where there is none."""
    folder = Path(given or os.environ.get("LORABEL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        sys.exit(f"error: the data sets are not at {folder}; set LORABEL_DATA to a folder with ag_news/, trec6/, … in Parquet")
    return folder


def environment(threads: int) -> dict[str, Any]:
    """Machine, versions, command and commit, for the results file."""
    processor = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    except OSError:
        pass
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python " + " ".join([str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]]),
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
    }


def package_version(name: str) -> str | None:
    """Installed version, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The JSON at a path, made first where it is missing: this is how a stopped benchmark goes on."""
    if path.exists():
        return json.loads(path.read_text())
    return save_cell(path, make())


def save_cell(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Keep what one cell of a table found, with the commit and processor it was run with."""
    made = environment(0)
    kept = {**result, "made": {name: made[name] for name in ("date", "commit", "processor")}}
    save_json(path, kept)
    return kept


def in_a_process(name: str, words: Sequence[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a Python script in a process of its own; exits with its last words where it fails.

    Args:
        name: Of the measurement, for the message.
        words: Script and arguments.
        environment: Laid over this process's own.

    Returns:
        The JSON object on its last line of output.
    """
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        sys.exit(f"error: {name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def save_json(path: Path, content: Any) -> None:
    """Write JSON so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def environment_lines(env: dict[str, Any], *, of_cells: bool = False) -> str:
    """The environment in two lines of Markdown.

    Args:
        env: As `environment` gives it.
        of_cells: The table is put together from cells that were run at other times, each kept with its versions.
    """
    versions = ", ".join(f"{name} {number}" for name, number in env["versions"].items() if number)
    if of_cells:
        said = "The cells above were run one by one, on one or two threads of several machines like this one, and keep their times and versions"
        return f"`{env['command']}` wrote this table, {env['date']}, commit {env['commit']}\n\n{said}. Here: {env['processor']}, Python {env['python']}, {versions}\n"
    return f"`{env['command']}`, {env['date']}, commit {env['commit']}\n\n{env['processor']}, {env['threads']} threads, Python {env['python']}, {versions}\n"
