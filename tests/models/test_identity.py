"""Which model this is: the same weights give the same, whatever holds them; others do not."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from dicache.errors import UnsupportedModelError
from dicache.models.identity import VALUES, identity, offloaded, outline


class Denoiser(nn.Module):
    def __init__(self, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, 2 * width)


def test_the_same_weights_are_the_same_model():
    model = Denoiser()
    assert identity(model) == identity(copy.deepcopy(model)) == identity(Denoiser())
    assert identity(model).startswith(outline(model)) and outline(model).startswith("Denoiser-")


@pytest.mark.parametrize("other", [Denoiser(seed=1), Denoiser(width=16)], ids=["weights", "sizes"])
def test_other_weights_are_another_model(other):
    assert identity(other) != identity(Denoiser())
    assert (outline(other) == outline(Denoiser())) == (other.one.weight.shape == (8, 8))


def test_another_class_and_another_precision_are_built_otherwise():
    other = type("Other", (Denoiser,), {})()
    assert outline(other).split("-")[1] == outline(Denoiser()).split("-")[1] and outline(other) != outline(Denoiser())
    assert outline(Denoiser().bfloat16()) != outline(Denoiser())


def test_the_order_in_which_modules_were_added_does_not_matter():
    model, turned = Denoiser(), nn.Module()
    turned.two, turned.one = model.two, model.one
    turned.__class__ = type("Denoiser", (nn.Module,), {})
    assert identity(turned) == identity(model)


def test_a_lora_that_was_merged_is_seen_wherever_it_moved_weights():
    model, before = Denoiser(), identity(Denoiser())
    with torch.no_grad():
        model.two.weight += 1e-3 * torch.randn(16, 1) @ torch.randn(1, 8)
    assert identity(model) != before and outline(model) == outline(Denoiser())


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_what_a_lora_is_called_does_not_matter_but_which_it_is_and_their_order():
    def adapted(*names, seed=0):
        model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["one"]), Denoiser(), adapter_name=names[0])
        for name in names[1:]:
            inject_adapter_in_model(LoraConfig(r=3, target_modules=["one"]), model, adapter_name=name)
        torch.manual_seed(seed)
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                nn.init.normal_(parameter)
        return identity(model)

    assert adapted("default_0") == adapted("lora0") == adapted("style") != identity(Denoiser())
    assert adapted("a") != adapted("a", seed=1), "other weights"
    assert adapted("a", "b") == adapted("x", "y") != adapted("a")


def test_the_first_and_the_last_value_of_a_parameter_are_read():
    for at in (0, -1):
        model = Denoiser()
        with torch.no_grad():
            model.one.weight.flatten()[at] += 1
        assert identity(model) != identity(Denoiser())


def test_parameters_of_fewer_values_than_are_read_and_of_none_have_an_identity():
    model = nn.Module()
    model.scale, model.nothing = nn.Parameter(torch.ones(VALUES - 1)), nn.Parameter(torch.ones(0))
    assert identity(model) == identity(copy.deepcopy(model))


def test_weights_that_are_elsewhere_are_no_identity():
    model = Denoiser()
    assert not offloaded(model)
    model.one = model.one.to("meta")
    assert offloaded(model)
    with pytest.raises(UnsupportedModelError, match=r"offloaded.*before turning on sequential offload"):
        identity(model)


def test_a_parameter_of_more_values_than_float32_counts_is_read_within_it():
    model = nn.Module()
    model.one = nn.Parameter(torch.ones(1).expand(2**24 + 2**22 - 1))
    assert identity(model) == identity(copy.deepcopy(model))
