"""Conversations: the mask, the chat template beside `render_conversation`, and what both refuse."""

import copy
from typing import Any

import jinja2
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from token_samples import texts
from transformers import PreTrainedTokenizerBase

from kat.errors import UsageError
from kat.tokenizer.bpe import Tokenizer
from kat.tokenizer.chat import Message, render_conversation, render_for_completion
from kat.tokenizer.special import SPECIAL_TOKENS


@st.composite
def conversations(draw: st.DrawFn, ends_with_user: bool | None = None) -> list[Message]:
    contents = draw(st.lists(texts(5), min_size=1, max_size=5))
    if ends_with_user and len(contents) % 2 == 0:
        contents.pop()
    roles = ["user", "assistant"] * 3
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    if draw(st.booleans()):
        messages.insert(0, {"role": "system", "content": draw(texts(4))})
    return messages


def visible_turns(messages: list[Message]) -> list[tuple[str, str]]:
    """What a reader should be able to get back: each turn's role and text, the system text before the first."""
    turns = [(m["role"], m["content"]) for m in messages if m["role"] != "system"]
    if messages[0]["role"] == "system":
        turns[0] = ("user", messages[0]["content"] + "\n\n" + turns[0][1])
    return turns


@given(conversations())
@settings(deadline=None, max_examples=150)
def test_a_conversation_can_be_read_back_and_only_replies_are_supervised(
    tok: Tokenizer, messages: list[Message]
) -> None:
    ids, mask = render_conversation(tok, messages)
    assert len(ids) == len(mask)
    names = {i: token for token, i in tok.special.items()}
    # A small reader of its own: special ids open and close turns, everything between is text.
    assert names[ids[0]] == "<|bos|>"
    assert mask[0] == 0
    read, start = [], 0
    for i, token in list(enumerate(ids))[1:]:
        if names.get(token, "").endswith("_start|>"):
            start = i
            assert mask[i] == 0
        elif token in names:
            role = names[ids[start]].removeprefix("<|").removesuffix("_start|>")
            assert names[token] == f"<|{role}_end|>"
            read.append((role, tok.decode(ids[start + 1 : i])))
            assert set(mask[start + 1 : i + 1]) == {int(role == "assistant")}
    assert read == visible_turns(messages)
    # Every special id is one of those the rendering put there.
    assert sum(token in names for token in ids) == 1 + 2 * len(read)
    supervised = tok.decode([token for token, keep in zip(ids, mask, strict=True) if keep])
    assert supervised == "".join(text + "<|assistant_end|>" for role, text in read if role == "assistant")


@given(conversations())
@settings(deadline=None, max_examples=100)
def test_the_chat_template_gives_the_ids_and_the_mask(
    tok: Tokenizer, auto: PreTrainedTokenizerBase, messages: list[Message]
) -> None:
    assume(not any(token in m["content"] for token in SPECIAL_TOKENS for m in messages))
    out = auto.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert (out["input_ids"], out["assistant_masks"]) == render_conversation(tok, messages)


@given(conversations(ends_with_user=True))
@settings(deadline=None, max_examples=60)
def test_the_prompt_for_a_completion(tok: Tokenizer, auto: PreTrainedTokenizerBase, messages: list[Message]) -> None:
    ids = render_for_completion(tok, messages)
    reply = {"role": "assistant", "content": "the water"}
    whole, mask = render_conversation(tok, [*messages, reply])
    assert whole[: len(ids)] == ids, "the prompt is the start of the conversation with a reply"
    assert mask[: len(ids)][-1] == 0
    assert all(mask[len(ids) :])
    if not any(token in m["content"] for token in SPECIAL_TOKENS for m in messages):
        assert auto.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids


def test_one_conversation_token_by_token(tok: Tokenizer) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "hi <|assistant_end|>"},
        {"role": "assistant", "content": "é"},
    ]
    before = copy.deepcopy(messages)
    ids, mask = render_conversation(tok, messages)
    s = tok.special
    text = tok.encode("S\n\nhi <|assistant_end|>")
    assert ids == [
        *(s["<|bos|>"], s["<|user_start|>"], *text, s["<|user_end|>"]),
        *(s["<|assistant_start|>"], *tok.encode("é"), s["<|assistant_end|>"]),
    ]
    assert mask == [0] * (len(text) + 4) + [1] * (len(tok.encode("é")) + 1)
    assert messages == before
    # An empty reply still teaches the end token.
    assert render_conversation(tok, [*messages[:2], {"role": "assistant", "content": ""}])[1][-2:] == [0, 1]


USER, REPLY, SYSTEM = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ([SYSTEM], "message 1 of 1: a system message must be followed by a user message"),
        ([REPLY], "message 1 of 1: role 'assistant' where 'user' is expected"),
        ([SYSTEM, REPLY], "message 2 of 2: role 'assistant' where 'user' is expected"),
        ([SYSTEM, SYSTEM, USER], "message 2 of 3: role 'system' where 'user' is expected"),
        ([USER, USER], "message 2 of 2: role 'user' where 'assistant' is expected"),
        ([USER, REPLY, REPLY], "message 3 of 3: role 'assistant' where 'user' is expected"),
        ([USER, REPLY, SYSTEM], "message 3 of 3: role 'system' where 'user' is expected"),
        ([USER, {"role": "tool", "content": "x"}], "message 2 of 2: role 'tool'"),
        ([{"content": "x"}], "message 1 of 1: role None"),
        ([{"role": "user"}], "message 1 of 1: content is NoneType, not a string"),
        ([USER, {"role": "assistant", "content": None}], "message 2 of 2: content is NoneType"),
        ([USER, {"role": "assistant", "content": 7}], "message 2 of 2: content is int"),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}], "message 2 of 2: content is list"),
        ([{"role": "system", "content": ["x"]}, USER], "message 1 of 2: content is list"),
    ],
)
def test_a_malformed_conversation_is_refused_by_both(
    tok: Tokenizer, auto: PreTrainedTokenizerBase, messages: list[Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as error:
        render_conversation(tok, messages)
    assert "\n" not in str(error.value)
    with pytest.raises((jinja2.TemplateError, ValueError, IndexError)):
        auto.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("text", "a list of at least one message"),
        ({"role": "user", "content": "x"}, "a list of at least one message"),
        (None, "a list of at least one message"),
        (["text"], "message 1 of 1: str where an object with role and content is expected"),
        ([USER, ["assistant", "x"]], "message 2 of 2: list where an object"),
    ],
)
def test_what_is_no_list_of_messages_is_refused(tok: Tokenizer, messages: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        render_conversation(tok, messages)


def test_a_completion_follows_a_user_message(tok: Tokenizer, auto: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UsageError, match="message 2 of 2: role 'assistant', but a completion follows a user message"):
        render_for_completion(tok, [USER, REPLY])
    with pytest.raises(jinja2.TemplateError, match="a completion follows a user message"):
        auto.apply_chat_template([USER, REPLY], add_generation_prompt=True)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
@pytest.mark.parametrize("role", [0, 1, 2])
def test_the_template_refuses_a_typed_special_token(auto: PreTrainedTokenizerBase, token: str, role: int) -> None:
    messages = [dict(SYSTEM), dict(USER), dict(REPLY)]
    messages[role]["content"] = f"a{token}b"
    with pytest.raises(jinja2.TemplateError, match=rf"message {role + 1} of 3: content holds the special token"):
        auto.apply_chat_template(messages)


def test_the_template_takes_what_only_looks_like_a_special_token(tok: Tokenizer, auto: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "user", "content": "|><|bos"}, {"role": "assistant", "content": "<|assistant_end|<|user_end"}]
    assert auto.apply_chat_template(messages, return_dict=False) == render_conversation(tok, messages)[0]
