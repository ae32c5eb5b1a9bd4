"""Help, `import lorabel` and `plan` are quick and load nothing heavy.

Measured in fresh processes, in processor time: on a machine that does other things as well, waiting is not ours. benchmarks/cli_speed.py reads the clock. On a slow machine the
limits stretch with what it takes, at the same moment, to import some modules of the standard library: a tenth of a second where the limits were set. Other work on the machine
only ever makes a command slower, so that one try of ten within the limit is enough; a command that has become slow fails all ten.
"""

import resource
import subprocess
import sys

import pytest

from lorabel.cli.main import _VERBS

HEAVY = ("torch", "transformers", "tokenizers", "sklearn", "scipy", "pyarrow", "matplotlib", "numpy", "huggingface_hub", "safetensors", "pandas")
HELPS = [("--help",), ("--version",), *((verb, "--help") for verb in _VERBS)]
PLAN = (
    "plan",
    "--encoder",
    "roberta-base",
    "--classes",
    "4",
    "--method",
    "lora",
    "--rank",
    "8",
    "--alpha",
    "16",
    "--targets",
    "query,value",
    "--head",
    "native",
    "--json",
)


STANDARD = "import asyncio, argparse, decimal, email.message, http.client, logging.config, pydoc, unittest.mock, xml.dom.minidom"


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds(*words):
    before = processor_seconds()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return processor_seconds() - before


def assert_takes_less_than(limit, *words):
    tries = []
    while len(tries) < 10 and (not tries or tries[-1] >= limit):
        taken = seconds(*words)
        tries.append(taken / max(1.0, seconds("-c", STANDARD) / 0.1))
    assert tries[-1] < limit, tries


def modules_after(*words):
    code = "import sys\nfrom lorabel.cli.main import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in done.stderr.splitlines()}


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_takes_less_than_half_a_second(words):
    assert_takes_less_than(0.5, "-m", "lorabel", *words)


def test_import_takes_less_than_a_fifth_of_a_second():
    assert_takes_less_than(0.2, "-c", "import lorabel")


def test_plan_takes_less_than_a_second():
    assert_takes_less_than(1.0, "-m", "lorabel", *PLAN)


@pytest.mark.parametrize("words", [*HELPS, PLAN, PLAN[:-1], ("methods",), ("methods", "lora"), ("plan", "--rank", "0"), ("nonsense",)], ids=" ".join)
def test_nothing_heavy_is_loaded(words):
    assert modules_after(*words) & set(HEAVY) == set()


def test_importing_the_package_loads_nothing_else():
    code = "import sys; before = set(sys.modules); import lorabel; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not any(name in done.stdout for name in (*(f"'{name}'" for name in HEAVY), "'pydantic'", "'rich'", "'cyclopts'"))


def test_public_names_are_there_when_asked_for():
    import lorabel

    for name in lorabel.__all__:
        assert getattr(lorabel, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lorabel.nothing  # noqa: B018
