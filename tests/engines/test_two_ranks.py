"""Policy and reward rounds on two real ranks give the numbers of one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engines.gradients import distance


@pytest.fixture(scope="module")
def reports(one_rank, two_ranks):
    """(what one process saw, [what each of two ranks saw])."""
    return one_rank["rounds"], [rank["rounds"] for rank in two_ranks]


@pytest.mark.parametrize("name", ["plain", "ZeRO-3", "ZeRO-3 LoRA"])
def test_a_policy_update_does_not_depend_on_the_ranks(reports, name):
    """Four optimiser steps with KL and clipping: metrics, weights, mismatch, and the KL to a moved reference."""
    one, ranks = reports
    for rank in ranks:
        assert rank[name]["metrics"] == pytest.approx(one[name]["metrics"], rel=1e-3, abs=1e-5)
        assert distance(rank[name]["moved"], one[name]["moved"]) < 1e-3
        assert rank[name]["mismatch"] == pytest.approx(one[name]["mismatch"], rel=1e-3)
        assert rank[name]["kl"] == pytest.approx(one[name]["kl"], rel=1e-3, abs=1e-6)
    assert one["plain"]["moved"], "nothing was updated"
    assert (abs(one[name]["kl"]) > 1e-3) == ("LoRA" in name)


def test_zero_three_gives_the_numbers_of_stage_zero(reports):
    one, _ = reports
    assert distance(one["ZeRO-3"]["moved"], one["plain"]["moved"]) < 1e-3


def test_a_moved_reference_is_the_policy_on_every_rank(reports):
    """Its small weights too, which DeepSpeed would have kept as they were gathered before."""
    one, ranks = reports
    for found in (one, *ranks):
        assert abs(found["moved reference"]) < 1e-6


def test_a_critic_does_not_depend_on_the_ranks(reports):
    """The second update knows what the first one's critic has learned."""
    one, ranks = reports
    for rank in ranks:
        assert rank["critic"]["metrics"] == pytest.approx(one["critic"]["metrics"], rel=1e-2, abs=1e-4)
    assert one["critic"]["metrics"]["critic/grad_norm"] > 0


@pytest.mark.parametrize("loss", ["log_sigmoid", "dft"])
def test_implicit_steps_do_not_depend_on_the_ranks(reports, loss):
    """Six steps; with DFT, what one rank found of a group is known to the other when it sees the group again."""
    one, ranks = reports
    assert one["implicit"][loss]["steps"] == 6
    for rank in ranks:
        assert rank["implicit"][loss]["metrics"] == pytest.approx(one["implicit"][loss]["metrics"], rel=1e-2, abs=1e-3)


def test_a_reward_round_does_not_depend_on_the_ranks(reports):
    """Loss, accuracy, normaliser; each rank scores a share, and the shares are every sample once."""
    one, ranks = reports
    for rank in ranks:
        assert rank["reward"]["metrics"] == pytest.approx(one["reward"]["metrics"], rel=1e-3, abs=1e-5)
    shares = [rank["reward"]["scores"] for rank in ranks]
    rows = np.concatenate([share.rows for share in shares])
    assert sorted(rows) == [0, 1, 2, 3, 4] and all(len(share.rows) for share in shares)
    whole = one["reward"]["scores"]
    together = np.concatenate([share.values for share in shares])
    np.testing.assert_allclose(together[np.argsort(rows)], whole.values[np.argsort(whole.rows)], atol=1e-4)
