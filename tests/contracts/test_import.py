"""Folders that the PEFT library saved become adapters that answer the same, for every family it can do; everything else is refused by name."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import lorabel
from lorabel.artifacts.adapter import expected_tensors, save_adapter
from lorabel.artifacts.peft_format import from_peft, read_peft
from lorabel.config import EncoderConfig
from lorabel.errors import ArtifactError, ConfigError, RefusedError
from lorabel.families import FAMILIES as NAMES
from lorabel.heads import make_head
from lorabel.methods.base import make_method
from lorabel.methods.base_ranks import SiteRanksMethod
from lorabel.models.checkpoint import resolve_encoder
from lorabel.workflows.import_adapter import run_import
from tests.conftest import FAMILIES, reference_model
from tests.contracts.test_method_contract import ALL
from tests.contracts.test_peft_parity import bundle_for

LABELS = "money,science,sport"
SITES = {"distilbert": ["q_lin", "v_lin", "lin1"]}
FORMS = {
    "lora": lambda family: peft.LoraConfig(r=3, lora_alpha=6, target_modules=sites(family)),
    "rslora": lambda family: peft.LoraConfig(r=4, lora_alpha=5, use_rslora=True, lora_dropout=0.1, target_modules=sites(family), layers_to_transform=[1]),
    "patterns": lambda family: peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=sites(family), rank_pattern={sites(family)[0]: 5}, alpha_pattern={rf"{sites(family)[1]}": 7}
    ),
    "patterns of whole names": lambda family: peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=sites(family), alpha_pattern={whole(family, 0): 7, f"^{whole(family, 1)}": 5}
    ),
    "all linear": lambda family: peft.LoraConfig(r=2, target_modules="all-linear", exclude_modules=["pooler.dense", "embeddings_project", "pre_classifier"]),
    "rslora patterns": lambda family: peft.LoraConfig(
        r=2, lora_alpha=3, use_rslora=True, target_modules=sites(family), rank_pattern={sites(family)[0]: 5}, alpha_pattern={sites(family)[2]: 7}
    ),
    "one site": lambda family: peft.LoraConfig(r=2, target_modules=r".*layer\.1\..*\." + sites(family)[0], init_lora_weights="gaussian"),
    "dora": lambda family: peft.LoraConfig(r=2, use_dora=True, target_modules=sites(family), rank_pattern={sites(family)[1]: 3}),
    "adalora": lambda family: peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, lora_alpha=5, target_modules=sites(family)),
    "ia3": lambda family: peft.IA3Config(target_modules=sites(family), feedforward_modules=[]),
    "vera": lambda family: peft.VeraConfig(r=4, target_modules=sites(family), projection_prng_key=5),
    "vera without factors": lambda family: peft.VeraConfig(r=4, target_modules=sites(family)[:2], save_projection=False),
    "beft": lambda family: peft.BeftConfig(target_modules=sites(family)),
    "prefix": lambda _: peft.PrefixTuningConfig(num_virtual_tokens=3),
    "prefix of layers": lambda _: peft.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=16),
    "prompt": lambda _: peft.PromptTuningConfig(num_virtual_tokens=3),
}
UNABLE = {("distilbert", "prefix"), ("distilbert", "prefix of layers"), ("distilbert", "prompt"), ("electra", "prompt")}
CASES = [pytest.param(family, form, id=f"{family}-{form}") for family in FAMILIES for form in FORMS if (family, form) not in UNABLE]


def sites(family):
    return SITES.get(family, ["query", "value", "intermediate.dense"])


def whole(family, layer):
    names = NAMES[family]
    return f"{names.prefix}.{names.layer.format(i=layer)}.{names.linears['query']}"


def saved(folder, family, config, dtype=None):
    """A folder as the library writes it, every trained value moved."""
    config.task_type = config.task_type or "SEQ_CLS"
    model = peft.get_peft_model(reference_model(family), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("family", "form"), CASES)
def test_every_form_answers_as_there(family, form, tiny_encoder, tmp_path):
    encoder = str(tiny_encoder(family))
    found = run_import(saved(tmp_path / "theirs", family, FORMS[form](family)), tmp_path / "ours", labels=LABELS, encoder=encoder)
    assert found.largest_difference <= 3e-5  # Float32 on both sides.
    assert found.parameters.adapter == make_method(found.method).adapter_size(shape_of(encoder))
    classifier = lorabel.load(tmp_path / "ours", encoder=encoder)  # The canary is compared.
    assert classifier.labels.names == ("money", "science", "sport")
    assert abs(classifier.predict_proba(["the team won"]).sum() - 1) < 1e-6


def shape_of(encoder):
    return resolve_encoder(EncoderConfig(name=encoder)).shape


def test_ranks_that_were_allocated_there_are_kept(tiny_encoder, tmp_path):
    """AdaLoRA after its last allocation: the file holds what is left of each site."""
    model = peft.get_peft_model(reference_model("bert"), FORMS["adalora"]("bert"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    layers = [name for name, _ in model.named_parameters() if "lora_E" in name]
    model.peft_config["default"].rank_pattern = {
        name.removeprefix("base_model.model."): [True, False, number % 2 == 0, False] for number, name in enumerate(layers)
    }
    model.peft_config["default"].task_type = "SEQ_CLS"
    model.save_pretrained(tmp_path / "theirs")
    encoder = str(tiny_encoder("bert"))
    found = run_import(with_head(tmp_path / "theirs", model), tmp_path / "ours", labels=LABELS, encoder=encoder)
    assert found.method["name"] == "lora"
    assert sorted({found.method["rank"], *found.method["ranks"].values()}) == [1, 2]
    assert found.largest_difference <= 1e-4


def with_head(folder, model):
    """What `modules_to_save` would have kept."""
    tensors = load_file(folder / "adapter_model.safetensors")
    classifier = model.base_model.model.classifier
    head = {f"base_model.model.classifier.{part}": getattr(classifier, part).detach().clone() for part in ("weight", "bias")}
    save_file({**tensors, **head}, folder / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["classifier"]}))
    return folder


def test_a_trained_pooler_and_half_precision_come_along(tiny_encoder, tmp_path):
    config = FORMS["lora"]("bert")
    config.modules_to_save = ["pooler", "classifier"]
    found = run_import(saved(tmp_path / "theirs", "bert", config, dtype=torch.bfloat16), tmp_path / "ours", labels=LABELS, encoder=str(tiny_encoder("bert")))
    assert found.head == "native-pooler"
    assert found.largest_difference <= 3e-5  # Float32 on both sides.


def test_what_we_saved_and_it_saved_again_is_what_we_saved(tiny_encoder, news_table, tmp_path):
    from peft import PeftModel

    from lorabel.config import load_config
    from lorabel.workflows.train import run_train

    encoder = str(tiny_encoder("bert"))
    layers = {"encoder": {"name": encoder}, "data": {"source": str(news_table)}, "head": {"kind": "native"}}
    run_train(load_config(layers, {"training": {"num_epochs": 2, "precision": "fp32", "threads": 1}}), tmp_path / "run")
    PeftModel.from_pretrained(reference_model("bert"), tmp_path / "run" / "adapter").save_pretrained(tmp_path / "theirs")
    run_import(tmp_path / "theirs", tmp_path / "ours", labels=LABELS, encoder=encoder)
    texts = ["the team won the match", "bank shares fell"]
    before, after = (lorabel.load(folder, encoder=encoder, precision="fp32").logits(texts) for folder in (tmp_path / "run" / "adapter", tmp_path / "ours"))
    assert abs(before - after).max() == 0


@pytest.mark.parametrize(("name", "options"), ALL)
def test_every_method_that_is_written_in_its_form_can_be_read_back(name, options, tiny_encoder, tmp_path):
    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder("bert"))))
    method, head = make_method({"name": name, **options}).stored_form(), make_head(source.shape, "native", "cls", 3)
    if method.peft_config(source.shape) is None:
        pytest.skip("no form there")
    random = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(size, generator=random) for key, size in expected_tensors(method, head, source.shape).items()}
    save_adapter(tmp_path / "adapter", bundle_for(source, method, head, tensors), "card")
    (tmp_path / "adapter" / "lorabel.json").unlink()
    read, its_head, found = from_peft(read_peft(tmp_path / "adapter"), source.shape)
    assert (read.name, its_head) == (method.name, head)
    sizes = [[(spec.name, spec.shape) for spec in one.parameters(source.shape)] for one in (read, method)]
    assert sizes[0] == sizes[1]
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert getattr(read, "scaling", 1) == pytest.approx(getattr(method, "scaling", 1))


def changed(folder, **config):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def without(folder, part):
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if part not in name}, file, {"format": "pt"})


def as_pickle(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def with_tensor(folder, key, tensor):
    file = folder / "adapter_model.safetensors"
    found = load_file(file)
    (name,) = [name for name in found if key in name] or [key]
    save_file({**found, name: tensor}, file, {"format": "pt"})


def as_link_to_itself(folder):
    file = folder / "adapter_model.safetensors"
    file.unlink()
    file.symlink_to(file)


QUERY = "layer.0.attention.self.query."
BROKEN = {
    "another method": (lambda folder: changed(folder, peft_type="LOHA"), "no equal here, got peft_type 'LOHA'"),
    "a start that changes the encoder": (lambda folder: changed(folder, init_lora_weights="pissa"), "got init_lora_weights 'pissa'"),
    "an option without equal": (lambda folder: changed(folder, layer_replication=[[0, 2]]), "no equal here, got layer_replication"),
    "another task": (lambda folder: changed(folder, task_type="TOKEN_CLS"), "another task, got task_type 'TOKEN_CLS'"),
    "a pickle": (as_pickle, "a pickle, which can run any code"),
    "a link to itself": (as_link_to_itself, "adapter_model.safetensors: (leads nowhere|no such file)"),
    "no head": (lambda folder: without(folder, "classifier"), "no trained head, got no 'classifier'"),
    "half a head": (lambda folder: without(folder, "classifier.bias"), "part of the head is missing, got no 'classifier.bias'"),
    "a flat head": (lambda folder: with_tensor(folder, "classifier.weight", torch.ones(3)), "classifier.weight: got 1 dimensions; expected 2"),
    "a head of one": (lambda folder: with_tensor(folder, "classifier.weight", torch.ones(1, 32)), "got a head with 1 output"),
    "a head of none": (lambda folder: with_tensor(folder, "classifier.weight", torch.tensor(1.0)), "got a head with 0 output"),
    "half a pair": (lambda folder: without(folder, f"{QUERY}lora_B"), "a factor without its partner"),
    "a flat factor": (lambda folder: with_tensor(folder, f"{QUERY}lora_A", torch.tensor(1.0)), "got 0 dimensions; expected 2"),
    "a short factor": (lambda folder: with_tensor(folder, f"{QUERY}lora_A", torch.ones(3, 31)), r"got shape \(3, 31\); expected shape \(3, 32\)"),
    "no factors": (lambda folder: without(folder, "lora_"), "adapts no site of this encoder"),
    "not finite": (lambda folder: with_tensor(folder, f"{QUERY}lora_A", torch.full((3, 32), torch.nan)), "values that are not finite"),
    "whole numbers": (lambda folder: with_tensor(folder, f"{QUERY}lora_A", torch.ones(3, 32, dtype=torch.int64)), "not numbers with a fraction"),
    "no configuration": (lambda folder: (folder / "adapter_config.json").unlink(), "not a folder of the PEFT library"),
    "damaged": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"1"), "adapter_model.safetensors"),
    "ours already": (lambda folder: (folder / "lorabel.json").write_text("{}"), "an adapter of lorabel already"),
    "an alpha of text": (lambda folder: changed(folder, lora_alpha="six"), r"adapter_config\.json: lora_alpha: got 'six'; expected a number over 0"),
    "no alpha": (lambda folder: changed(folder, lora_alpha=None), "lora_alpha: got None"),
    "a huge alpha": (lambda folder: changed(folder, lora_alpha=10**400), "lora_alpha: got 1000"),
    "a list of patterns": (lambda folder: changed(folder, alpha_pattern=["query"]), r"alpha_pattern: got \['query'\]"),
    "a pattern of text": (lambda folder: changed(folder, alpha_pattern={"query": "x"}), r"alpha_pattern\.query: got 'x'"),
    "no expression": (lambda folder: changed(folder, alpha_pattern={"(": 3}), r"alpha_pattern: got '\('"),
    "a dropout of text": (lambda folder: changed(folder, lora_dropout="x"), "lora_dropout: got 'x'"),
    "what the library refuses": (lambda folder: changed(folder, r="eight"), "the PEFT library itself cannot load it, got TypeError"),
    "layers that are not there": (lambda folder: changed(folder, layers_to_transform=[7]), "the PEFT library itself cannot load it"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_cannot_be_read_is_refused_and_nothing_is_written(fault, tiny_encoder, tmp_path):
    folder = saved(tmp_path / "theirs", "bert", FORMS["lora"]("bert"))
    spoil, message = BROKEN[fault]
    spoil(folder)
    with pytest.raises((ArtifactError, ConfigError), match=message):
        run_import(folder, tmp_path / "ours", labels=LABELS, encoder=str(tiny_encoder("bert")))
    assert not (tmp_path / "ours").exists()


def test_layers_that_were_adapted_beside_the_encoders_have_no_place(tiny_encoder, tmp_path):
    """Its `all-linear` reaches into the pooler."""
    folder = saved(tmp_path / "theirs", "bert", peft.LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(ArtifactError, match=r"2 tensors have no place here, got 'base_model\.model\.bert\.pooler\.dense\.lora_A\.weight'"):
        run_import(folder, tmp_path / "ours", labels=LABELS, encoder=str(tiny_encoder("bert")))


def test_lengths_without_factors_have_no_place(tiny_encoder, tmp_path):
    folder = saved(tmp_path / "theirs", "bert", FORMS["dora"]("bert"))
    with_tensor(folder, "base_model.model.bert.encoder.layer.0.attention.self.key.lora_magnitude_vector", torch.ones(32))
    with pytest.raises(ArtifactError, match=r"key\.lora_magnitude_vector: does not fit this encoder, got shape \(32,\); expected nothing"):
        run_import(folder, tmp_path / "ours", labels=LABELS, encoder=str(tiny_encoder("bert")))


@pytest.mark.parametrize(
    ("form", "settings", "message"),
    [
        ("adalora", {"init_r": 0}, "init_r: got 0; expected a whole number from 1"),
        ("adalora", {"lora_alpha": "3"}, "lora_alpha: got '3'"),
        ("vera", {"projection_prng_key": 2**70}, "projection_prng_key: got"),
        ("vera", {"r": None}, "r: got None"),
        ("prefix", {"num_virtual_tokens": "3"}, "num_virtual_tokens: got '3'"),
        ("prompt", {"num_virtual_tokens": 3.0}, r"num_virtual_tokens: got 3\.0"),
        ("prompt", {"num_virtual_tokens": True}, "num_virtual_tokens: got True"),
    ],
)
def test_settings_that_are_wrong_are_refused_by_name(form, settings, message, tiny_encoder, tmp_path):
    folder = saved(tmp_path / "theirs", "bert", FORMS[form]("bert"))
    changed(folder, **settings)
    with pytest.raises(ConfigError, match=message):
        run_import(folder, tmp_path / "ours", labels=LABELS, encoder=str(tiny_encoder("bert")))


@pytest.mark.parametrize("tokens", [45, 48, 60])
def test_a_prompt_that_leaves_no_room_for_a_text_is_refused(tokens, tiny_encoder, tmp_path):
    folder = saved(tmp_path / "theirs", "bert", peft.PromptTuningConfig(num_virtual_tokens=tokens))
    with pytest.raises(ConfigError, match="leave no room for a text"):
        run_import(folder, tmp_path / "ours", labels=LABELS, encoder=str(tiny_encoder("bert")))


def test_a_pruned_site_is_left_out(tiny_encoder, tmp_path):
    """AdaLoRA may leave nothing of a site."""
    folder = saved(tmp_path / "theirs", "bert", FORMS["adalora"]("bert"))
    key = "base_model.model.bert.encoder.layer.0.attention.self.query."
    for role, size in (("lora_A", (0, 32)), ("lora_B", (32, 0)), ("lora_E", (0, 1))):
        with_tensor(folder, f"{key}{role}", torch.zeros(size))
    changed(
        folder,
        rank_pattern={
            f"bert.encoder.layer.{layer}.{module}.lora_E": [(layer, module) != (0, "attention.self.query")] * 4
            for layer in (0, 1)
            for module in ("attention.self.query", "attention.self.value", "intermediate.dense")
        },
    )
    found = run_import(folder, tmp_path / "ours", labels=LABELS, encoder=str(tiny_encoder("bert")))
    assert found.method["ranks"] == {"layers.0.query": 0}
    assert found.largest_difference <= 3e-5  # Float32 on both sides.


@pytest.mark.parametrize("value", [3, ["a"]])
def test_an_encoder_that_is_no_name_is_refused(value, tmp_path):
    folder = saved(tmp_path / "theirs", "bert", FORMS["lora"]("bert"))
    changed(folder, base_model_name_or_path=value)
    with pytest.raises(ArtifactError, match="base_model_name_or_path: got"):
        run_import(folder, tmp_path / "ours", labels=LABELS)


def test_several_labels_and_a_limit_are_kept(tiny_encoder, tmp_path):
    folder, encoder = saved(tmp_path / "theirs", "bert", FORMS["prefix"]("bert")), str(tiny_encoder("bert"))
    found = run_import(folder, tmp_path / "ours", labels=LABELS, encoder=encoder, task="multi_label", max_length_tokens=20)
    assert found.max_length_tokens == 20
    classifier = lorabel.load(tmp_path / "ours", encoder=encoder)
    assert (classifier.rule.task, classifier.max_length_tokens) == ("multi_label", 20)
    assert run_import(folder, tmp_path / "again", labels=LABELS, encoder=encoder).max_length_tokens == 48 - 3
    with pytest.raises(ConfigError, match="--max-length: too short, got 3"):
        run_import(folder, tmp_path / "short", labels=LABELS, encoder=encoder, max_length_tokens=3)


def test_names_of_the_encoders_own_configuration_are_taken_and_said(tiny_encoder, tmp_path):
    import shutil

    encoder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder("bert"), encoder)
    settings = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**settings, "id2label": {"1": "b", "0": "a", "2": "c"}}))
    said = []
    found = run_import(saved(tmp_path / "theirs", "bert", FORMS["lora"]("bert")), tmp_path / "ours", encoder=str(encoder), on_event=said.append)
    assert found.labels == ("a", "b", "c")
    assert any("those of the encoder's own configuration: a, b, c" in note.text for note in said)


@pytest.mark.parametrize(("family", "message"), [("roberta", "adapts no site of this encoder"), ("electra", "adapts no site of this encoder")])
def test_another_encoder_is_refused(family, message, tiny_encoder, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run_import(saved(tmp_path / "theirs", "bert", FORMS["lora"]("bert")), tmp_path / "ours", labels=LABELS, encoder=str(tiny_encoder(family)))


def test_vectors_that_scale_another_end_are_refused(tiny_encoder, tmp_path):
    config = peft.IA3Config(target_modules=["intermediate.dense"], feedforward_modules=["intermediate.dense"])
    with pytest.raises(ArtifactError, match=r"ffn_up\.ia3_l: does not fit this encoder, got shape \(1, 32\); expected shape \(64, 1\)"):
        run_import(saved(tmp_path / "theirs", "bert", config), tmp_path / "ours", labels=LABELS, encoder=str(tiny_encoder("bert")))


def test_other_answers_than_there_are_refused_and_nothing_is_written(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(SiteRanksMethod, "scaling", property(lambda _: 0.5))
    with pytest.raises(RefusedError, match="answers otherwise here than in the PEFT library"):
        run_import(saved(tmp_path / "theirs", "bert", FORMS["lora"]("bert")), tmp_path / "ours", labels=LABELS, encoder=str(tiny_encoder("bert")))
    assert not (tmp_path / "ours").exists()


def test_without_the_library_it_says_that_nothing_was_compared(tiny_encoder, tmp_path, monkeypatch):
    import importlib.util

    folder, real = saved(tmp_path / "theirs", "bert", FORMS["lora"]("bert")), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else real(name, *rest))
    said = []
    found = run_import(folder, tmp_path / "ours", labels=LABELS, encoder=str(tiny_encoder("bert")), on_event=said.append)
    assert found.largest_difference is None
    assert any("Not compared with the PEFT library" in note.text for note in said)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("a,b", "has 3 classes, got 2 names"),
        ("a,b,b", "not distinct names, got 'b'"),
        ("a,,b", "not distinct names, got 'an empty one'"),
        ("bad.json", "no class names"),
        ("odd.json", "no class names"),
        ("worse.json", "not valid JSON"),
        ("utf16.txt", "not UTF-8"),
        ("none.txt", "no such file"),
        ("\ud800,b,c", "not text"),
        (",".join(f"a name that is long enough {number}" for number in range(77)), "has 3 classes, got 77 names"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text('{"id2label": []}')
    Path("odd.json").write_text('{"id2label": {"x": "a", "0": "b", "1": "c"}}')
    Path("worse.json").write_text("{")
    Path("utf16.txt").write_text("a\nb\nc", encoding="utf-16")
    with pytest.raises((ConfigError, ArtifactError), match=message):
        run_import(saved(tmp_path / "theirs", "bert", FORMS["lora"]("bert")), tmp_path / "ours", labels=labels, encoder=str(tiny_encoder("bert")))


@pytest.mark.parametrize(
    ("file", "content"),
    [("names.txt", "\ufeffa\n\nb c\nd,e\n"), ("config.json", json.dumps({"id2label": {"2": "d,e", "0": "a", "1": "b c"}}))],
    ids=["lines", "json"],
)
def test_labels_come_from_files_too(file, content, tiny_encoder, tmp_path):
    (tmp_path / file).write_text(content)
    found = run_import(
        saved(tmp_path / "theirs", "bert", FORMS["lora"]("bert")), tmp_path / "ours", labels=str(tmp_path / file), encoder=str(tiny_encoder("bert"))
    )
    assert found.labels == ("a", "b c", "d,e")


def test_the_command_line(tiny_encoder, news_table, tmp_path, run_cli):
    encoder = str(tiny_encoder("bert"))
    folder = saved(tmp_path / "theirs", "bert", FORMS["lora"]("bert"))
    changed(folder, base_model_name_or_path=encoder)
    found = run_cli("import", folder, "--out", tmp_path / "ours", "--labels", LABELS)
    assert (found.code, "the same logits as in the PEFT library" in found.out) == (0, True), found.err
    again = run_cli("import", folder, "--out", tmp_path / "ours", "--labels", LABELS)
    assert (again.code, "Use another name" in again.err) == (2, True)
    said = json.loads(run_cli("import", folder, "--out", tmp_path / "again", "--json").out)
    assert said["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert said["parameters"]["adapter"] == 3 * (32 + 32) * 2 * 2 + 3 * (32 + 64) * 2
    scored = run_cli("evaluate", tmp_path / "ours", news_table, "--encoder", encoder, "--json")
    assert json.loads(scored.out)["n"] == 12
    assert f"lorabel import {folder}" in run_cli("predict", folder, "--text", "x").err
