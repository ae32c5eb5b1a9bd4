"""What the README and the pages in docs/ show is what happens."""

import re

import pytest

from lorabel import errors
from lorabel.cli.main import _VERBS
from lorabel.cli.output import out
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = [page for page in PAGES if page.name != "CONTRIBUTING.md"]
BLOCKS = [block for page in SHOWN for block in re.findall(r"```\w*\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)]
ONE_COMMAND = re.compile(rf"lorabel (?:{'|'.join(_VERBS)})\b(?:(?!   |#).)*")
COMMANDS = [part.strip() for block in BLOCKS for line in block.splitlines() for part in ONE_COMMAND.findall(line)]


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.startswith("$ lorabel plan")])
def test_the_plan_shown_is_the_plan_printed(block, run_cli, monkeypatch):
    command, _, shown = block.partition("\n")
    monkeypatch.setattr(out, "_width", 200)  # It read COLUMNS when it was made, which another test may have asked for.
    done = run_cli(*command.split()[2:])
    assert done.code == 0
    printed = "\n".join(line.rstrip() for line in done.out.splitlines())
    parts = [part.strip() for part in shown.split("…")]
    assert printed.strip() == parts[0] if len(parts) == 1 else all(part in printed for part in parts)


def test_the_sentence_on_the_largest_ranks(run_cli):
    plan = ("plan", "--encoder", "roberta-base", "--classes", "4", "--json")
    for head, rank, targets in (("native", 11, "query,value"), ("linear", 27, "query,value"), ("linear", 6, "all-linear")):
        assert run_cli(*plan, "--head", head, "--targets", targets, "--rank", rank).code == 0
        assert run_cli(*plan, "--head", head, "--targets", targets, "--rank", rank + 1).code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_shown_exists(command, run_cli):
    _, verb, *words = command.split()
    help_text = run_cli(verb, "--help").out
    for word in words:
        if re.fullmatch(r"--?[a-z][a-z-]*", word):
            assert re.search(rf"(?<![\w-]){word}(?![\w-])", help_text), word


def test_commands_were_found():
    assert {command.split()[1] for command in COMMANDS} == set(_VERBS)


def test_the_exit_codes_are_those_of_the_errors():
    table = (ROOT / "docs" / "scripts.md").read_text("utf-8").partition("| exit code |")[2].partition("\n\n")[0]
    shown = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, flags=re.MULTILINE) for code in row.split(",")}
    raised = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LorabelError)}
    assert shown == raised | {0, 130, 143}


def test_the_tree_names_what_is_there():
    (tree,) = [block for block in BLOCKS if block.startswith("src/lorabel/")]
    for line in tree.splitlines():
        folder = ROOT / "src" / "lorabel" if line.startswith("  ") else ROOT
        for name in line.strip().split("   ")[0].split():
            assert (folder / name).exists(), name


def test_the_example_with_scikit_learn_runs(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in BLOCKS if block.startswith("from sklearn")]
    encoder = repr(str(tiny_encoder("bert")))
    small = f'{encoder}, num_epochs=1, settings={{"training": {{"threads": 1}}}}'
    for shown, run in (('"minilm"', small), ('load("my-adapter"', f'load("my-adapter", encoder={encoder}'), ("cv=3", "cv=2")):
        assert shown in block
        block = block.replace(shown, run)
    texts = [f"{words} {index}" for index in range(12) for words in ("the team won", "bank shares fell")]
    found = {"texts": texts, "labels": ["sport", "money"] * 12}
    exec(block, found)
    assert set(found["search"].best_params_) == {"rank", "learning_rate"}
    assert (tmp_path / "my-adapter" / "lorabel.json").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    for target, _, place in (link.partition("#") for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)):
        there = page if not target else page.parent / target
        assert there.exists(), target
        assert not place or place in headings(there), f"{target}#{place}"
    for path in re.findall(r"`((?:tests|src|benchmarks|docs)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


def headings(page):
    """Names by which the headings of a page are linked to."""
    lines = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_that_are_said_to_give_a_figure_are_there(page):
    text = page.read_text("utf-8")
    for script in re.findall(r"`python (benchmarks/\w+\.py)", text):
        assert (ROOT / script).exists(), script
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", text)) <= targets


def test_every_page_is_named_in_the_readme():
    text = (ROOT / "README.md").read_text("utf-8")
    assert all(f"docs/{page.name}" in text for page in (ROOT / "docs").glob("*.md"))
