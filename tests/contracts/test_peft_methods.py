"""Every method that the PEFT library has too: counts, logits, gradients and files equal its own, for every family it can do."""

import logging
import warnings

import pytest
import torch

from lorabel.artifacts.adapter import expected_tensors, load_adapter, save_adapter
from lorabel.budget import count
from lorabel.config import EncoderConfig
from lorabel.families import KNOWN_ENCODERS
from lorabel.heads import make_head
from lorabel.methods.base import make_method
from lorabel.models.bank import Bank
from lorabel.models.checkpoint import load_weights, resolve_encoder
from lorabel.models.encoder import PackedEncoder
from lorabel.registry import METHODS
from lorabel.workflows.methods import run_methods
from tests.conftest import FAMILIES, reference_model
from tests.contracts.batches import packed, padded, sequences
from tests.contracts.test_peft_parity import bundle_for

SETTINGS = [
    {"name": "lora", "ranks": {"*": 0, "layers.0.query": 3, "layers.1.query": 1, "layers.0.value": 2}, "alpha": 5.0},
    {"name": "lora", "targets": ("all-linear",), "rank": 2, "ranks": {"layers.0.ffn_down": 4, "layers.1.attention_output": 0}, "use_rslora": True},
    {"name": "lora", "targets": ("all-linear",), "rank": 1, "alpha": 2.0, "ranks": {"layers.1": 2}},
    {"name": "dora", "rank": 2, "alpha": 6.0},
    {"name": "dora", "rank": 2, "ranks": {"layers.0.query": 3, "layers.1.value": 0}},
    {"name": "dora", "rank": 3, "use_rslora": True, "targets": ("attention_output", "ffn_down")},
    {"name": "ia3"},
    {"name": "ia3", "targets": ("query", "attention_output", "ffn_up"), "layers": (1,)},
    {"name": "vera", "rank": 5, "targets": ("query", "value")},
    {"name": "vera", "rank": 4, "targets": ("all-linear",), "projection_seed": 3},
    {"name": "bitfit", "norms": False},
    {"name": "bitfit", "norms": False, "targets": ("query", "ffn_down"), "layers": (1,)},
    {"name": "prefix", "length": 4},
    {"name": "prompt", "length": 4, "place": "front"},
]
LENGTHS = [3, 9, 9, 20]


# What the library cannot do: DistilBERT takes no keys from outside, and ELECTRA projects its embeddings.
UNABLE = {("distilbert", "prefix"), ("distilbert", "prompt"), ("electra", "prompt")}
CASES = [
    pytest.param(family, options, id=f"{family}-{'-'.join(map(str, options.values()))}")
    for family in FAMILIES
    for options in SETTINGS
    if (family, options["name"]) not in UNABLE
]


def prepared(family, options, tiny_encoder):
    """Encoder, method and head."""
    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family))))
    return source, make_method(options), make_head(source.shape, "native", "cls", 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_form_is_there_for_every_family_that_the_library_can_do(family, tiny_encoder):
    shape = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family)))).shape
    for options in SETTINGS:
        has_form = make_method(options).peft_config(shape) is not None
        assert has_form == ((family, options["name"]) not in UNABLE), options


def their_model(family, method, shape, **changes):
    import peft

    options = method.peft_config(shape) | changes
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(options.pop("peft_type"))]
    model = peft.get_peft_model(reference_model(family), kind(task_type="SEQ_CLS", **options))
    with torch.no_grad():
        # A seed for each tensor, so that none can stand in for another.
        for seed, parameter in enumerate(model.parameters()):
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                parameter.copy_(parameter + 0.3 * noise)
    return model.eval()


def their_values(model):
    """What the library would write, by its own names."""
    from peft import get_peft_model_state_dict

    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(model).items()}


def their_trained(model):
    """What the library trains, by the names of its file."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = name.replace(".modules_to_save.default", "").replace(".default", "")
            plain = "prompt_embeddings" if plain == "prompt_encoder.embedding.weight" else plain
            found[plain.removesuffix(".weight") if "magnitude" in plain else plain] = parameter
    return found


def assert_gradients_equal(mine, theirs):
    """Tensor by tensor: our name -> our tensor with a leading K, and their parameter."""
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert (tensor.grad[0] - theirs[name].grad).abs().max() <= 1e-10, name
    assert max(float(tensor.grad.abs().max()) for tensor in mine.values()) > 1e-6


def our_names(source, method, head):
    """Our tensor name -> theirs."""
    from lorabel.artifacts.peft_format import peft_names

    return peft_names(method, source.shape, {name: size for name, size in expected_tensors(method, head, source.shape).items() if name.startswith("head.")})


def our_bank(source, method, head, tensors, dtype):
    constants = {spec.name for spec in method.constants(source.shape)}
    encoder = PackedEncoder(source.shape, load_weights(source), dtype=dtype, device=torch.device("cpu"))
    trained = {name: tensor for name, tensor in tensors.items() if name not in constants}
    return Bank(encoder, (method,), head, trained, constants={name: tensors[name] for name in constants})


def assert_logits_equal_and_go_back(model, source, method, head, tensors):
    """Both answer the same rows; then both have the gradients of the same loss."""
    rows, labels = sequences(LENGTHS), [0, 2, 1, 1]
    batch = packed(rows, source.shape.first_position, labels)
    logits = our_bank(source, method, head, tensors, torch.float64).logits(batch)
    reference = model(**padded(rows, source.shape.pad_token_id)).logits
    assert (logits - reference[torch.as_tensor(batch.rows)]).abs().max() <= 1e-10

    torch.nn.functional.cross_entropy(logits, batch.labels).backward()
    torch.nn.functional.cross_entropy(reference, torch.tensor(labels)).backward()


@pytest.mark.parametrize(("family", "options"), CASES)
def test_counts_names_logits_and_gradients_equal(family, options, tiny_encoder):
    source, method, head = prepared(family, options, tiny_encoder)
    model = their_model(family, method, source.shape)
    ours = count(method, head, source.shape)
    trainable, _ = model.get_nb_trainable_parameters()
    assert ours.trainable == trainable

    model = model.double()
    names, values = our_names(source, method, head), their_values(model)
    assert {name: tuple(values[theirs].shape) for name, theirs in names.items()} == expected_tensors(method, head, source.shape)
    assert set(values) == set(names.values())
    tensors = {name: values[theirs].double()[None].requires_grad_() for name, theirs in names.items()}
    assert_logits_equal_and_go_back(model, source, method, head, tensors)
    constants, trained = {spec.name for spec in method.constants(source.shape)}, their_trained(model)
    pairs = {name: theirs for name, theirs in names.items() if name not in constants}
    assert set(trained) == set(pairs.values())
    assert_gradients_equal({name: tensors[name] for name in pairs}, {name: trained[theirs] for name, theirs in pairs.items()})


@pytest.mark.parametrize("family", [family for family in FAMILIES if (family, "prefix") not in UNABLE])
def test_a_prefix_that_layers_give_equals_theirs_in_training_and_in_the_file(family, tiny_encoder):
    source, method, head = prepared(family, {"name": "prefix", "length": 4, "reparameterise": True, "reparameterised_width": 6}, tiny_encoder)
    model = their_model(family, method, source.shape, prefix_projection=True, encoder_hidden_size=6)
    assert count(method, head, source.shape).trainable == model.get_nb_trainable_parameters()[0]

    model = model.double()
    parts = {"embedding": "embedding.weight", "first": "transform.0.weight", "first_bias": "transform.0.bias"}
    parts |= {"second": "transform.2.weight", "second_bias": "transform.2.bias"}
    theirs = {f"prefix.{name}": model.get_parameter(f"prompt_encoder.default.{part}") for name, part in parts.items()}
    trained, of_head = their_trained(model), our_names(source, method.stored_form(), head)
    theirs |= {name: trained[key] for name, key in of_head.items() if name.startswith("head.")}
    assert len(theirs) == len(trained)
    tensors = {name: parameter.detach().clone()[None].requires_grad_() for name, parameter in theirs.items()}
    assert_logits_equal_and_go_back(model, source, method, head, tensors)
    assert_gradients_equal(tensors, theirs)
    _, stored = method.folded({name: tensor.detach()[0] for name, tensor in tensors.items()}, source.shape)
    assert (stored["prefix"] - their_values(model)["prompt_embeddings"]).abs().max() <= 1e-12


@pytest.mark.parametrize(("family", "options"), CASES)
def test_our_folder_loads_there_without_a_warning_and_theirs_answers_here(family, options, tiny_encoder, tmp_path, caplog):
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    source, method, head = prepared(family, options, tiny_encoder)
    values = their_values(their_model(family, method, source.shape))
    tensors = {name: values[theirs].float().contiguous() for name, theirs in our_names(source, method, head).items()}
    bundle = bundle_for(source, method, head, tensors)
    save_adapter(tmp_path / "adapter", bundle, "card")
    theirs_file = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert set(theirs_file) == set(values)
    base = AutoModelForSequenceClassification.from_pretrained(source.folder, num_labels=3)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert [str(w.message) for w in caught if "gradient_checkpointing" not in str(w.message)] == []
    assert caplog.records == []
    rows = sequences(LENGTHS)
    batch = packed(rows, source.shape.first_position)
    # In float64: rounding grows in these random models until it says nothing of the method.
    stacked = {name: tensor.double()[None] for name, tensor in load_adapter(tmp_path / "adapter").tensors.items()}
    ours = our_bank(source, method, head, stacked, torch.float64).logits(batch)
    theirs = model.double()(**padded(rows, source.shape.pad_token_id)).logits[torch.as_tensor(batch.rows)]
    assert (ours - theirs).abs().max() <= 1e-10


def test_every_method_with_a_form_there_is_compared():
    shape = KNOWN_ENCODERS["minilm"].shape
    compared = {options["name"] for options in SETTINGS}
    for name in METHODS.names():
        has_form = METHODS.get(name)().stored_form().peft_config(shape) is not None
        assert not has_form or name in compared | {"adalora"}, f"{name} has a form in the PEFT library, but is not compared with it"


def test_every_method_says_what_the_library_can_load_of_it():
    shape = KNOWN_ENCODERS["bert-base-uncased"].shape
    notes = {facts.name: facts.peft_note for facts in run_methods()}
    loaded = {options["name"] for options in SETTINGS} | {"adalora"}
    assert {name for name, note in notes.items() if not note.startswith("none")} == loaded
    for family, name in UNABLE:
        assert family in notes[name].lower()
    for name in loaded:
        for field, info in METHODS.get(name).model_fields.items():
            if info.annotation is bool:  # A switch that takes the form away is named.
                switched = make_method({"name": name, field: not info.default})
                assert switched.stored_form().peft_config(shape) is not None or field in notes[name]
    assert "place: front" in notes["prompt"]
