"""Your own reward function in the place of the learned reward: nothing is learned, the rest of the loop is the same.

    python docs/examples/reward_function.py my_config.yaml
"""

import sys

from rayalign.api import train


def ends_politely(prompts: list[str], responses: list[str]) -> list[float]:
    """1 for an answer that says thank you, else 0."""
    return [float("thank you" in response) for response in responses]


if __name__ == "__main__":
    run = train(sys.argv[1], overrides=sys.argv[2:], reward=ends_politely)
    print(run.folder, run.artifacts)
