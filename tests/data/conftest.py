"""What the data tests share: tiny tokenizers made on the spot, and where the real files lie, if they do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rayalign.data.template import Template
from rayalign.types import Conversation

REAL_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = (  # Llama 2's: it writes the BOS itself, wants alternating roles, and closes answers with " </s>"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)


def prompt_tokens(template: Template, conversation: Conversation) -> list[int]:
    """What the sampler is given, and what training sees before the response."""
    return template.encode_prompts([template.prompt_text(conversation)])[0]


def response_tokens(template: Template, response: str) -> list[int]:
    """The response with its end token."""
    return template.encode_responses([response])[0]


def sequence_tokens(template: Template, conversation: Conversation, response: str) -> tuple[list[int], int]:
    """Prompt and response, and the length of the prompt."""
    prompt = prompt_tokens(template, conversation)
    return prompt + response_tokens(template, response), len(prompt)


def make_tokenizer(
    *, chat_template: str | None = None, adds_bos: bool = False, eos: str | None = "</s>"
) -> Any:
    """A byte-level BPE tokenizer of about 300 tokens, as a transformers tokenizer."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["What is the answer? The answer is a user and an assistant."] * 3, trainer)
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token=eos, chat_template=chat_template
    )


@pytest.fixture(scope="session")
def chatml() -> Any:
    """ChatML: no BOS, answers close with <|im_end|> while EOS is </s>."""
    return make_tokenizer(chat_template=CHATML)


@pytest.fixture(scope="session")
def llama() -> Any:
    """Llama style: the template writes the BOS, and the tokenizer would add another."""
    return make_tokenizer(chat_template=LLAMA, adds_bos=True)


@pytest.fixture(scope="session")
def bare() -> Any:
    """No chat template, no BOS."""
    return make_tokenizer()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Writes a file below the test's folder, gzipped where its name says so."""

    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return write_file


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def real(name: str) -> Path:
    """A real file, or a skip that says why."""
    path = REAL_DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not there; this test reads real data that is not part of the repository")
    return path
