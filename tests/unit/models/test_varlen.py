"""The variable-length kernels' plumbing, with a plain stand-in for the kernel: the same answers and gradients as our own attention, in every family, tails and pooled rows included."""

import math

import pytest
import torch
from tests.conftest import FAMILIES
from tests.contracts.batches import packed, sequences

from lorabel.config import EncoderConfig
from lorabel.methods.base import make_method
from lorabel.models import encoder as encoder_module
from lorabel.models import varlen
from lorabel.models.checkpoint import load_weights, resolve_encoder
from lorabel.models.encoder import Adapters, PackedEncoder


class _Undefined(torch.autograd.Function):
    """The kernel writes no gradient for rows after the last segment: here they are NaN."""

    @staticmethod
    def forward(ctx, rows, end):
        ctx.end = end
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad[ctx.end :] = math.nan
        return grad, None


def plain_kernel(query, key, value, cu_q, cu_k, max_q, max_k):
    """Attention of each segment by itself; checks what the kernel relies on."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert int(cu_q[-1]) == len(query)
    assert int(cu_k[-1]) <= len(key) == len(value)
    key, value = (_Undefined.apply(rows, int(cu_k[-1])) for rows in (key, value))
    assert max_q >= int(cu_q.diff().max())
    assert max_k >= int(cu_k.diff().max())
    outs = []
    for start_q, end_q, start_k, end_k in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), cu_k[:-1].tolist(), cu_k[1:].tolist(), strict=True):
        q, k, v = (part.transpose(0, 1) for part in (query[start_q:end_q], key[start_k:end_k], value[start_k:end_k]))
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)
        outs.append((weights @ v).transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_gradients_are_those_of_our_own_attention(family, pooling, tiny_encoder, monkeypatch):
    import torch.nn.attention.varlen as library

    source = resolve_encoder(EncoderConfig(name=str(tiny_encoder(family))))
    method = make_method({"name": "lora", "rank": 2, "targets": "all-linear"})
    generator = torch.Generator().manual_seed(0)
    start = {spec.name: torch.randn(1, *spec.shape, generator=generator, dtype=torch.float64) * 0.2 for spec in method.parameters(source.shape)}
    batch = packed(sequences([3, 9, 9, 30, 4]), source.shape.first_position)
    assert batch.tail > 0
    found, calls = [], []
    for has_kernels in (False, True):
        monkeypatch.setattr(encoder_module, "kernels_are_available", lambda device, dtype, answer=has_kernels: answer)
        monkeypatch.setattr(library, "varlen_attn", lambda *arguments: (calls.append(1), plain_kernel(*arguments))[1])
        encoder = PackedEncoder(source.shape, load_weights(source), dtype=torch.float64, device=torch.device("cpu"))
        tensors = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
        pooled = encoder.pool(batch, Adapters((method,), tensors), pooling)
        grads = torch.autograd.grad(pooled.square().sum(), list(tensors.values()))
        found.append((pooled.detach(), grads))
    assert len(calls) == source.shape.num_layers
    (ours, our_grads), (theirs, their_grads) = found
    assert (ours - theirs).abs().max() <= 1e-11
    assert all((a - b).abs().max() <= 1e-10 for a, b in zip(our_grads, their_grads, strict=True))


def test_they_are_used_on_recent_gpus_in_half_precision_alone(monkeypatch):
    monkeypatch.setattr(varlen, "_is_recent", lambda _device: True)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert varlen.kernels_are_available(gpu, torch.bfloat16)
    assert varlen.kernels_are_available(gpu, torch.float16)
    assert not varlen.kernels_are_available(gpu, torch.float32)
    assert not varlen.kernels_are_available(cpu, torch.bfloat16)
    monkeypatch.setattr(varlen, "_is_recent", lambda _device: False)
    assert not varlen.kernels_are_available(gpu, torch.bfloat16)
