"""What `audit` finds of planted duplicates, how often it cries wolf, and what a million rows take.

Recall: exact copies (case and spaces changed) and near copies (words changed at random until the five-grams' Jaccard index lies between 0.8 and 1) of AG News training rows are planted, in
the training split itself and in a test split of nothing else; asked for are at least 95 % of each kind, found as what they are. False alarms: on a sample every pair is compared by sets of
word tuples (not by our hashes); asked for are at most 1 % of the rows without a partner.
Large tables: millions of rows, halves of AG News rows put together anew, through `run_audit` in a process of its own, with the encoder's truncation check.

    python benchmarks/audit.py [--rows 20000] [--planted 1000] [--sample 10000] [--data FOLDER]      # about half a minute
    python benchmarks/audit.py --millions 1 10 [--data FOLDER]                                      # adds a table of a million rows, and one of ten; ten minutes
    python benchmarks/audit.py --rows 600 --planted 50 --sample 300 --results tried                 # a try, in seconds; the results are left alone
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import RESULTS, data_folder, environment, environment_lines, in_a_process, markdown, save_json

MILLION = 1_000_000
# What is asked of one million rows: seconds, bytes.
MOST_SECONDS, MOST_BYTES = 180, 2e9
# Of planted copies: in the split of the row that they repeat, and in a later one.
PLACES = ("within", "across")


def main() -> None:
    """Measure, keep what an earlier call measured, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--planted", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=10_000)
    parser.add_argument("--millions", type=int, nargs="*", default=[])
    parser.add_argument("--data")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(timed(Path(arguments.worker))))
        return
    texts = agnews_texts(data_folder(arguments.data))
    path = arguments.results / "audit.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        facts = {"planted": planted(texts, Path(scratch), arguments), "false_alarms": false_alarms(texts, Path(scratch), arguments.sample)}
        facts["large"] = before.get("large", {}) | {str(count): large(texts, Path(scratch), count) for count in arguments.millions}
    env = environment(os.cpu_count() or 1)
    save_json(path, {"environment": env, **facts})
    (arguments.results / "audit.md").write_text(report(facts) + "\n" + environment_lines(env))
    print(report(facts))


def agnews_texts(folder: Path) -> list[str]:
    """Training texts, each normal form once."""
    import pyarrow.parquet as parquet

    from lorabel.data.texts import normalise

    texts = parquet.read_table(folder / "ag_news" / "train.parquet")["text"].to_pylist()
    return list({normalise(text): text for text in texts}.values())


def write_table(folder: Path, files: dict[str, list[str]]) -> Path:
    """Texts as Parquet files of these names, with two labels in turn."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        parquet.write_table(pa.table({"text": rows, "label": ["ab"[row % 2] for row in range(len(rows))]}), folder / f"{name}.parquet")
    return folder


def planted(texts: list[str], scratch: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Planted copies and how many are found as what they are, within the training split and across splits; each is of a row of its own."""
    random = np.random.default_rng(0)
    base = [texts[row] for row in random.permutation(len(texts))[: arguments.rows]]
    chosen = iter(random.permutation(len(base)).tolist())
    exact = {place: [spaced(base[next(chosen)], random) for _ in range(arguments.planted)] for place in PLACES}
    near = {place: near_copies(base, chosen, arguments.planted, random) for place in PLACES}
    train, test = ([*exact[place], *(text for text, _ in near[place])] for place in PLACES)
    audit = run(write_table(scratch / "planted", {"train": [*base, *train], "test": test}))
    facts: dict[str, object] = {"rows": len(base) + len(train) + len(test)}
    first = len(base)
    for place in PLACES:
        copies, indices = len(exact[place]), np.array([index for _, index in near[place]])
        is_exact, is_near = (np.isin(first + np.arange(copies + len(indices)), audit.concerned[f"{kind}_{place}"]) for kind in ("exact", "near"))
        facts[place] = {
            "exact": [copies, int(is_exact[:copies].sum())],
            "near": [len(indices), int(is_near[copies:].sum())],
            "near_by_jaccard": by_jaccard(indices, is_near[copies:]),
        }
        first += copies + len(indices)
    return facts


def near_copies(base: list[str], chosen: Iterator[int], count: int, random: np.random.Generator) -> list[tuple[str, float]]:
    """Near copies of the next rows and their Jaccard indices, as many as asked for or as the rows give."""
    made = (changed(base[row], base, random) for row in chosen)
    return list(islice((copy for copy in made if copy is not None), count))


def by_jaccard(indices: NDArray[np.float64], is_found: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Copies and found ones in bins of their Jaccard index."""
    edges = np.array([0.8, 0.85, 0.9, 0.95, 1.0])
    bins = np.clip(np.digitize(indices, edges) - 1, 0, len(edges) - 2)
    return {f"{edges[at]:g} to {edges[at + 1]:g}": [int((bins == at).sum()), int(is_found[bins == at].sum())] for at in range(len(edges) - 1)}


def spaced(text: str, random: np.random.Generator) -> str:
    """The same text to a reader: other case, more spaces."""
    return (text.upper() if random.random() < 0.5 else text.lower()).replace(" ", "  " if random.random() < 0.5 else "\t")


def changed(text: str, others: list[str], random: np.random.Generator) -> tuple[str, float] | None:
    """A near copy and its Jaccard index of five-grams with the text, in [0.8, 1); None where the draw gives none."""
    from lorabel.data.grams import five_grams

    parts = text.split()
    for _ in range(int(random.integers(1, 5))):
        word = str(random.choice(others[int(random.integers(len(others)))].split()))
        place = int(random.choice([0, len(parts) - 1, int(random.integers(len(parts)))]))
        kind = int(random.integers(3))
        parts = [*parts[:place], *([word] if kind < 2 else []), *parts[place + (kind > 0) :]]
        if not parts:
            return None
    copy = " ".join(parts)
    mine, theirs = five_grams(text), five_grams(copy)
    index = len(mine & theirs) / max(1, len(mine | theirs))
    return (copy, index) if 0.8 <= index < 1 else None


def false_alarms(texts: list[str], scratch: Path, sample: int) -> dict[str, int]:
    """Rows called near duplicates against a comparison of all pairs, on the rows of a sample to which near copies were added."""
    from lorabel.data.grams import five_grams

    random = np.random.default_rng(1)
    rows = [texts[row] for row in random.permutation(len(texts))[:sample]]
    # Copies on both sides of the threshold are the hard cases: from none to a quarter of the words changed.
    for row in range(0, sample, 10):
        words = rows[row].split()
        for place in random.permutation(len(words))[: int(random.integers(0, max(1, len(words) // 4)))]:
            words[place] = str(random.choice(rows[int(random.integers(sample))].split()))
        rows.append(" ".join(words))
    audit = run(write_table(scratch / "sample", {"train": rows}))
    called = set(audit.concerned["near_within"].tolist()) | set(audit.concerned["exact_within"].tolist())
    sets = [five_grams(text) for text in rows]
    owners: dict[tuple[str, ...], list[int]] = {}
    real = set()
    for row, grams in enumerate(sets):
        partners = {other for gram in grams for other in owners.get(gram, [])}
        if any(len(grams & sets[other]) >= 0.8 * len(grams | sets[other]) for other in partners):
            real.add(row)
        for gram in grams:
            owners.setdefault(gram, []).append(row)
    return {"rows": len(rows), "real": len(real), "found": len(called & real), "false": len(called - real)}


def run(folder: Path) -> Any:
    """The audit of a folder."""
    from lorabel.config import load_config
    from lorabel.workflows.audit import run_audit

    return run_audit(load_config({"data": {"source": str(folder)}})).audit


def large(texts: list[str], scratch: Path, millions: int) -> dict[str, object]:
    """Time and peak memory for so many million rows, and how busy the machine was."""
    random = np.random.default_rng(2)
    halves = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in (text.split() for text in texts)]
    folder = scratch / f"{millions}-million"
    for part in range(millions):
        left, right = random.integers(0, len(halves), MILLION), random.integers(0, len(halves), MILLION)
        rows = [" ".join([*halves[i][0], *halves[j][1]]) for i, j in zip(left.tolist(), right.tolist(), strict=True)]
        write_table(folder, {f"train-{part:05}-of-{millions:05}": rows})
    load = os.getloadavg()[0]
    found = in_a_process(f"{millions} million rows", [str(Path(__file__).resolve()), "--worker", str(folder)])
    return {**found, "load_before": load, "load_after": os.getloadavg()[0], **environment(os.cpu_count() or 1)}


def timed(folder: Path) -> dict[str, object]:
    """The audit of a folder in this process: seconds and peak memory, imports included in the memory alone."""
    from lorabel.config import load_config
    from lorabel.workflows.audit import run_audit

    config = load_config({"data": {"source": str(folder)}})
    start, cpu = time.perf_counter(), time.process_time()
    audit = run_audit(config).audit
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    duplicates = audit.duplicates
    return {
        "rows": sum(audit.rows.values()),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "exact": duplicates.exact_within,
        "near": duplicates.near_within,
        "truncated": audit.truncated,
    }


def report(facts: dict[str, dict[str, object]]) -> str:
    """The results as Markdown."""
    found, alarms, large = facts["planted"], facts["false_alarms"], facts["large"]
    where = {"within": "within the training split", "across": "in the test split, of training rows"}
    rows = []
    for place in PLACES:
        copies = found[place]
        rows.append([f"exact (case and spaces changed), {where[place]}", *shares(copies["exact"])])
        rows.append([f"near, Jaccard 0.8 and more, {where[place]}", *shares(copies["near"])])
        rows += [[f"near, {name}, {place}", *shares(counts)] for name, counts in copies["near_by_jaccard"].items() if counts[0]]
    text = f"# Audit: planted duplicates\n\nCopies planted among AG News rows, {found['rows']:,} rows in all.\n\n" + markdown(
        ["copies", "planted", "found"], rows
    )
    clean = alarms["rows"] - alarms["real"]
    text += (
        f"\nAgainst a comparison of all pairs on {alarms['rows']:,} rows: {alarms['found']:,} of {alarms['real']:,} rows with an earlier partner are found, "
    )
    text += f"{alarms['false']:,} of {clean:,} without one are called duplicates ({share(alarms['false'], clean)}).\n\n"
    least = min(hits / count for place in PLACES for count, hits in (found[place]["exact"], found[place]["near"]))
    verdict = least >= 0.95 and alarms["false"] <= 0.01 * clean
    text += f"Asked for: 95 % of each kind found, at most 1 % false alarms: {'reached' if verdict else 'not reached'}.\n\n"
    if not large:
        return text + "Large tables: not run yet (`--millions 1 10`).\n"
    text += "Large tables, rows put together from halves of AG News rows; memory at the peak, imports and mapped files included:\n\n"
    headings = ["rows", "seconds", "of the processor", "memory, GB", "exact duplicates", "near", "cut", "load before and after", "date, processor"]
    text += markdown(headings, [large_row(one) for _, one in sorted(large.items(), key=lambda item: int(item[0]))])
    if "1" in large:
        is_met = large["1"]["seconds"] < MOST_SECONDS and large["1"]["peak_bytes"] < MOST_BYTES
        text += f"\nAsked for, of a million: {MOST_SECONDS} s and {MOST_BYTES / 1e9:g} GB: {'reached' if is_met else 'not reached'}.\n"
    return text


def large_row(one: dict[str, Any]) -> list[str]:
    """A row of the table of large tables."""
    counts = [f"{one[name]:,}" for name in ("exact", "near", "truncated")]
    load = f"{one['load_before']:.1f}, {one['load_after']:.1f}"
    return [
        f"{one['rows']:,}",
        f"{one['seconds']:.0f}",
        f"{one['cpu_seconds']:.0f}",
        f"{one['peak_bytes'] / 1e9:.2f}",
        *counts,
        load,
        f"{one['date']}, {one['processor']}",
    ]


def shares(counts: list[int]) -> tuple[str, str]:
    """How many were planted, and which share was found."""
    return f"{counts[0]:,}", share(counts[1], counts[0])


def share(part: object, whole: object) -> str:
    """A percentage."""
    return f"{100 * part / whole:.1f} %"


if __name__ == "__main__":
    main()
