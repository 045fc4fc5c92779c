"""The tables of models: every class is said once, and what is said of it can be printed."""

import pytest

from dicache.models.catalogue import catalogue, markdown
from dicache.models.families import FAMILIES
from dicache.models.family import Inside
from dicache.models.refusals import REFUSALS
from dicache.types import Kind, Site


@pytest.fixture(scope="module")
def entries():
    return catalogue()


def test_a_class_is_wrapped_or_refused_and_never_both():
    assert not FAMILIES.keys() & REFUSALS.keys()
    assert all(name == family.model and not family.refused for name, family in FAMILIES.items())
    assert all(name == family.model and family.refused for name, family in REFUSALS.items())


def test_every_entry_says_what_becomes_of_a_batch_or_why_not(entries):
    assert len({entry.model for entry in entries}) == len(entries) > 60
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
        with pytest.raises(Exception, match=r"Use sites=Evaluation\(\) and a probe of depth 0"):
            family.check(sites, depth)
    family.check((), 0)
