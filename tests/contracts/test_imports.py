"""Every module imports on its own, and the light ones stay light."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import lorabel

MODULES = sorted(name for module in pkgutil.walk_packages(lorabel.__path__, "lorabel.") if not (name := module.name).endswith("__main__"))
HEAVY = {"torch", "transformers", "sklearn", "scipy", "matplotlib"}
# What may not load torch: data files of the design and whatever the command line touches before a verb runs.
LIGHT = [
    name
    for name in MODULES
    if name.startswith(("lorabel.methods", "lorabel.cli", "lorabel.data.types", "lorabel.data.readers"))
    or name
    in {
        "lorabel.config",
        "lorabel.families",
        "lorabel.heads",
        "lorabel.budget",
        "lorabel.registry",
        "lorabel.errors",
        "lorabel.events",
        "lorabel.evaluation",
        "lorabel.artifacts.layout",
        "lorabel.artifacts.records",
        "lorabel.workflows.plan",
        "lorabel.workflows.methods",
        "lorabel.workflows.doctor",
    }
]
OPTIONAL = {"peft", "optuna", "cleanlab", "onnx", "onnxruntime", "ray", "psutil", "datasets", "pandas"}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name):
    assert importlib.import_module(name).__doc__


def loaded_by(code):
    probe = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stdout.split())


def test_light_modules_load_no_heavy_library():
    guard = "\n".join(
        [
            "class Guard:",
            "    def find_spec(self, name, path=None, target=None):",
            f"        if name in {HEAVY!r}: raise RuntimeError(f'{{name}} was imported')",
            "sys.meta_path.insert(0, Guard())",
        ]
    )
    assert len(LIGHT) > 25
    assert not loaded_by(guard + "\n" + "\n".join(f"import {name}" for name in LIGHT)) & HEAVY


def test_the_estimator_loads_its_base_class_but_no_engine():
    assert "sklearn" in (loaded := loaded_by("import lorabel.estimator"))
    assert not loaded & {"torch", "transformers", "matplotlib"}


def test_no_module_needs_an_optional_library_to_import():
    guard = "\n".join(
        [
            "class Guard:",
            "    def find_spec(self, name, path=None, target=None):",
            f"        if name in {OPTIONAL!r}: raise ModuleNotFoundError(name)",
            "sys.meta_path.insert(0, Guard())",
        ]
    )
    assert "torch" in loaded_by(guard + "\n" + "\n".join(f"import {name}" for name in MODULES))
