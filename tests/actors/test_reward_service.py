"""A reward service asked by actors of a Ray that is started here: shares, errors, and a token that Ray does not keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray

from rayalign.actors.fleet import RayFleet
from rayalign.config.placement import PlacementConfig
from rayalign.config.service import TOKEN as VARIABLE
from rayalign.config.service import RewardServiceConfig
from rayalign.engines.reward_service import service_reward
from rayalign.errors import UserError
from rayalign.planted.tokenizer import save_tokenizer
from rayalign.ports import ServiceSetup
from rayalign.stages.groups import RewardGroup
from rayalign.types import Ragged, Sequences
from tests.services import TOKEN, lengths, serving, status


@pytest.mark.own_process
def test_two_actors_ask_for_their_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token reaches them by the environment, and is in none of Ray's files afterwards."""
    monkeypatch.setenv(VARIABLE, TOKEN)
    tokenizer = str(save_tokenizer(tmp_path))
    rows = [[1, 7, 4, *[9] * (i + 1), 2] for i in range(5)]
    sequences = Sequences(Ragged.from_list(rows), np.full(5, 3), np.arange(5), np.full(5, True))
    fleet = RayFleet(PlacementConfig.model_validate({"reward": {"workers": 2}, "share_cores": True}))
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    try:
        with serving(lengths, status(401)) as service:
            setup = ServiceSetup(service.url, RewardServiceConfig(batch_size=2, retries=0), tokenizer, None)
            workers = fleet.start("reward", service_reward, [setup] * 2)
            with pytest.raises(UserError, match="it answers status 401"):
                RewardGroup(workers).score_sequences(sequences)
            workers.close()
        with serving(lengths) as service:
            setup = ServiceSetup(service.url, RewardServiceConfig(batch_size=2, retries=0), tokenizer, None)
            workers = fleet.start("reward", service_reward, [setup] * 2)
            assert RewardGroup(workers).score_sequences(sequences).tolist() == [1, 2, 3, 4, 5]
            workers.close()
        assert sorted(len(asked["prompts"]) for asked in service.asked) == [1, 2, 2]
        assert {headers["Authorization"] for headers in service.headers} == {f"Bearer {TOKEN}"}
    finally:
        fleet.close()
    files = [file for file in session.rglob("*") if file.is_file()]
    assert files and [file for file in files if TOKEN.encode() in file.read_bytes()] == []
