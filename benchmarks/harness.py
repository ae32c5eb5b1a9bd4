"""What all benchmark scripts share: where the data is, what the machine is, cells that are run once and kept, results as JSON and Markdown."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
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
    kept = {**result, "made": {**{name: made[name] for name in ("date", "commit", "processor")}, "torch": made["versions"]["torch"]}}
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


def environment_lines(env: dict[str, Any]) -> str:
    """The environment in two lines of Markdown."""
    return f"`{env['command']}`, {env['date']}, commit {env['commit']}\n\n{env['processor']}, {env['threads']} threads, {versions_line(env)}\n"


def versions_line(env: dict[str, Any]) -> str:
    """Python and the packages, in one line."""
    return f"Python {env['python']}, " + ", ".join(f"{name} {number}" for name, number in env["versions"].items() if number)


def cells_lines(env: dict[str, Any], *folders: Path) -> str:
    """Where a table comes from that is put together from cells, each run by itself and kept: what they say of their making, and the environment that wrote the table.

    Args:
        env: As `environment` gives it.
        folders: Of the cells.
    """
    cells = [json.loads(path.read_text()) for folder in folders for path in sorted(folder.glob("*.json"))]
    processors = Counter(cell.get("made", {}).get("processor", "one that was not kept") for cell in cells)
    torches = Counter((cell.get("versions") or {}).get("torch") or cell.get("made", {}).get("torch", "one that was not kept") for cell in cells)
    said = [", ".join(f"{name} ({count})" for name, count in found.most_common()) for found in (processors, torches)]
    written = f"The table was written by `{env['command']}`, {env['date']}, commit {env['commit']}, {versions_line(env)}"
    return f"{len(cells)} cells, run one by one, on one or two threads; processor {said[0]}; torch {said[1]}. {written}\n"
