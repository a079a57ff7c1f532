"""Your own rollout actor around the built-in vLLM sampler: here an environment that looks something up first.

What it puts into the prompt is part of what the policy learns from, because rollouts carry their own tokens.

    python docs/examples/rollout_actor.py my_config.yaml
"""

import numpy as np

from rayalign.api import SamplerSetup, main
from rayalign.config.stages import SamplingConfig
from rayalign.data.template import Template, load_tokenizer
from rayalign.engines.vllm_backend.sampler import VllmSampler
from rayalign.types import Ragged, Rollout, TokenizedPrompts

NOTES = {"opening": "11am", "cost": "three"}  # stands for a search engine, a calculator, a database


class Lookup(VllmSampler):
    """Looks up a note for each prompt and puts it in front of where the response begins."""

    def __init__(self, setup: SamplerSetup) -> None:
        super().__init__(setup)
        self._template = Template(load_tokenizer(setup.tokenizer), setup.chat_template)

    def generate(
        self, prompts: TokenizedPrompts, sampling: SamplingConfig, *, num_per_prompt: int, seed: int
    ) -> Rollout:
        """As the sampler does it, on prompts with their notes."""
        noted = TokenizedPrompts(
            Ragged.from_list([self._with_note(tokens) for tokens in prompts.tokens]), prompts.prompt_ids
        )
        return super().generate(noted, sampling, num_per_prompt=num_per_prompt, seed=seed)

    def _with_note(self, tokens: np.ndarray) -> list[int]:
        text = self._template.decode_prompt(tokens)
        note = next((note for word, note in NOTES.items() if word in text), None)
        if note is None:
            return tokens.tolist()
        noted = self._template.encode_responses([note])[0][:-1]
        return [*tokens[:-1].tolist(), *noted, int(tokens[-1])]


if __name__ == "__main__":
    main(rollout=Lookup)  # in a program of your own: train(config, rollout=Lookup)
