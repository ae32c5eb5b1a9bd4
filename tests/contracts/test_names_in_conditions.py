"""No registered name decides anything outside its own file: `if method == "lora"` is a defect. Families live in one table."""

import ast

import pytest

from lorabel.families import FAMILIES
from lorabel.registry import AUGMENTATIONS, BASELINES, EXPORTERS, LOSSES, METHODS, METRICS, REGULARISERS, WEIGHTINGS
from tests.conftest import ROOT

SOURCE = ROOT / "src" / "lorabel"
# Names of metrics double as fields of results (`accuracy`), so only methods, baselines, losses and exporters are searched; "none" would be no name.
NAMES = {name for registry in (METHODS, BASELINES, LOSSES, REGULARISERS, WEIGHTINGS, AUGMENTATIONS, EXPORTERS) for name in registry.names()}
FILES = sorted(SOURCE.rglob("*.py"))


def decisions(tree):
    """Expressions that choose a path: tests of if / while / conditional / match, comparisons, and keys of look-up tables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            yield node.test
        elif isinstance(node, ast.Compare):
            yield node
        elif isinstance(node, ast.match_case):
            yield node.pattern


def names_in(tree, names):
    for expression in decisions(tree):
        for node in ast.walk(expression):
            if isinstance(node, ast.Constant) and node.value in names:
                yield node.lineno, node.value


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_registered_name_in_a_condition(file):
    found = {name for _, name in names_in(ast.parse(file.read_text("utf-8")), NAMES)}
    assert found <= {file.stem}


@pytest.mark.parametrize("file", [file for file in FILES if file.name != "families.py"], ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_family_name_in_a_condition(file):
    assert list(names_in(ast.parse(file.read_text("utf-8")), set(FAMILIES))) == []


def test_the_search_finds_what_it_should():
    bad = "def f(m):\n    if m.name == 'lora': return 1\n    x = 2 if m in ('full', 'y') else 3\n    match m:\n        case 'head_only': pass\n"
    assert {name for _, name in names_in(ast.parse(bad), {"lora", "full", "head_only"})} == {"lora", "full", "head_only"}
    assert {"lora", "full", "head_only", "cross_entropy", "r_drop", "mixup", "balanced", "word_dropout"} <= NAMES
    assert METRICS.kind == "metric"
