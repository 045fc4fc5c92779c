"""The tables of models: every class is said once, and what is said of it can be printed."""

import inspect
from pathlib import Path

import diffusers
import pytest
from torch import nn

import dicache
from dicache.errors import UnsupportedModelError
from dicache.models.catalogue import catalogue, markdown
from dicache.models.families import FAMILIES
from dicache.models.family import Batch, Inside
from dicache.models.refusals import REFUSALS
from dicache.types import Kind, Site
from pipelines.controls import make_unet


@pytest.fixture(scope="module")
def entries():
    return catalogue()


def test_a_class_is_wrapped_or_refused_and_never_both():
    assert not FAMILIES.keys() & REFUSALS.keys()
    assert all(name == family.model and not family.refused for name, family in FAMILIES.items())
    assert all(name == family.model and family.refused for name, family in REFUSALS.items())


def test_every_entry_is_a_transformer_or_a_unet_and_a_refused_one_has_no_inner_sites(entries):
    for entry in entries:
        assert bool(entry.reason) == (entry.batch == "refused")
        assert entry.kind in ("transformer", "unet") and not (entry.reason and entry.inside)


def test_where_not_everything_may_be_skipped_a_reason_is_said():
    assert all(family.between for family in FAMILIES.values() if family.inside is not Inside.SPANS)


def test_the_page_has_a_row_for_every_class(entries):
    rows = [line.split("|")[1].strip() for line in markdown(entries).splitlines() if line.startswith("| ")]
    assert [row for row in rows if row not in ("model", "refused", "---")] == [
        *(entry.model for entry in entries if entry.batch != "refused"),
        *(entry.model for entry in entries if entry.batch == "refused"),
    ]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.inside is Inside.NOTHING])
def test_a_family_without_inner_sites_refuses_them_and_a_probe_with_the_way_out(name):
    family, block = FAMILIES[name], Site("blocks.0", Kind.SPAN, ("blocks.0",))
    for sites, depth in (((block,), 0), ((), 1)):
        with pytest.raises(UnsupportedModelError, match=r"Use sites=Evaluation\(\) and a probe of depth 0"):
            family.check(sites, depth)
    family.check((), 0)


def test_every_denoiser_of_the_installed_diffusers_is_known_by_name(entries):
    names = {entry.model for entry in entries}
    assert len(names) == len(entries) >= 87
    assert names == {*FAMILIES, *REFUSALS}
    assert all(entry.batch in (*Batch, "refused") for entry in entries)
    assert all(entry.reason for entry in entries if entry.batch == "refused")


@pytest.mark.parametrize("model", FAMILIES)
def test_what_a_family_names_is_there_in_its_class(model):
    family, denoiser = FAMILIES[model], getattr(diffusers, model)
    source, inputs = inspect.getsource(denoiser), inspect.signature(denoiser.forward).parameters
    assert all(f"self.{stack} = " in source for stack in family.stacks)
    assert set(family.latents) <= set(inputs)
    assert set(family.time) & set(inputs)


def test_a_unet_without_a_middle_is_wrapped():
    unet = make_unet().unet
    unet.mid_block = None
    dicache.enable(unet, error_budget=0.1).disable()


def test_the_committed_table_is_what_the_command_prints(entries):
    page = Path(__file__).resolve().parents[2] / "docs" / "models.md"
    assert page.read_text() == markdown(entries)


@pytest.mark.parametrize("model", REFUSALS)
def test_a_refused_family_names_its_reason(model):
    denoiser = type(model, (nn.Module,), {})()
    with pytest.raises(UnsupportedModelError, match=f"{model} cannot be cached: it"):
        dicache.enable(denoiser, error_budget=0.1)
