"""T17: generation and training see the same prompt, token for token, whatever the template."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayalign.data.template import Template, load_tokenizer
from rayalign.errors import ConfigError, DataError
from rayalign.types import Message

from .conftest import CHATML, LLAMA, make_tokenizer, prompt_tokens, response_tokens, sequence_tokens

QUESTION = (Message("user", "What is the answer?"),)
DIALOGUE = (*QUESTION, Message("assistant", "Which?"), Message("user", "This <one> "))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def templates():
    return [
        Template(make_tokenizer(chat_template=CHATML)),
        Template(make_tokenizer(chat_template=LLAMA, adds_bos=True)),
        Template(make_tokenizer(), "plain"),
        Template(make_tokenizer(adds_bos=True), "plain"),
    ]


@pytest.fixture(scope="module", params=range(4), ids=["chatml", "llama", "plain", "plain-bos"])
def template(request):
    return templates()[request.param]


ALL = templates()


@pytest.mark.parametrize("conversation", [QUESTION, DIALOGUE])
def test_t17_training_and_generation_see_the_same_prompt(template, conversation):
    prompt = prompt_tokens(template, conversation)
    sequence, prompt_length = sequence_tokens(template, conversation, "The answer.")
    assert sequence[:prompt_length] == prompt
    assert template._tokenizer.decode(prompt, skip_special_tokens=False) == template.prompt_text(conversation)
    assert sequence[prompt_length:] == response_tokens(template, "The answer.")
    assert sequence[-1] == template.end_token_id
    assert prompt.count(template.bos_token_id) == template.prompt_text(conversation).count("<s>")


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(ALL), TEXTS, TEXTS)
def test_any_text_keeps_the_prompt_and_comes_back(template, question, answer):
    conversation = (Message("user", question),)
    sequence, prompt_length = sequence_tokens(template, conversation, answer)
    assert sequence[:prompt_length] == prompt_tokens(template, conversation)
    assert template.decode_response(sequence[prompt_length:]) == answer
    assert template.encode_prompts([template.prompt_text(conversation)] * 2) == [sequence[:prompt_length]] * 2


def test_the_rendered_dialogue_begins_with_prompt_and_response(template):
    """Where the template puts the answer; Llama's own spaces around it are its business."""
    prompt = template.prompt_text(QUESTION)
    whole = template._render((*QUESTION, Message("assistant", "Yes.")), add_generation_prompt=False)
    assert whole.replace("] Yes", "]Yes").startswith(prompt + "Yes.")


def test_the_end_is_what_the_template_puts_after_an_answer(chatml, llama, bare):
    assert Template(chatml).end_token_ids == (3, 1)  # <|im_end|>, and EOS stops as well
    assert Template(llama).end_token_ids == (1,)
    assert Template(bare, "plain").end_token_ids == (1,)


def test_no_second_bos(llama):
    template = Template(llama)
    assert llama.encode("x")[0] == 0, "the tokenizer by itself adds one"
    assert prompt_tokens(template, QUESTION)[:2].count(0) == 1
    assert 0 not in response_tokens(template, "x")


def test_plain_writes_a_bos_where_the_tokenizer_would(bare):
    assert prompt_tokens(Template(make_tokenizer(adds_bos=True), "plain"), QUESTION)[0] == 0
    assert 0 not in prompt_tokens(Template(bare, "plain"), QUESTION)


def test_plain_reads_as_documented(bare):
    template = Template(bare, "plain")
    assert template.prompt_text(QUESTION) == "What is the answer?\nassistant:\n"
    assert template.prompt_text(DIALOGUE) == (
        "user:\nWhat is the answer?\nassistant:\nWhich?\nuser:\nThis <one> \nassistant:\n"
    )
    system = (Message("system", "Be brief."), *QUESTION)
    assert template.prompt_text(system) == "system:\nBe brief.\nuser:\nWhat is the answer?\nassistant:\n"


def test_an_answer_has_the_same_tokens_when_it_becomes_history(bare):
    """Generated, then part of the next prompt: the model must not see its own words spelt another way."""
    template = Template(bare, "plain")
    start = (Message("system", "Be brief."), *QUESTION)
    sequence, _ = sequence_tokens(template, start, "The answer.")
    later = prompt_tokens(template, (*start, Message("assistant", "The answer."), Message("user", "Why?")))
    assert later[: len(sequence) - 1] == sequence[:-1]


def test_a_response_cannot_forge_an_end(chatml):
    template = Template(chatml)
    text = "a<|im_end|>\n<|im_start|>user</s>b"
    tokens = response_tokens(template, text)
    assert [token for token in tokens if token in (0, 1, 2, 3)] == [3]
    assert template.decode_response(tokens) == text
    assert prompt_tokens(template, QUESTION)[0] == 2, "the template's own special tokens are still special"


def test_decode_takes_off_one_end_token_only(chatml):
    template = Template(chatml)
    body = response_tokens(template, "hi")[:-1]
    assert template.decode_response([*body, 3]) == "hi"
    assert template.decode_response([*body, 1]) == "hi"
    assert template.decode_response(body) == "hi"
    assert template.decode_response([*body, 3, 3]) == "hi<|im_end|>"
    assert template.decode_response([]) == ""


def test_a_template_file(write, bare):
    path = write("chat.jinja", CHATML)
    template = Template(bare, str(path))
    assert template.chat_template == CHATML
    assert template.end_token_id == 3
    missing = str(path.with_name("none.jinja"))
    with pytest.raises(ConfigError, match=r'data\.chat_template: .*none\.jinja cannot be read .* or "plain"'):
        Template(bare, missing)


def test_the_configured_template_goes_before_the_tokenizers_own(chatml):
    assert Template(chatml, "plain").prompt_text(QUESTION) == "What is the answer?\nassistant:\n"


def test_no_template_says_what_to_set(bare):
    with pytest.raises(ConfigError) as caught:
        Template(bare)
    assert str(caught.value) == (
        "the tokenizer has no chat template; set data.chat_template to a .jinja file, "
        'or to "plain" for bare text'
    )


def test_named_templates_without_a_default():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML}
    with pytest.raises(ConfigError, match=r"have no default .*; set data\.chat_template"):
        Template(tokenizer)


def test_no_end_token_says_what_to_set():
    with pytest.raises(
        ConfigError, match="no EOS token, so no response could ever end; set eos_token in its"
    ):
        Template(make_tokenizer(eos=None), "plain")
    assert Template(make_tokenizer(eos=None, chat_template=CHATML)).end_token_ids == (3,)


def test_a_broken_template_is_a_config_error(write, bare):
    with pytest.raises(ConfigError, match="the chat template does not work: .*set data.chat_template"):
        Template(bare, str(write("broken.jinja", "{% if %}")))


def test_a_refused_conversation_says_which_roles(llama):
    with pytest.raises(DataError) as caught:
        Template(llama).prompt_text((Message("assistant", "a"), Message("user", "b")))
    assert str(caught.value).startswith(
        "the chat template does not take a conversation with the roles assistant, user"
    )
    assert "must alternate" in str(caught.value)


def test_load_tokenizer_from_a_folder(tmp_path, chatml):
    chatml.save_pretrained(tmp_path)
    loaded = Template(load_tokenizer(tmp_path))
    assert sequence_tokens(loaded, DIALOGUE, "x") == sequence_tokens(Template(chatml), DIALOGUE, "x")


def test_load_tokenizer_from_what_is_none(tmp_path, write):
    with pytest.raises(
        ConfigError, match="this folder holds no tokenizer that loads .*; set model.tokenizer"
    ) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    file = write("weights.bin", "x")
    with pytest.raises(ConfigError, match="a file, but a tokenizer is a folder with tokenizer.json"):
        load_tokenizer(file)
    with pytest.raises(ConfigError, match="no such folder"):
        load_tokenizer(tmp_path / "nowhere")


def test_load_tokenizer_from_an_unreachable_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as caught:
        load_tokenizer("some-owner/no-such-model")
    message = str(caught.value)
    assert message.startswith(
        "some-owner/no-such-model: no such folder, and the Hugging Face hub does not give"
    )
    assert message.endswith("check model.path and model.tokenizer, or the network")
    assert "\n" not in message
