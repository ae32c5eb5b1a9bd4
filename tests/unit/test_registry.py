"""Registries: discovery by folder, helpful refusals, no silent replacement."""

import sys
import textwrap

import pytest

from lorabel.errors import ConfigError
from lorabel.registry import AUGMENTATIONS, EXPORTERS, LOSSES, METHODS, METRICS, REGULARISERS, WEIGHTINGS, Registry, unknown_name


@pytest.fixture
def folder(tmp_path, monkeypatch):
    package = tmp_path / "things_for_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [name for name in sys.modules if name.startswith("things_for_a_test")]:
        del sys.modules[name]


def test_a_file_in_the_folder_is_all_it_takes(folder, monkeypatch):
    registry = Registry("thing", "things_for_a_test")
    monkeypatch.setattr("tests.unit.test_registry.TABLE", registry, raising=False)
    (folder / "new.py").write_text(
        textwrap.dedent("""
        from tests.unit.test_registry import TABLE

        @TABLE.register("new")
        class New: pass
        """)
    )
    assert registry.names() == ["new"]
    assert "new" in registry
    assert registry.get("new").__name__ == "New"


def test_an_unknown_name_lists_the_names_and_the_closest(folder):
    registry = Registry("thing", "things_for_a_test")
    registry.register("lora")(int)
    registry.register("prompt")(str)
    with pytest.raises(ConfigError, match=r"thing: unknown name, got 'lorra'; expected one of lora, prompt\. Did you mean 'lora'\?"):
        registry.get("lorra")


def test_a_name_is_not_replaced_by_another_thing():
    registry = Registry("thing", "things_for_a_test")
    registry.register("x")(int)
    registry.register("x")(int)
    with pytest.raises(ConfigError, match="the name is taken, got 'x'"):
        registry.register("x")(str)
    # Of the same name, but of another module.
    with pytest.raises(ConfigError, match="the name is taken, got 'x'"):
        registry.register("x")(type("int", (), {"__module__": "elsewhere"}))


def test_no_close_name_gives_no_guess():
    assert "Did you mean" not in unknown_name("method", "zzz", ["lora", "full"])


def test_the_shipped_tables_are_filled_by_their_folders():
    assert {"full", "head_only", "lora"} <= set(METHODS.names())
    assert "cross_entropy" in LOSSES
    assert {"mixup", "r_drop"} <= set(REGULARISERS.names())
    assert set(AUGMENTATIONS.names()) >= {"sentence_shuffle", "word_dropout"}
    assert {"balanced", "effective"} <= set(WEIGHTINGS.names())
    METRICS.names()
    EXPORTERS.names()


def test_a_table_whose_folder_cannot_be_read_is_not_taken_for_a_shorter_one(folder, monkeypatch):
    registry = Registry("thing", "things_for_a_test")
    monkeypatch.setattr("tests.unit.test_registry.TABLE", registry, raising=False)
    (folder / "a.py").write_text("from tests.unit.test_registry import TABLE\n\n@TABLE.register('a')\nclass A: pass\n")
    (folder / "b.py").write_text("import a_library_that_nobody_has\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="a_library_that_nobody_has"):
            registry.names()
    (folder / "b.py").write_text("")
    assert registry.names() == ["a"]
