"""Your own objective: one pure function in the place of the reward's loss; everything else of the run stays.

This one is Bradley-Terry with a margin: a demonstration must score a whole unit above the policy's sample, and not just
above it.

    python docs/examples/objective.py my_config.yaml
"""

import torch
from torch import Tensor

from rayalign.api import main

MARGIN = 1.0


def margin_loss(demo_scores: Tensor, agent_scores: Tensor) -> Tensor:
    """-sum log sigmoid(r(demo) - r(agent) - MARGIN): demo_scores[N], agent_scores[N] -> scalar, a sum over pairs."""
    return torch.nn.functional.softplus(MARGIN - (demo_scores - agent_scores)).sum()


if __name__ == "__main__":
    main(reward_loss=margin_loss)  # in a program of your own: train(config, reward_loss=margin_loss)
