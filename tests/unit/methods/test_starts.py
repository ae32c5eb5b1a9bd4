"""Where training starts: PiSSA against a plain singular value decomposition, the rows of a prompt against the checkpoint's own file."""

import pytest
import torch
from safetensors.torch import load_file
from tests.contracts.batches import packed, sequences

from lorabel.config import EncoderConfig, load_config
from lorabel.heads import make_head
from lorabel.methods.base import make_method
from lorabel.models.bank import Bank
from lorabel.models.checkpoint import load_weights, resolve_encoder
from lorabel.models.encoder import PackedEncoder
from lorabel.models.heads import head_shapes
from lorabel.models.merge import merged_weights
from lorabel.slots import Start
from lorabel.training.randomness import named_generator
from lorabel.workflows.building import build_trainee, first_value
from lorabel.workflows.preparation import prepare

CPU = torch.device("cpu")
PISSA = [
    {"rank": 3, "targets": ("all-linear",)},
    {"rank": 4, "alpha": 6.0, "use_rslora": True},
    {"rank": 2, "ranks": {"layers.0.query": 5, "layers.1.value": 0}},
]


def pissa(options, tiny_encoder, family="bert"):
    """The method, its encoder, its values right after initialisation without K, and rank and weight of each adapted site."""
    source, method = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family)))), make_method({"name": "lora", "init": "pissa", **options})
    weights = load_weights(source)
    start = Start(source.shape, weights, lambda purpose: named_generator(0, purpose), ())
    specs = (*method.parameters(source.shape), *method.constants(source.shape))
    values = {spec.name: first_value(method, spec, start, 0).double() for spec in specs}
    downs = [name.removesuffix(".lora_A") for name in values if name.endswith(".lora_A")]
    sites = {site: (len(values[f"{site}.lora_A"]), weights[f"{site}.weight"].double()) for site in downs}
    return source, method, values, sites


def split_at(weight, rank):
    """The best approximation of a rank and what it leaves (Meng et al. 2024, equations 2 to 4)."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank], (left[:, rank:] * values[rank:]) @ right[rank:]


@pytest.mark.parametrize("options", PISSA)
def test_pissa_starts_at_the_best_approximation_of_each_weight(options, tiny_encoder):
    source, method, values, sites = pissa(options, tiny_encoder)
    wanted = {"layers.0.query": 5, "layers.0.value": 2, "layers.1.query": 2} if "ranks" in options else None
    assert {site: rank for site, (rank, _) in sites.items()} == (wanted or dict.fromkeys(sites, options["rank"]))
    for site, (rank, weight) in sites.items():
        product = method.scaling * values[f"{site}.lora_B"] @ values[f"{site}.lora_A"]
        best, rest = split_at(weight, rank)
        assert (product - best).abs().max() <= 1e-6
        # No product of that rank comes closer to the weight than the singular values that are left out (Eckart and Young).
        assert torch.linalg.norm(weight - product).item() == pytest.approx(torch.linalg.svdvals(weight)[rank:].square().sum().sqrt().item(), rel=1e-6)
        # Half of each singular value to either factor.
        down, up, each = values[f"{site}.lora_A"], values[f"{site}.lora_B"], torch.diag(torch.linalg.svdvals(weight)[:rank] / method.scaling)
        assert max((down @ down.T - each).abs().max(), (up.T @ up - each).abs().max()) <= 1e-6
        assert all(torch.equal(values[f"{site}.lora_{factor}"], values[f"{site}.lora_{factor}.start"]) for factor in "AB")


@pytest.mark.parametrize("options", PISSA)
def test_without_its_factors_pissa_is_the_weight_less_that_approximation(options, tiny_encoder):
    source, method, values, sites = pissa(options, tiny_encoder)
    without = {name: tensor if name.endswith(".start") else torch.zeros_like(tensor) for name, tensor in values.items()}
    weights = {name: tensor.double() for name, tensor in load_weights(source).items()}
    base = merged_weights(weights, source.shape, method, without)
    for name, weight in weights.items():
        rank = sites.get(name.removesuffix(".weight"), (0, None))[0] if name.endswith(".weight") else 0
        assert (base[name] - (split_at(weight, rank)[1] if rank else weight)).abs().max() <= 1e-6, name


@pytest.mark.parametrize("options", PISSA)
def test_pissa_in_training_is_lora_on_what_the_approximation_leaves(options, tiny_encoder):
    """As the paper has it: the frozen weight is the rest, and factors of rank R beside it are trained."""
    source, method, values, sites = pissa(options, tiny_encoder)
    head, random = make_head(source.shape, "native", "cls", 3), torch.Generator().manual_seed(0)
    values |= {name: torch.randn(size, generator=random, dtype=torch.float64) for name, size in head_shapes(head).items()}
    constants = {name: tensor[None] for name, tensor in values.items() if name.endswith(".start")}
    moved = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=random, dtype=torch.float64) for name, tensor in values.items() if name not in constants}
    weights = {name: tensor.double() for name, tensor in load_weights(source).items()}
    rest = weights | {f"{site}.weight": split_at(weight, rank)[1] for site, (rank, weight) in sites.items()}
    batch, found = packed(sequences([3, 9, 20]), 0, [0, 1, 2]), []
    for base, one, fixed in ((weights, method, constants), (rest, make_method({"name": "lora", **options}), {})):
        tensors = {name: tensor[None].clone().requires_grad_() for name, tensor in moved.items()}
        bank = Bank(PackedEncoder(source.shape, base, dtype=torch.float64, device=CPU), (one,), head, tensors, constants=fixed)
        logits = bank.logits(batch)
        torch.nn.functional.cross_entropy(logits, batch.labels).backward()
        found.append({"logits": logits.detach(), **{name: tensor.grad for name, tensor in tensors.items()}})
    for name, mine in found[0].items():
        assert (mine - found[1][name]).abs().max() <= 1e-5 * max(1.0, float(found[1][name].abs().max())), name


def prompt_of(options, family, tiny_encoder, tmp_path, seed=0):
    """A prompt's rows right before the first step of a run on classes whose names are words, and the checkpoint's word embeddings and vocabulary."""
    from tokenizers import Tokenizer

    folder, table = tiny_encoder(family), tmp_path / "rows.csv"
    table.write_text("text,label\n" + "".join(f"{name} match {i},{name}\n" for i in range(20) for name in ("team", "bank rates", "storm")))
    settings = {"data": {"source": str(table)}, "encoder": {"name": str(folder)}, "method": {"name": "prompt", **options}, "training": {"seed": seed}}
    prepared = prepare(load_config(settings), lambda _event: None)
    rows = build_trainee([prepared], load_weights(prepared.source)).bank.tensors["prompt"].detach()[0].cpu()
    (words,) = [tensor for name, tensor in load_file(folder / "model.safetensors").items() if name.endswith("embeddings.word_embeddings.weight")]
    return rows, words, Tokenizer.from_file(str(folder / "tokenizer.json"))


def is_a_row(row, words):
    return bool((row == words).all(dim=1).any())


@pytest.mark.parametrize("family", ["bert", "electra"])
@pytest.mark.parametrize("length", [2, 7])
def test_a_prompt_that_starts_at_the_labels_says_the_class_names_in_their_order(family, length, tiny_encoder, tmp_path):
    rows, words, tokenizer = prompt_of({"start": "labels", "length": length}, family, tiny_encoder, tmp_path)
    said = [tokenizer.token_to_id(word) for word in ("bank", "rates", "storm", "team")][:length]
    assert None not in said
    assert torch.equal(rows[: len(said)], words[said])
    assert len(rows) == length
    assert all(is_a_row(row, words) for row in rows[len(said) :])


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_a_prompt_that_starts_at_the_vocabulary_is_made_of_its_words(family, tiny_encoder, tmp_path):
    rows, words, _ = prompt_of({}, family, tiny_encoder, tmp_path)
    assert rows.shape == (20, words.shape[1])
    assert all(is_a_row(row, words) for row in rows)
    # Drawn with replacement from 60 words, 20 rows are about 17 different ones.
    assert len(torch.unique(rows, dim=0)) >= 12
    other, _, _ = prompt_of({}, family, tiny_encoder, tmp_path, seed=1)
    assert not torch.equal(rows, other)


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_a_prompt_that_starts_at_random_is_spread_as_the_words_are(family, tiny_encoder, tmp_path):
    rows, words, _ = prompt_of({"start": "random", "length": 30}, family, tiny_encoder, tmp_path)
    # The deviation of n normal numbers is itself uncertain by one part in √(2 n): 2 % of 960 of them, 3 % of 480.
    assert rows.std().item() == pytest.approx(words.std().item(), rel=0.1)
    assert abs(rows.mean().item()) <= 0.1
    assert not any(is_a_row(row, words) for row in rows)
