"""From the text of a prompt back to the very tokens that training saw."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayalign.data.rendered import RenderedPrompts
from rayalign.data.template import Template, load_tokenizer
from rayalign.errors import DataError
from rayalign.planted.tokenizer import save_tokenizer
from rayalign.types import Message
from tests.data.conftest import CHATML, LLAMA, make_tokenizer, prompt_tokens

# As Qwen's: without a system text of its own the template writes one.
TOLD = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe good.<|im_end|>\\n' }}{% endif %}" + CHATML

TEMPLATES = {
    "chatml": Template(make_tokenizer(chat_template=CHATML)),
    "told": Template(make_tokenizer(chat_template=TOLD)),
    "llama": Template(make_tokenizer(chat_template=LLAMA, adds_bos=True)),
    "plain": Template(make_tokenizer(), "plain"),
    "plain-bos": Template(make_tokenizer(adds_bos=True), "plain"),
}
READERS = {name: RenderedPrompts(template) for name, template in TEMPLATES.items()}
QUESTION = (Message("user", "What is\n2 + 2?"),)
DIALOGUE = (*QUESTION, Message("assistant", "4, said the user."), Message("user", "And\n\n2 + 3?"))
LONGER = (*DIALOGUE, Message("assistant", "5"), Message("user", "Sure?"))
SYSTEM = (Message("system", "Be brief."),)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", [QUESTION, DIALOGUE, LONGER, SYSTEM + QUESTION, SYSTEM + DIALOGUE])
def test_conversations_come_back_token_for_token(name: str, conversation: tuple[Message, ...]) -> None:
    template = TEMPLATES[name]
    if name == "llama" and conversation[0].role == "system":
        pytest.skip("this template takes no system text")
    tokens = prompt_tokens(template, conversation)
    assert READERS[name].encode([template.decode_prompt(tokens)]) == [tokens]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(TEMPLATES)), st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_question_comes_back(name: str, question: str) -> None:
    template = TEMPLATES[name]
    tokens = prompt_tokens(template, (Message("user", question),))
    assert READERS[name].encode([template.decode_prompt(tokens)]) == [tokens]


def test_the_planted_world_comes_back(tmp_path: Path) -> None:
    """A tokenizer of whole words, which knows none of the words that templates are probed with."""
    template = Template(load_tokenizer(save_tokenizer(tmp_path)))
    tokens = prompt_tokens(template, (Message("user", "Nora asks opening teapot at plaza"),))
    assert RenderedPrompts(template).encode([template.decode_prompt(tokens)]) == [tokens]


def test_a_prompt_that_was_cut_on_the_left() -> None:
    """Exact where the template has no special tokens; elsewhere its remaining text, with none of those it had."""
    for name in ("plain", "chatml"):
        template = TEMPLATES[name]
        tokens = prompt_tokens(template, LONGER)[9:]
        (found,) = READERS[name].encode([template.decode_prompt(tokens)])
        assert template.decode_prompt(found) == template.decode_prompt(tokens)
        assert name == "chatml" or found == tokens


def test_what_is_no_prompt_of_the_template_is_refused() -> None:
    text = TEMPLATES["chatml"].decode_prompt(prompt_tokens(TEMPLATES["chatml"], QUESTION))
    for name, bad in {"chatml": "What is 2 + 2?", "llama": text, "plain": text}.items():
        good = TEMPLATES[name].decode_prompt(prompt_tokens(TEMPLATES[name], QUESTION))
        with pytest.raises(DataError, match=r"prompts\[1\] does not read as a prompt"):
            READERS[name].encode([good, bad])
