"""Full fine-tuning's updater: a plain loop with its rates, decay and clipping; restoring a state forgets the moments gathered since."""

import pytest
import torch

from lorabel.config import OptimizerConfig
from lorabel.training.updates import LibraryUpdater, MemberUpdate


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_restoring_the_start_repeats_the_run_bit_for_bit(name):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=generator).requires_grad_()
    updater = LibraryUpdater({"weight": weight}, OptimizerConfig(name=name), 0.1)
    start = updater.state()
    gradients = [torch.randn(4, 3, generator=generator) for _ in range(3)]
    ends = []
    for _ in range(2):
        updater.restore(start)
        for gradient in gradients:
            weight.grad = gradient.clone()
            updater.update([MemberUpdate(1.0, 0.0, 1.0)], torch.zeros(1))
        ends.append(weight.detach().clone())
    assert not torch.equal(ends[0], start["values.weight"])
    assert torch.equal(ends[0], ends[1])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_full_fine_tuning_takes_its_rates_decay_clipping_and_unscaling_from_the_settings(name):
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "encoder.layers.0.qkv.weight": (4, 3),
        "encoder.layers.0.qkv.bias": (4,),
        "encoder.embeddings.norm.weight": (3,),
        "head.classifier.weight": (1, 2, 3),
    }
    tensors = {key: torch.randn(shape, generator=generator).requires_grad_() for key, shape in shapes.items()}
    plain = {key: tensor.detach().clone().requires_grad_() for key, tensor in tensors.items()}
    config = OptimizerConfig(name=name, head_learning_rate=0.03, weight_decay=0.2)
    updater = LibraryUpdater(tensors, config, 0.1)
    decay = {key: 0.2 if key in ("encoder.layers.0.qkv.weight", "head.classifier.weight") else 0.0 for key in plain}
    peaks = {key: 0.03 if key.startswith("head.") else 0.1 for key in plain}
    groups = [{"params": [tensor], "weight_decay": decay[key], "lr": peaks[key]} for key, tensor in plain.items()]
    library = torch.optim.AdamW(groups) if name == "adamw" else torch.optim.SGD(groups, momentum=0.9)
    for step in range(4):
        factor = 1 - step / 5
        gradients = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        for key, gradient in gradients.items():
            tensors[key].grad, plain[key].grad = 8 * gradient, gradient.clone()
        for group, peak in zip(library.param_groups, peaks.values(), strict=True):
            group["lr"] = peak * factor
        expected = torch.nn.utils.clip_grad_norm_(plain.values(), 0.5)
        library.step()
        assert updater.update([MemberUpdate(factor, 0.5, 1 / 8)], torch.zeros(1))[0] == pytest.approx(float(expected), rel=1e-6)
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, plain[key], rtol=1e-6, atol=1e-7)


def test_a_restored_state_lies_where_the_tensors_are():
    updater = LibraryUpdater({"weight": torch.zeros(3, device="meta", requires_grad=True)}, OptimizerConfig(), 0.1)
    updater.restore({"values.weight": torch.ones(3), **{f"optimizer.{key}.weight": torch.ones(3) for key in ("step", "exp_avg", "exp_avg_sq")}})
    (state,) = updater._optimizer.state.values()
    assert {tensor.device.type for tensor in state.values()} == {"meta"}
