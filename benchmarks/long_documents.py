"""Long documents: cut at 256 tokens, cut at 512, and read in windows of 256, on IMDb-10k with the default recipe and the embedded encoder.

All ways see the same training, validation and test rows. Each (way, seed) is a cell, run once in a process of its own and kept in benchmarks/results/long_documents/; a stopped
run goes on. The test split of a cell is read once, at its end. Beside all rows stand those that are longer than 256 and than 512 tokens: nothing can be gained on the others.

    python benchmarks/long_documents.py [--rows 2000] [--validation-rows 1000] [--test-rows 2000] [--seeds 3] [--ways …] [--threads N] [--max-minutes N] [--data FOLDER] [--table-only]
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness import RESULTS, cells_lines, data_folder, environment, in_a_process, markdown, once, save_json

SET = "imdb_10k"
WAYS: dict[str, dict[str, Any]] = {
    "cut_256": {"max_length_tokens": 256},
    "cut_512": {"max_length_tokens": 512},
    "windows_256": {"max_length_tokens": 256, "long_texts": "windows"},
    "windows_256_max": {"max_length_tokens": 256, "long_texts": "windows", "window_pooling": "max"},
}
PAIRS = (("windows_256", "cut_256"), ("windows_256", "cut_512"), ("cut_512", "cut_256"), ("windows_256_max", "windows_256"))
LIMITS = (256, 512)
CELLS = RESULTS / "long_documents"
RESAMPLES = 10_000


@dataclass(frozen=True)
class Sizes:
    """Rows of each split that every cell sees."""

    train: int
    validation: int
    test: int

    @property
    def name(self) -> str:
        """For the names of cells."""
        return f"{self.train}-{self.validation}-{self.test}"


def run_cell(folder: Path, way: str, seed: int, sizes: Sizes, threads: int) -> dict[str, Any]:
    """Train and test one cell; keeps which test rows were right, and which are longer than each limit."""
    from lorabel.config import load_config
    from lorabel.data.load import load_data
    from lorabel.data.packing import tokenise
    from lorabel.data.splits import draw
    from lorabel.inference.predictor import table_logits
    from lorabel.workflows.building import load_predictor
    from lorabel.workflows.train import run_train

    data = {"source": str(folder / SET), "limit_rows": sizes.train, "validation_rows": sizes.validation, **WAYS[way]}
    config = load_config({"data": data, "training": {"seed": seed, "threads": threads}})
    with tempfile.TemporaryDirectory() as out:
        record = run_train(config, Path(out) / "run").record
        predictor, _ = load_predictor(Path(out) / "run" / "adapter")
    loaded = load_data(config.data)
    test = loaded.splits["test"]
    chosen = draw(test.labels, sizes.test, seed=0)
    texts = [test.texts[int(row)] for row in chosen]
    whole = tokenise(texts, predictor.tokenizer, predictor.tokenizer_digest, 1 << 20).lengths
    started = time.perf_counter()
    table = predictor.tokenise(texts)
    correct = table_logits(predictor.bank, table).argmax(axis=1) == test.labels[chosen]
    return {
        "n": len(chosen),
        "accuracy": float(correct.mean()),
        "correct": as_bits(correct),
        "longer_than": {str(limit): as_bits(whole > limit) for limit in LIMITS},
        "test_tokens": int(whole.sum()),
        "test_tokens_read": int(table.lengths.sum()),
        "test_seconds": time.perf_counter() - started,
        "digests": {name: split.digest for name, split in loaded.splits.items()},
        "validation": record.metrics.validation.accuracy,
        "rows": {name: len(split) for name, split in loaded.splits.items()},
        "windows": record.data.get("windows"),
        "cut_rows": record.data["truncated_rows"],
        "seconds": record.training.seconds,
        "tokens_per_second": record.training.tokens_per_second,
        "peak_memory_bytes": record.training.peak_memory_bytes,
        "precision": record.plan["precision"],
        "versions": record.versions,
    }


def as_bits(flags: np.ndarray) -> str:
    """Flags as hexadecimal text."""
    return np.packbits(flags).tobytes().hex()


def from_bits(text: str, count: int) -> np.ndarray:
    """What `as_bits` was given."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:count].astype(bool)


def load_cells(way: str, sizes: Sizes) -> dict[int, dict[str, Any]]:
    """All finished seeds of a way."""
    found = CELLS.glob(f"{way}-{sizes.name}-*.json")
    return {int(path.stem.rsplit("-", 1)[1]): json.loads(path.read_text()) for path in sorted(found)}


def correct_rows(cell: dict[str, Any], longer_than: int | None) -> np.ndarray:
    """Where a cell was right, on all test rows or on those longer than a limit."""
    correct = from_bits(cell["correct"], cell["n"])
    return correct if longer_than is None else correct[from_bits(cell["longer_than"][str(longer_than)], cell["n"])]


def paired(a: list[dict[str, Any]], b: list[dict[str, Any]], longer_than: int | None) -> tuple[float, float, float, float]:
    """Accuracy of a minus accuracy of b over the same seeds and rows.

    Returns:
        Mean over seeds; its 95 % interval, from resampled rows; the p-value of McNemar's exact test, merged over the seeds.
    """
    from lorabel.stats import mcnemar_exact, merged_p_value

    ours, theirs = (np.array([correct_rows(cell, longer_than) for cell in cells]) for cells in (a, b))
    of_rows = (ours.astype(float) - theirs).mean(axis=0)
    generator = np.random.default_rng(0)
    drawn = np.array([of_rows[generator.integers(len(of_rows), size=len(of_rows))].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(drawn, [0.025, 0.975])
    p_value = merged_p_value([mcnemar_exact(one, other) for one, other in zip(ours, theirs, strict=True)])
    return float(of_rows.mean()), float(low), float(high), p_value


def write_table(sizes: Sizes, seeds: int, threads: int) -> None:
    """The table of what is finished, and the paired comparisons."""
    from lorabel.stats import holm, mean_and_spread

    cells = {way: load_cells(way, sizes) for way in WAYS}
    finished = [cell for of_way in cells.values() for cell in of_way.values()]
    if not finished:
        sys.exit("error: no cell is finished, so there is no table to write")
    if len({json.dumps(cell["digests"], sort_keys=True) for cell in finished}) > 1:
        sys.exit(f"error: the cells in {CELLS} were not run on the same rows; remove those that are out of date")
    first, env = finished[0], environment(threads)
    counts = {limit: int(from_bits(first["longer_than"][str(limit)], first["n"]).sum()) for limit in LIMITS}
    # A small draw may hold no row that is longer.
    limits = [limit for limit in LIMITS if counts[limit]]
    lines, summary = [], {}
    for way, of_way in cells.items():
        if not of_way:
            continue
        found = list(of_way.values())
        scores = [mean_and_spread([float(correct_rows(cell, limit).mean()) for cell in found]) for limit in (None, *limits)]
        summary[way] = {
            "seeds": len(found),
            "accuracy": scores[0][0],
            **{f"longer_than_{limit}": mean for limit, (mean, _) in zip(limits, scores[1:], strict=True)},
        }
        shown = [f"{100 * mean:.2f} ± {100 * spread:.2f}" if len(found) > 1 else f"{100 * mean:.2f}" for mean, spread in scores]
        windows = found[0]["windows"]
        each = f"{windows['train']['mean']:.2f}" if windows else "1"
        seconds, memory = (float(np.mean([cell[name] for cell in found])) for name in ("seconds", "peak_memory_bytes"))
        lines.append([way, str(len(found)), *shown, each, f"{found[0]['cut_rows']['train']:,}", f"{seconds:.0f} s", f"{memory / 1e9:.1f} GB"])
    compared = []
    for one, other in PAIRS:
        common = sorted(cells[one].keys() & cells[other].keys())
        for limit in (None, *limits) if common else ():
            compared.append((one, other, limit, len(common), paired([cells[one][seed] for seed in common], [cells[other][seed] for seed in common], limit)))
    corrected = holm([found[3] for *_, found in compared])
    differences = [
        [
            f"{one} − {other}",
            "all" if limit is None else f"> {limit} tokens",
            str(count),
            f"{100 * mean:+.2f}",
            f"{100 * low:+.2f} … {100 * high:+.2f}",
            f"{p:.3f}",
        ]
        for (one, other, limit, count, (mean, low, high, _)), p in zip(compared, corrected, strict=True)
    ]
    text = f"# Long documents: {SET}, embedded encoder, default recipe\n\n"
    text += f"{first['rows']['train']:,} training rows, {first['rows']['validation']:,} validation rows, {first['n']:,} test rows, the same for every way; of the test rows "
    text += f"{counts[256]:,} are longer than 256 tokens and {counts[512]:,} longer than 512. Test accuracy in percent, mean ± deviation over seeds; "
    text += "windows per training text; training rows that lost tokens.\n\n"
    header = ["texts", "seeds", "accuracy", *(f"> {limit} tokens" for limit in limits), "windows", "cut", "training", "memory"]
    text += markdown(header, lines)
    text += "\n## Differences on the same rows and seeds, in points\n\nInterval: rows resampled, seeds as they are. "
    text += "p: McNemar's exact test, merged over seeds, Holm's correction over this table.\n\n"
    text += markdown(["difference", "test rows", "seeds", "mean", "95 % interval", "p"], differences)
    missing = [f"{way} ({len(of_way)} of {seeds} seeds)" for way, of_way in cells.items() if len(of_way) < seeds]
    text += f"\nNot run yet: {', '.join(missing) if missing else 'nothing'}.\n"
    (RESULTS / "long_documents.md").write_text(text + "\n" + cells_lines(env, CELLS))
    kept = [
        {"a": one, "b": other, "longer_than": limit, "seeds": count, "mean": found[0], "low": found[1], "high": found[2], "p": p}
        for (one, other, limit, count, found), p in zip(compared, corrected, strict=True)
    ]
    save_json(RESULTS / "long_documents.json", {"environment": env, "ways": summary, "differences": kept, "missing": missing})


def main() -> None:
    """Run missing cells until done or out of time, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="training rows")
    parser.add_argument("--validation-rows", type=int, default=1000)
    parser.add_argument("--test-rows", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-minutes", type=float, default=1e9)
    parser.add_argument("--data")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = data_folder(arguments.data)
    sizes, threads = Sizes(arguments.rows, arguments.validation_rows, arguments.test_rows), arguments.threads
    if arguments.cell:
        way, seed = arguments.cell
        print(json.dumps(run_cell(folder, way, int(seed), sizes, threads)))
        return
    deadline = time.monotonic() + 60 * arguments.max_minutes
    cells = [(way, seed) for seed in range(arguments.seeds) for way in arguments.ways]
    for way, seed in [] if arguments.table_only else cells:
        if time.monotonic() > deadline:
            break
        words = [__file__, "--data", str(folder), "--rows", str(sizes.train), "--validation-rows", str(sizes.validation), "--test-rows", str(sizes.test)]
        words += ["--threads", str(threads), "--cell", way, str(seed)]
        name = f"{way}-{sizes.name}-{seed}"
        cell = once(CELLS / f"{name}.json", lambda words=words, name=name: in_a_process(name, words))
        print(f"{way} seed {seed}: {100 * cell['accuracy']:.2f} %, {cell['seconds']:.0f} s of training", flush=True)
    write_table(sizes, arguments.seeds, threads)


if __name__ == "__main__":
    main()
