"""Methods that the PEFT library cannot do, or not for every family: their papers' equations, written on the reference library's padded model, give equal logits and gradients.

The equations act from outside: through hooks on modules, through the inputs, or through the interface for attention. Of ours, only the names of modules and tensors are used.
"""

import pytest
import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from lorabel.families import KNOWN_ENCODERS
from lorabel.methods.base import make_method
from lorabel.models.bank import Bank
from lorabel.models.heads import head_shapes
from lorabel.registry import METHODS
from tests.conftest import FAMILIES, reference_model
from tests.contracts.batches import packed, padded, sequences
from tests.contracts.test_encoder_parity import build

SETTINGS = [
    {"name": "bitfit"},
    {"name": "bottleneck", "width": 5},
    {"name": "bottleneck", "width": 6, "placement": "pfeiffer", "scaling": 0.5},
    {"name": "bottleneck", "width": 5, "placement": "parallel", "scaling": 4.0},
    {"name": "prompt", "length": 4},
    {"name": "prompt", "length": 3, "place": "front"},
    {"name": "prefix", "length": 4},
    {"name": "prefix", "length": 3, "shift_positions": False},
    {"name": "prefix", "length": 4, "reparameterise": True, "reparameterised_width": 6},
    {"name": "lora_prefix", "length": 3, "rank": 2, "alpha": 5.0},
]
CASES = [pytest.param(options, id="-".join(map(str, options.values()))) for options in SETTINGS]
# What the head reads: the first token, which the last layer computes alone, or the mean of all tokens.
HEADS = [("native", "cls"), ("linear", "mean")]
LENGTHS, LABELS = [3, 9, 9, 20], [0, 2, 1, 1]


class Reference:
    """The reference library's model of a family, in float64, with a method's equations on it.

    Args:
        family: The family.
        shape: The tiny encoder's.
        method: The settings.
        tensors: The method's values by name, without K.
    """

    def __init__(self, family, shape, method, tensors):
        self.model = reference_model(family).double().requires_grad_(False)
        self.model.set_attn_implementation("eager")
        self.shape, self.method, self.tensors = shape, method, tensors
        self.layers = range(shape.num_layers)

    def below(self, layer, name):
        """A module of a layer."""
        names = self.shape.names
        return self.model.get_submodule(f"{names.prefix}.{names.layer.format(i=layer)}.{name}")

    def module(self, layer, site):
        """The module of a linear site or a norm."""
        return self.below(layer, {**self.shape.names.linears, **self.shape.names.norms}[site])

    def bitfit(self):
        """y + b, b the change of the bias (Ben Zaken et al. 2021, section 2.2)."""
        norm = self.model.get_submodule(f"{self.shape.names.prefix}.embeddings.LayerNorm")
        self.add(norm, lambda _x, _y: self.tensors["embeddings.embedding_norm.bias"])
        for layer in self.layers:
            for site in (*self.shape.names.linears, *self.shape.names.norms):
                self.add(self.module(layer, site), lambda _x, _y, bias=self.tensors[f"layers.{layer}.{site}.bias"]: bias)

    def bottleneck(self):
        """y + s (relu(x Dᵀ + d) Uᵀ + u) before the residual, x the output y of the block, or what feed-forward reads (He et al. 2021, table 1)."""
        is_parallel, read = self.method.placement == "parallel", {}
        sites = {"after_attention": "attention_output", "after_ffn": "ffn_down"} if self.method.placement == "houlsby" else {"after_ffn": "ffn_down"}
        for layer in self.layers:
            self.module(layer, "ffn_up").register_forward_hook(lambda _module, inputs, _y, layer=layer: read.update({layer: inputs[0]}))
            for place, site in sites.items():
                net = [self.tensors[f"layers.{layer}.{place}.{role}"] for role in ("down", "down_bias", "up", "up_bias")]

                def added(_x, y, net=net, layer=layer):
                    inner = functional.relu(functional.linear(read[layer] if is_parallel else y, net[0], net[1]))
                    return self.method.scaling * functional.linear(inner, net[2], net[3])

                self.add(self.module(layer, site), added)

    def lora_prefix(self):
        """y + α/r B A x at each site (Hu et al. 2021, equation 3), and the prefix."""
        for layer in self.layers:
            for site in self.shape.names.linears:
                down, up = (self.tensors[f"layers.{layer}.{site}.lora_{factor}"] for factor in "AB")
                self.add(self.module(layer, site), lambda x, _y, down=down, up=up: self.method.alpha / self.method.rank * x @ down.T @ up.T)
        self.prefix()

    def prefix(self):
        """Keys and values of every layer, laid out token by token as layer, key before value, head (P-Tuning v2); or the two layers that give them (Li and Liang 2021, section 4.3)."""
        whole = self.tensors.get("prefix")
        if whole is None:
            embedding, *layers = (self.tensors[f"prefix.{name}"] for name in ("embedding", "first", "first_bias", "second", "second_bias"))
            whole = functional.linear(torch.tanh(functional.linear(embedding, *layers[:2])), *layers[2:])
        apart = whole.view(len(whole), self.shape.num_layers, 2, self.shape.num_heads, -1)
        attention = self.shape.names.linears["query"].rpartition(".")[0]
        for layer in self.layers:
            self.below(layer, attention).trained_prefix = apart[:, layer].permute(1, 2, 0, 3)  # (2, heads, P, D / heads)
        self.model.set_attn_implementation("trained_prefix")

    def prompt(self):
        """Nothing on the modules: see `inputs`."""

    @staticmethod
    def add(module, added):
        """Add to what a module gives."""
        module.register_forward_hook(lambda _module, inputs, y: y + added(inputs[0], y))

    def inputs(self, rows):
        """Embeddings, attention mask and positions of padded rows, with the prompt where there is one (Lester et al. 2021, section 2)."""
        ids, mask = padded(rows, self.shape.pad_token_id).values()
        embeddings, ahead = self.model.get_input_embeddings()(ids), 1 if getattr(self.method, "place", None) == "after_first" else 0
        if self.method.name == "prompt":
            trained = self.tensors["prompt"].expand(len(rows), -1, -1)
            embeddings = torch.cat([embeddings[:, :ahead], trained, embeddings[:, ahead:]], dim=1)
            mask = torch.cat([torch.ones(trained.shape[:2], dtype=mask.dtype), mask], dim=1)
        shift = self.method.length if getattr(self.method, "shift_positions", False) else 0
        positions = torch.arange(mask.shape[1]).expand_as(mask) + self.shape.first_position + shift
        return {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": positions}

    def logits(self, rows, head, kind):
        """Scores of the model's own head, or of one layer on the mean of all tokens."""
        inputs = self.inputs(rows)
        getattr(self, self.method.name)()
        if kind == "native":
            for name, tensor in head.items():
                owner, _, part = name.removeprefix("head.").rpartition(".")
                self.model.get_submodule(owner)._parameters[part] = tensor
            return self.model(**inputs).logits
        states, mask = getattr(self.model, self.shape.names.prefix)(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        (weight, bias) = head.values()
        return functional.linear((states * mask).sum(1) / mask.sum(1), weight, bias)


def attention_with_prefix(module, query, key, value, attention_mask, scaling=None, **_options):
    """Softmax over the trained keys and the text's own (Li and Liang 2021, equation 2); only the text's may be padding."""
    keys, values = (trained.expand(len(query), -1, -1, -1) for trained in module.trained_prefix)
    scores = query @ torch.cat([keys, key], dim=2).mT * scaling + functional.pad(attention_mask, (keys.shape[2], 0))
    weights = torch.softmax(scores, dim=-1)
    return (weights @ torch.cat([values, value], dim=2)).transpose(1, 2), weights


AttentionInterface.register("trained_prefix", attention_with_prefix)
AttentionMaskInterface.register("trained_prefix", eager_mask)


@pytest.mark.parametrize(("kind", "pooling"), HEADS, ids=["first-token", "mean"])
@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_equal(family, options, kind, pooling, tiny_encoder):
    source, encoder, head = build(tiny_encoder(family), torch.float64, kind, pooling)
    method, random = make_method(options), torch.Generator().manual_seed(7)
    sizes = {spec.name: spec.shape for spec in method.parameters(source.shape)} | head_shapes(head)
    values = {name: 0.3 * torch.randn(size, generator=random, dtype=torch.float64) for name, size in sizes.items()}
    mine = {name: value[None].clone().requires_grad_() for name, value in values.items()}
    theirs = {name: value.clone().requires_grad_() for name, value in values.items()}
    rows = sequences(LENGTHS)
    batch = packed(rows, source.shape.first_position, LABELS)

    logits = Bank(encoder, (method,), head, mine).logits(batch)
    of_head = {name: tensor for name, tensor in theirs.items() if name.startswith("head.")}
    wanted = Reference(family, source.shape, method, theirs).logits(rows, of_head, kind)
    assert (logits - wanted[torch.as_tensor(batch.rows)]).abs().max() <= 1e-10

    functional.cross_entropy(logits, batch.labels).backward()
    functional.cross_entropy(wanted, torch.tensor(LABELS)).backward()
    for name, tensor in theirs.items():
        assert (mine[name].grad[0] - tensor.grad).abs().max() <= 1e-10, name
    assert max(float(tensor.grad.abs().max()) for tensor in theirs.values()) > 1e-3


def test_every_method_without_a_form_there_is_compared():
    shape = KNOWN_ENCODERS["minilm"].shape
    compared = {options["name"] for options in SETTINGS}
    for name in METHODS.names():
        method = METHODS.get(name)()
        has_form = method.stored_form().peft_config(shape) is not None
        assert has_form or not method.parameters(shape) or name in compared, f"{name} has no form in the PEFT library, and is compared with nothing"
