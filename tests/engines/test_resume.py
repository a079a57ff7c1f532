"""An engine that takes up a saved state goes on as the one that was saved: bit by bit, and on another number of ranks."""

from __future__ import annotations

import pytest

from tests.engines import resume


@pytest.fixture(scope="module")
def alone(untied, tmp_path_factory):
    """(what the saved engines did next, what those did that took up their states), in this process."""
    root = tmp_path_factory.mktemp("saved-by-one")
    return resume.halfway(untied, root), resume.resumed(untied, root)


@pytest.mark.parametrize("name", resume.cases())
def test_a_resumed_engine_gives_the_same_numbers(alone, name):
    went_on, took_up = (found[name] for found in alone)
    assert list(resume.numbers(took_up)) == list(resume.numbers(went_on))
    assert list(resume.numbers(went_on)), "nothing was compared"


@pytest.mark.parametrize("name", resume.cases())
def test_so_it_does_on_two_ranks(two_ranks, name):
    for rank in two_ranks:
        assert list(resume.numbers(rank["resumed"][name])) == list(resume.numbers(rank["halfway"][name]))


def test_one_rank_takes_up_what_two_have_saved(two_ranks, saved_by_two, untied):
    took_up = resume.resumed(untied, saved_by_two)
    for name, went_on in two_ranks[0]["halfway"].items():
        assert list(resume.numbers(took_up[name])) == pytest.approx(list(resume.numbers(went_on)), rel=2e-3, abs=1e-4), name
