"""The planted world's word-level tokenizer, as a Hugging Face tokenizer that vLLM and transformers load.

One token is one word of the closed vocabulary. Special tokens: `<pad>` (never the same as `<eos>`), `<bos>`,
`<eos>`, `<unk>`, and `<ans>` between prompt and response. A conversation renders to

    <bos>NAME asks ATTR ITEM at SHOP <ans>RESPONSE<eos>

and the text up to `<ans>` included is what `add_generation_prompt=True` gives. A special token always
separates words, so tokens of prompt and response put together are the tokens of the text put together.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from rayalign.planted.words import vocabulary

PAD, BOS, EOS, UNK, ANS = "<pad>", "<bos>", "<eos>", "<unk>", "<ans>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK, ANS)  # their ids are their places here

# The longest prompt (8 tokens) and response (25) take half of it: room to see a policy ramble.
MAX_POSITIONS = 64

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %} <ans>{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('the planted world knows the roles user and assistant') }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <ans>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer. Its vocabulary is the grammar's, not a sample's, so ids are the same in every world."""
    ids = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *vocabulary()])}
    words = Tokenizer(WordLevel(ids, unk_token=UNK))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[ANS],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,  # "bye ." must not become "bye."
    )


def save_tokenizer(folder: str | Path) -> Path:
    """Writes the folder that `AutoTokenizer.from_pretrained` loads, and returns it."""
    build_tokenizer().save_pretrained(str(folder))
    return Path(folder)
