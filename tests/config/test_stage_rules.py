"""What the stages of the papers refuse, each in one line that names the key and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from rayalign.config.load import parse_config
from rayalign.errors import ConfigError

SFT = {"kind": "sft"}
IRL = {"kind": "irl", "policy": "stage:sft/policy", "reward": {"init": "m"}}
FIT = {"kind": "fit_reward", "init": "m"}
RL = {"kind": "rl", "policy": "stage:sft/policy", "reward": "stage:reward/reward"}
IMPLICIT = {"kind": "implicit", "policy": "stage:sft/policy"}
AVA = {"kind": "ava", "init": "m"}
DENSE = {"advantage": "reinforce_pp"}
PPO = {"advantage": "gae", "critic": {}}
LOGITS = {"init": "m", "loss": "logistic", "normalise": "none"}


def config(*stages: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"name": "x", "model": {"path": "m"}, "stages": [SFT, *stages], **keys}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([FIT, RL | {"improve": {"advantage": "gae"}}], "advantage gae and critic go together"),
        ([FIT, RL | {"improve": {"critic": {}}}], "advantage gae and critic go together"),
        ([FIT, RL | {"improve": {"samples_per_prompt": 1}}], "samples_per_prompt (1): the baseline of rloo"),
        ([RL | {"reward": None, "improve": {"advantage": "gae", "critic": {}}}], "improve.critic.init: a reward of"),
        ([FIT, RL | {"token_rewards": True}], "token_rewards: advantage rloo gives a response one advantage"),
        ([FIT, RL | {"token_rewards": True, "improve": DENSE}], "stage:reward/reward is a sequence-level reward"),
        ([IRL | {"reward": {"init": "m", "divergence": "forward_kl"}}], "set loss to logistic"),
        (
            [IRL | {"reward": {"init": "m", "divergence": "jensen_shannon", "loss": "logistic"}}],
            "set normalise to none",
        ),
        ([IRL | {"reward": {"init": "m", "demonstration_weight": 0}}], "are both 0"),
        (
            [IRL | {"reward": {"init": "m", "demonstration_weight": 0, "preference_weight": 1}}],
            "the policy is never sampled for the reward",
        ),
        ([IMPLICIT | {"demonstrations": None}], "demonstrations and preferences are both unset"),
        ([IMPLICIT | {"rounds": 3, "beta": [0.1, 0.1]}], "beta has 2 values and there are 3 rounds"),
        ([IMPLICIT | {"rounds": 2, "learning_rates": [1e-6]}], "learning_rates has 1 values and there are 2 rounds"),
        (
            [IMPLICIT | {"demonstrations": {"loss": "gsil", "negatives": ["a.jsonl"]}}],
            "are for a pair loss on drawn samples, not for gsil",
        ),
        (
            [IMPLICIT | {"demonstrations": {"negatives": ["a.jsonl"]}, "on_policy": True}],
            "not for on_policy, which draws all of them",
        ),
        ([IMPLICIT | {"sampling": {"temperature": 0.7}}], "sampling.temperature (0.7): the implicit reward is that of"),
        ([IMPLICIT | {"demonstrations": {"loss": "dft"}, "on_policy": True}], "on_policy: dft takes its samples for draws"),
        ([IMPLICIT | {"demonstrations": {"loss": "gsil"}, "on_policy": True}], "on_policy: gsil takes its samples for"),
        ([IMPLICIT | {"demonstrations": {"loss": "likelihood"}, "on_policy": True}], "on_policy: likelihood draws nothing"),
        ([IMPLICIT | {"keep_previous": True}], "keep_previous needs rounds"),
        ([IMPLICIT | {"keep_previous": True, "rounds": 2, "on_policy": True}], "keep_previous needs rounds"),
        (
            [IMPLICIT | {"demonstrations": {"loss": "dft"}, "rounds": 2, "reference": "start"}],
            "dft takes its samples for draws of the reference",
        ),
        (
            [IMPLICIT | {"demonstrations": {"loss": "gsil"}, "rounds": 2, "keep_previous": True}],
            "gsil takes its samples for draws of the reference",
        ),
        ([RL | {"reward": "stage:sft/policy"}], "stage:sft/policy is a policy, and this takes a reward"),
        ([FIT, RL | {"policy": "stage:reward/reward"}], "stage:reward/reward is a reward, and this takes a policy"),
        ([FIT, RL | {"improve": {"gamma": 0.9}}], "gamma (0.9): rloo gives a whole response one advantage"),
        ([FIT, RL | {"improve": {"loss": "policy_gradient", "epochs": 2}}], "loss policy_gradient holds for one step"),
        (
            [IRL | {"reward": {"init": "m", "demonstration_weight": 0, "preference_weight": 1, "replay": "cumulative"}}],
            "negatives and replay stand against demonstrations",
        ),
        (
            [AVA, RL | {"reward": "stage:ava/reward", "improve": PPO}],
            "stages.rl.improve.critic.init: stage:ava/reward has no head of one number",
        ),
        (
            [IRL | {"reward": LOGITS | {"divergence": "jensen_shannon"}, "improve": PPO}],
            "improve.critic.init: with divergence jensen_shannon",
        ),
        ([IMPLICIT | {"demonstrations": None, "preferences": {}, "rounds": 2}], "are about demonstrations"),
        ([AVA | {"lambda_td": 2, "sigma_floor": 0}], "has no maximum without a sigma_floor"),
        ([AVA | {"variant": "demonstrations", "pairs": {"better": "a", "worse": "b"}}], "pairs are for variant preferences"),
        ([FIT | {"pairs": {"better": "demonstrations", "worse": "stage:reward/reward"}}], "names no earlier stage"),
        ([{"kind": "best_of_n", "policy": "m", "reward": "m", "n": []}], "n:"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_starts(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(config(*stages))
    line = str(caught.value)
    assert message in line and "\n" not in line, line


def test_rewards_with_tokens_may_be_asked_for_them() -> None:
    for kind in ("ava", "log_ratio", "implicit"):
        maker: dict[str, Any] = {
            "ava": AVA,
            "log_ratio": {"kind": "log_ratio", "policy": "stage:sft/policy", "reference": "m"},
            "implicit": IMPLICIT,
        }[kind]
        stage = RL | {"reward": f"stage:{kind}/reward", "token_rewards": True, "improve": DENSE}
        assert parse_config(config(maker, stage)).stages[-1].kind == "rl"
