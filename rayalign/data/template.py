"""The one way from a conversation to tokens, shared by training and generation (T17).

A prompt is rendered by the chat template with its generation prompt and tokenised; a response is tokenised by
itself and put behind it, closed by the end token. The sampler gets the very tokens that training sees before
the response, so nothing can drift between the two, whatever the template does to a finished dialogue. Special
tokens come from the template alone: the tokenizer adds none (no second BOS), and none is read out of the text
of a response (a demonstration that says "<|im_end|>" cannot end a turn).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayalign.data.files import one_line
from rayalign.data.hub import quiet_hub
from rayalign.data.vocabulary import Vocabulary
from rayalign.errors import ConfigError, DataError
from rayalign.types import Conversation, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# For a base model without a template. One user turn, with or without its answer, is the bare text; a longer
# conversation names the speakers. Line breaks, not spaces, separate speaker and text, because an answer then
# has the same tokens whether it is generated or stands in a history.
#
#     What is 2 + 2?               system:
#     assistant:                   Be brief.
#     4                            user:
#                                  What is 2 + 2?
#                                  assistant:
#                                  4
PLAIN = (
    "{% set bare = messages[0]['role'] == 'user' and (messages | length == 1 or "
    "(messages | length == 2 and messages[1]['role'] == 'assistant')) %}"
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{% if not (bare and loop.first) %}{{ message['role'] + ':\\n' }}{% endif %}"
    "{{ message['content'] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nassistant:\\n' }}{% endif %}"
)

# A plain word, so that no template cuts, moves or hides it.
_PROBE = "probe"


class Template:
    """Renders and tokenises conversations with one tokenizer and one chat template.

    `chat_template` is None (the tokenizer's own), "plain" (PLAIN above, with a BOS in front where the
    tokenizer itself would add one), or the path of a Jinja file. `end_token_ids` are the tokens that end a
    response: the first is the one put behind every response, and the sampler stops at any of them. It is what
    the template puts after an assistant turn where that is a special token (`<|im_end|>`), else the
    tokenizer's EOS.

    Raises ConfigError where there is no template, no end token, or a template that does not work.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self.chat_template = _find_template(tokenizer, chat_template)
        self.end_token_ids = self._find_end_tokens()

    @property
    def end_token_id(self) -> int:
        """The token put behind every response."""
        return self.end_token_ids[0]

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, where the tokenizer has one."""
        bos: int | None = self._tokenizer.bos_token_id
        return bos

    @property
    def unknown_token_id(self) -> int | None:
        """What the tokenizer gives for text that it has no token for; None where it has one for all, or none of its own."""
        own: int | None = self._tokenizer.unk_token_id
        others = {self._tokenizer.pad_token_id, self._tokenizer.bos_token_id, *self.end_token_ids}
        return None if own in others else own

    def prompt_text(self, conversation: Conversation) -> str:
        """The rendered prompt, up to where the response begins.

        Raises DataError where the template refuses the conversation (roles that do not alternate, for
        instance).
        """
        return self._render(conversation, add_generation_prompt=True)

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of rendered prompts, many at once (the tokenizer uses its threads)."""
        return self._encode(texts, split_special_tokens=False)

    def encode_responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of responses with their end tokens, many at once."""
        return [[*tokens, self.end_token_id] for tokens in self._encode(texts, split_special_tokens=True)]

    def decode_response(self, tokens: Iterable[int]) -> str:
        """The text of a response, without the end token. Other special tokens in it are shown."""
        ids = [int(token) for token in tokens]
        if ids and ids[-1] in self.end_token_ids:
            ids.pop()
        return self.decode_tokens(ids)

    def decode_tokens(self, tokens: Iterable[int]) -> str:
        """Their text, with every special token."""
        ids = [int(token) for token in tokens]
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def decode_prompt(self, tokens: Iterable[int]) -> str:
        """The text of a prompt as a person reads it, without special tokens."""
        text = self._tokenizer.decode(
            [int(token) for token in tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def without_special(self, text: str) -> str:
        """A rendered text without its special tokens, as `decode_prompt` would show it apart from spaces beside them."""
        special = {token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        for token in sorted(special | set(self._tokenizer.all_special_tokens), key=len, reverse=True):
            text = text.replace(token, "")
        return text

    def save_tokenizer(self, folder: str | Path) -> None:
        """Puts the tokenizer beside saved weights, with the template that the run used."""
        self._tokenizer.chat_template = self.chat_template
        self._tokenizer.save_pretrained(folder)

    def model_settings(self) -> dict[str, int]:
        """What a model made from scratch must know of the tokenizer: its size and special tokens."""
        ids = {
            "bos_token_id": self._tokenizer.bos_token_id,
            "eos_token_id": self.end_token_id,
            "pad_token_id": self._tokenizer.pad_token_id,
        }
        known = {name: int(token) for name, token in ids.items() if token is not None}
        return {"vocab_size": len(self._tokenizer), **known}

    def vocabulary(self, name: str) -> Vocabulary:
        """The tokens that conversations may become."""
        ends = self._tokenizer.convert_ids_to_tokens(list(self.end_token_ids))
        return Vocabulary.of(
            name, self._tokenizer, used=" ".join([self.chat_template, *ends, self._tokenizer.bos_token or ""])
        )

    def _encode(self, texts: Sequence[str], *, split_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []  # transformers fails on no texts
        encoded = self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=split_special_tokens, verbose=False
        )
        return list(encoded["input_ids"])

    def _render(self, conversation: Conversation, *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        messages = [{"role": message.role, "content": message.content} for message in conversation]
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (TemplateError, TypeError) as error:
            roles = ", ".join(message.role for message in conversation)
            raise DataError(
                f"the chat template does not take a conversation with the roles {roles} ({one_line(error)}); "
                "mend the row, or set data.chat_template"
            ) from None
        return str(text)

    def _find_end_tokens(self) -> tuple[int, ...]:
        eos = self._tokenizer.eos_token_id
        found = [token for token in (self._template_end(), eos) if token is not None]
        if not found:
            raise ConfigError(
                "the tokenizer has no EOS token, so no response could ever end; set eos_token in its "
                "tokenizer_config.json, or use a chat template that closes turns with a special token"
            )
        return tuple(dict.fromkeys(found))

    def _template_end(self) -> int | None:
        """The special token that the template puts right after an assistant turn, if there is one."""
        turns = (Message("user", _PROBE), Message("assistant", _PROBE))
        try:
            text = self._render(turns, add_generation_prompt=False)
        except DataError as error:
            raise ConfigError(f"the chat template does not work: {error}") from None
        _, _, after = text.rpartition(_PROBE)
        tokens = self._encode([after.lstrip()], split_special_tokens=False)[0]
        special = {*self._tokenizer.all_special_ids, *self._tokenizer.get_added_vocab().values()}
        return tokens[0] if tokens and tokens[0] in special else None


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a hub name.

    Raises ConfigError with one line for a folder that holds none, and for a hub that cannot be reached.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoTokenizer

    folder = Path(path).expanduser()
    place = str(folder) if os.path.isdir(folder) else str(path)
    try:
        with quiet_hub():
            return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, StrictDataclassError) as error:
        raise ConfigError(_why_no_tokenizer(place, folder, error)) from None


def _why_no_tokenizer(place: str, folder: Path, error: Exception) -> str:
    if os.path.isdir(folder):
        return (
            f"{place}: this folder holds no tokenizer that loads ({one_line(error)}); "
            "set model.tokenizer to a folder with tokenizer.json and tokenizer_config.json"
        )
    if os.path.exists(folder):
        return f"{place}: a file, but a tokenizer is a folder with tokenizer.json and tokenizer_config.json"
    return (
        f"{place}: no such folder, and the Hugging Face hub does not give a tokenizer of that name "
        f"({one_line(error)}); check model.path and model.tokenizer, or the network"
    )


def _find_template(tokenizer: Any, chat_template: str | None) -> str:
    if chat_template == "plain":
        return ("{{ bos_token }}" if _adds_bos(tokenizer) else "") + PLAIN
    if chat_template is not None:
        return _read_template(Path(chat_template).expanduser())
    if not tokenizer.chat_template:
        raise ConfigError(
            "the tokenizer has no chat template; set data.chat_template to a .jinja file, "
            'or to "plain" for bare text'
        )
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:  # several named templates, and none of them is the default
        raise ConfigError(
            f"the tokenizer's chat templates have no default ({one_line(error)}); "
            "set data.chat_template to a .jinja file"
        ) from None


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f'data.chat_template: {path} cannot be read ({one_line(error)}); name a .jinja file, or "plain"'
        ) from None


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer.encode("")[:1] == [tokenizer.bos_token_id]
