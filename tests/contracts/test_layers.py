"""Imports point down: the layers contract, the package root, and siblings in folders of parts."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCE = ROOT / "src" / "lorabel"
FILES = sorted(SOURCE.rglob("*.py"))


def imports(file: Path):
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_layers_contract_holds():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_nothing_inside_imports_the_package_root_or_its_own_folder(file):
    found = list(imports(file))
    assert "lorabel" not in found
    folder = ".".join(["lorabel", *file.relative_to(SOURCE).parent.parts])
    names_from_root = [name for name in found if name == "lorabel.__version__"]
    assert names_from_root == []
    if folder != "lorabel" and file.name != "__init__.py":
        assert folder not in found, "import the file, not the folder"


@pytest.mark.parametrize("folder", ["methods", "baselines", "metrics", "losses", "exporters", "data/readers", "data/augmentations"])
def test_parts_import_their_base_and_no_sibling(folder):
    package = "lorabel." + folder.replace("/", ".")
    names = {file.stem for file in (SOURCE / folder).glob("*.py") if not file.stem.startswith("base")} - {"__init__"}
    for name in names:
        for found in imports(SOURCE / folder / f"{name}.py"):
            part = found.removeprefix(package + ".").partition(".")[0] if found.startswith(package + ".") else None
            assert part not in names, f"{folder}/{name}.py imports its sibling {part}"


def test_no_file_is_called_utils():
    assert not [file for file in FILES if file.stem in {"utils", "helpers", "common", "misc"}]


def test_the_library_does_not_print_assert_for_users_or_swallow_errors():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{file}:{node.lineno}: bare except"
            is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not is_print, f"{file}: print"


def test_nothing_is_ever_unpickled():
    for file in FILES:
        for name in imports(file):
            assert name.partition(".")[0] not in {"pickle", "joblib", "dill", "cloudpickle", "shelve"}, file
        text = file.read_text("utf-8")
        assert "torch.load(" not in text, file
        assert "allow_pickle=True" not in text, file
