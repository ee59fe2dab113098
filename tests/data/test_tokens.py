"""Examples as ids and masks: what is supervised, what is cut, split or dropped, and that it is counted."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.data import tokens
from kat.data.choices import AnswerStyle, ChoiceItem
from kat.data.examples import Conversation, Document
from kat.data.tokens import TokenData, encode_examples
from kat.errors import UsageError
from kat.tokenizer.bpe import Tokenizer
from tests.data.tools import token_data

TOK = Tokenizer.from_ranks({bytes([k]): k for k in range(256)})  # one token a byte
START, END = TOK.special["<|assistant_start|>"], TOK.special["<|assistant_end|>"]

texts = st.text(max_size=40)
documents = st.builds(Document, st.just("d"), texts)
conversations = st.builds(
    lambda turns: Conversation(
        "c",
        tuple({"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(turns)),
    ),
    st.lists(texts, min_size=2, max_size=6),
)
ITEM = ChoiceItem("i", "Which?", ("ant", "bat"), 1, hint="Look.", lecture="L", solution="S")


def example(data: TokenData, k: int) -> tuple[list[int], list[int]]:
    part = slice(data.offsets[k], data.offsets[k + 1])
    return data.ids[part].tolist(), data.mask[part].tolist()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(documents, conversations), max_size=12), st.integers(1, 30))
def test_examples_keep_their_order_whatever_is_encoded_together(examples: list, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "CHUNK_CHARS", chunk)
        data = encode_examples(examples, TOK, max_len=None)
    singles = [encode_examples([one], TOK, max_len=None) for one in examples]
    assert [example(data, k) for k in range(len(data))] == [example(one, 0) for one in singles]
    assert data.names == tuple(one.id for one in examples)


@settings(deadline=None, max_examples=60)
@given(documents)
def test_a_document_is_led_by_bos_ended_by_eos_and_wholly_supervised(document: Document) -> None:
    ids, mask = example(encode_examples([document], TOK, max_len=None), 0)
    assert ids == [TOK.bos_id, *TOK.encode(document.text), TOK.eos_id]
    assert mask == [0] + [1] * (len(ids) - 1)


@settings(deadline=None, max_examples=80)
@given(st.lists(documents, min_size=1, max_size=6), st.integers(2, 20))
def test_a_long_document_is_split_so_that_each_token_is_a_target_once(docs: list[Document], max_len: int) -> None:
    data = encode_examples(docs, TOK, max_len=max_len)
    whole = encode_examples(docs, TOK, max_len=None)
    assert (data.lengths <= max_len).all()
    assert (data.n_cut, data.n_dropped) == (0, 0)

    def pairs(some: TokenData) -> Counter:
        found: Counter = Counter()
        for k in range(len(some)):
            ids, mask = example(some, k)
            found.update((a, b) for a, b, m in zip(ids, ids[1:], mask[1:], strict=False) if m)
        return found

    assert pairs(data) == pairs(whole)
    assert data.n_supervised == whole.n_supervised


def test_the_pieces_of_a_document_are_named() -> None:
    assert encode_examples([Document("book", "abcdefgh")], TOK, max_len=4).names == ("book", "book#1", "book#2")


@settings(deadline=None, max_examples=80)
@given(conversations)
def test_supervised_is_each_reply_with_its_end_token_and_nothing_else(conversation: Conversation) -> None:
    """An independent reading: walk the ids; between assistant_start and assistant_end, the end included, it is 1."""
    ids, mask = example(encode_examples([conversation], TOK, max_len=None), 0)
    inside, expected = False, []
    for token in ids:
        expected.append(int(inside))
        inside = token == START or (inside and token != END)
    assert mask == expected
    replies = [bytes(TOK.encode(m["content"])) for m in conversation.messages[1::2]]
    assert sum(mask) == sum(map(len, replies)) + len(replies)
    assert ids.count(TOK.bos_id) == 1
    everything = example(encode_examples([conversation], TOK, max_len=None, supervise_prompts=True), 0)
    assert everything == (ids, [0] + [1] * (len(ids) - 1))


@settings(deadline=None, max_examples=80)
@given(st.lists(conversations, min_size=1, max_size=6), st.integers(2, 60), st.booleans())
def test_a_long_conversation_is_cut_while_a_supervised_token_is_left_else_dropped(talks, max_len, prompts) -> None:
    data = encode_examples(talks, TOK, max_len=max_len, supervise_prompts=prompts)
    kept, n_cut, n_dropped = [], 0, 0
    for talk in talks:
        ids, mask = example(encode_examples([talk], TOK, max_len=None, supervise_prompts=prompts), 0)
        if not any(mask[1:max_len]):
            n_dropped += 1
            continue
        n_cut += len(ids) > max_len
        kept.append((ids[:max_len], mask[:max_len]))
    assert [example(data, k) for k in range(len(data))] == kept
    assert (data.n_cut, data.n_dropped) == (n_cut, n_dropped)
    assert len(data) + data.n_dropped == len(talks)


def test_the_answer_style_changes_what_is_supervised() -> None:
    def said(style: AnswerStyle) -> str:
        ids, mask = example(encode_examples([ITEM], TOK, max_len=None, style=style), 0)
        return TOK.decode([token for token, m in zip(ids, mask, strict=True) if m and token != END])

    assert said(AnswerStyle.LETTER) == "The correct answer is B. bat"
    assert said(AnswerStyle.TEXT) == "The correct answer is bat"
    assert said(AnswerStyle.EXPLAINED) == "The correct answer is B. bat\n\nExplanation: S\n\nBackground: L"


def test_special_tokens_typed_in_a_text_stay_text() -> None:
    for one in (Document("d", "a<|bos|>b"), replace(ITEM, question="<|assistant_start|>")):
        ids, _ = example(encode_examples([one], TOK, max_len=None), 0)
        assert ids.count(TOK.bos_id) == 1
        assert ids.count(START) == (0 if isinstance(one, Document) else 1)


def test_no_examples_and_an_impossible_length() -> None:
    data = encode_examples([], TOK, max_len=None)
    assert (len(data), len(data.ids), data.n_supervised) == (0, 0, 0)
    with pytest.raises(UsageError, match="max_len 1"):
        encode_examples([ITEM], TOK, max_len=1)


def test_the_hash_moves_with_the_ids_the_mask_and_the_borders() -> None:
    data = token_data([3, 4])
    ids, mask = data.ids.copy(), data.mask.copy()
    ids[1], mask[1] = 77, 0
    others = [replace(data, ids=ids), replace(data, mask=mask), token_data([4, 3]), token_data([7])]
    moved = replace(data, mask=np.array([0, 1, 1, 0, 0, 1, 1], np.uint8))
    others.append(replace(moved, offsets=np.array([0, 4, 7])))
    others.append(moved)
    assert data.hash == token_data([3, 4]).hash
    assert len({data.hash, *(other.hash for other in others)}) == 7


def test_token_data_that_contradicts_itself_is_refused() -> None:
    data = token_data([3, 4])
    first = data.mask.copy()
    first[3] = 1
    wrong = [
        {"ids": data.ids.astype(np.int64)},
        {"ids": data.ids[:-1]},
        {"names": ("one",)},
        {"mask": first},
        {"offsets": np.array([0, 1, 7])},
        {"offsets": np.array([0, 3, 6])},
    ]
    for change in wrong:
        with pytest.raises(ValueError, match=r"TokenData|first token"):
            replace(data, **change)
