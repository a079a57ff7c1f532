"""A group that scores: what it must give where something is chosen or measured by it."""

from __future__ import annotations

import numpy as np
import pytest

from rayalign.actors.local_workers import LocalWorkers
from rayalign.engines.function_reward import FunctionReward
from rayalign.errors import RayalignError
from rayalign.stages.groups import RewardGroup
from rayalign.stages.scoring import every_score
from rayalign.types import Ragged, Sequences


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_is_chosen_by_a_score_that_is_none(bad: float) -> None:
    """One line, and not a file of NaN."""
    sequences = Sequences(Ragged.from_list([[1, 2], [1, 3], [1, 4]]), np.full(3, 1), np.arange(3), np.full(3, True))
    workers = LocalWorkers("reward")
    given = [1.0, bad, 3.0]
    workers.build(lambda values: FunctionReward(lambda prompts, responses: values, str, str), [(given,)])
    with pytest.raises(RayalignError, match="1 of 3 samples have no score that is a finite number") as error:
        every_score(RewardGroup(workers), sequences)
    assert "\n" not in str(error.value)
    given[1] = 2.0
    assert every_score(RewardGroup(workers), sequences).tolist() == [1, 2, 3]
