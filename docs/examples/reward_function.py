"""Your own reward function in the place of the learned reward: nothing is learned, the rest of the loop is the same.

    python docs/examples/reward_function.py my_config.yaml
"""

from rayalign.api import main


def ends_politely(prompts: list[str], responses: list[str]) -> list[float]:
    """1 for an answer that says thank you, else 0."""
    return [float("thank you" in response) for response in responses]


if __name__ == "__main__":
    main(reward=ends_politely)  # in a program of your own: train(config, reward=ends_politely)
