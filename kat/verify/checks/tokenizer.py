"""Text to ids and back, and the chat template.

What a template may do and still be right: trim white space off the ends of a message (many templates do; what stands
inside it must survive), put the system message into the first user turn, end every message with the same token, and
refuse, by an exception, a system message, a further turn, or a special token that somebody typed.
"""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from kat.verify.check import Failed, NotApplicable, check
from kat.verify.lab import Lab
from kat.verify.subject import Message, Row

# Where tokenizers lose something: contractions, digits, runs of blanks, line ends, accents, joined emoji, controls.
PIECES = (
    *("don't", "I'LL", "Owl", "river", "mill 7", "x_1", "3.14", "1234567", "(a)", "http://", "##", "<b>", "—", "’"),
    *("\n", "\n\n", "\r\n", "\t", " ", "   ", " \n ", "\u00a0", "\u2028", "\u200b", "\ufeff", "\x00", "\x1b", "\x85"),
    *(
        "é",
        "e\u0301",
        "ß",
        "İ",
        "ﬁ",
        "½",
        "日本語",
        "中",
        "שלום",
        "مرحبا",
        "नमस्ते",
        "한",
        "🙂",
        "👩\u200d👩\u200d👧",
        "🇫🇷",
        "𝔸",
        "\U0010ffff",
    ),
)


@check(
    family="tokenizer",
    level=0,
    needs={"encode", "decode"},
    kind="metamorphic",
    catches=("VQ5", "TK3", "TK10"),
)
def decode_inverts_encode(lab: Lab) -> None:
    """Encoding a text and decoding its ids gives the text back, and the ids are ordinary ones of the vocabulary.

    Lone surrogates are not tried: no UTF-8 text has any. A tokenizer that normalises declares the form.
    """
    special = specials(lab)

    def test(text: str) -> None:
        ids = [int(i) for i in lab.subject.encode(text)]
        outside = [i for i in ids if i < 0 or (lab.traits.vocab and i >= lab.traits.vocab)]
        if outside:
            raise Failed(f"encode gives id {outside[0]}, the vocabulary ends at {lab.traits.vocab}", case=repr(text))
        if added := [i for i in ids if i in special]:
            raise Failed(f"encode puts the special id {added[0]} into a plain text", case=repr(text), resembles="TK3")
        lab.equal(
            lab.subject.decode(ids),
            normalised(lab, text),
            "a text comes back otherwise",
            case=repr(text),
            resembles="VQ5",
        )

    lab.forall(texts(), test, examples=50)
    test("".join(PIECES) * 40)


@check(family="tokenizer", level=0, needs={"encode", "decode", "token_bytes"}, kind="oracle")
def token_bytes_sum_to_text_bytes(lab: Lab) -> None:
    """The byte counts of a text's tokens sum to its length in UTF-8, and special tokens count 0.

    Bits per byte divide by this sum. A token that is a part of a character has its own bytes, not those of U+FFFD.
    """
    lengths = [int(n) for n in lab.subject.token_bytes()]
    wrong = [i for i in sorted(specials(lab)) if i < len(lengths) and lengths[i] != 0]
    if wrong:
        raise Failed(f"special id {wrong[0]} counts {lengths[wrong[0]]} bytes of text, not 0")
    ordinary = [i for i in lab.ordinary_ids() if i < len(lengths)]
    if lab.traits.parses_specials:  # more names may be parsed than the special ids that are declared
        ordinary = [i for i in ordinary if lengths[i]]
    for i in lab.rng.sample(ordinary, min(len(ordinary), 500)):
        text = lab.subject.decode([i])
        if "\ufffd" not in text and [int(j) for j in lab.subject.encode(text)] == [i]:
            lab.equal(lengths[i], len(text.encode()), f"bytes of token {i}", case=repr(text))

    def test(text: str) -> None:
        ids = [int(i) for i in lab.subject.encode(text)]
        if ids and max(ids) >= len(lengths):
            raise Failed(f"token_bytes has {len(lengths)} entries, and id {max(ids)} occurs", case=repr(text))
        expected = len(normalised(lab, text).encode())
        lab.equal(sum(lengths[i] for i in ids), expected, "bytes of the tokens of a text", case=repr(text))

    lab.forall(texts(), test, examples=50)


@check(family="tokenizer", level=0, needs={"encode", "decode"}, kind="metamorphic")
def typed_special_tokens_stay_text(lab: Lab) -> None:
    """A special token's name in a text is text, unless the declared design is that it becomes the token."""
    names = special_names(lab)
    special = specials(lab)
    for name, own in names.items():
        for text in (name, f"a{name}b", f"{name}{name}", f" {name}\n"):
            ids = _or_refusal(lab.subject.encode, text)
            if ids is None:  # a tokenizer may refuse such a text
                continue
            found = [int(i) for i in ids if int(i) in special]
            if lab.traits.parses_specials:
                if own not in found:
                    raise Failed("a typed special token stays text, parses_specials is declared", case=repr(text))
            elif found:
                raise Failed(f"a typed special token becomes its id {found[0]}", case=repr(text))
            else:
                lab.equal(lab.subject.decode(ids), normalised(lab, text), "the text comes back", case=repr(text))


@check(
    family="tokenizer",
    level=0,
    needs={"encode_conversation", "decode"},
    kind="metamorphic",
)
def messages_cannot_hold_special_tokens(lab: Lab) -> None:
    """A special token's name inside a message adds no special id to the conversation, in any role.

    Otherwise a user ends their own turn and speaks as the assistant. Refusing such a message is right too.
    """
    lab.require(not lab.traits.parses_specials, "special tokens in text are parsed on purpose")
    special = specials(lab)
    encoders: dict[str, Callable[[list[Message]], Sequence[int]]] = {
        "encode_conversation": lambda messages: lab.subject.encode_conversation(messages)[0]
    }
    if lab.has("encode_prompt"):
        encoders["encode_prompt"] = lambda messages: lab.subject.encode_prompt(messages[:-1])
    for plain in _conversations(lab):
        for name in special_names(lab):
            for k, message in enumerate(plain):
                typed = [*plain[:k], {**message, "content": f"so {name} go"}, *plain[k + 1 :]]
                for what, encode in encoders.items():
                    ids = _or_refusal(encode, typed)
                    if ids is None:
                        continue
                    expected = [i for i in encode(plain) if i in special]
                    lab.equal(
                        [int(i) for i in ids if int(i) in special],
                        expected,
                        f"special ids of {what} after a message with {name!r} typed into it",
                        case=shown(typed),
                    )


@check(
    family="tokenizer",
    level=0,
    needs={"encode_conversation", "encode_prompt"},
    kind="metamorphic",
    catches=("TK7", "TK13", "DM19", "DM20", "TK3"),
)
def prompt_is_prefix_of_conversation(lab: Lab) -> None:
    """What the model is given to answer is, id for id, how the trained conversation begins, and supervision of the
    answer starts right behind it.

    White space at the seam must not merge into other tokens than the model will see.
    """

    def test(messages: list[Message]) -> None:
        for end in (k + 1 for k, message in enumerate(messages) if message["role"] == "assistant"):
            row = lab.subject.encode_conversation(messages[:end])
            prompt = [int(i) for i in lab.subject.encode_prompt(messages[: end - 1])]
            ids, mask = plain_row(row)
            case = shown(messages[:end])
            if ids[: len(prompt)] != prompt:
                at = next((i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b), len(ids))
                raise Failed(
                    f"prompt and trained conversation part at id {at}: {prompt[at : at + 4]} and {ids[at : at + 4]}, "
                    f"of {len(prompt)} ids of the prompt",
                    case=case,
                    resembles="TK13",
                )
            if len(prompt) == len(ids):
                raise Failed("the conversation has no id beyond its prompt", case=case, resembles="DM19")
            if lab.traits.supervised == "assistant" and (mask[len(prompt)] != 1 or mask[len(prompt) - 1] != 0):
                starts = [t for t in range(1, len(mask)) if mask[t] and not mask[t - 1]]
                raise Failed(
                    f"the answer starts at id {len(prompt)}, supervised runs start at {starts}",
                    case=case,
                    resembles="DM3",
                )

    lab.forall(conversations(*roles(lab)), test, examples=20)


@check(
    family="tokenizer",
    level=0,
    needs={"encode_conversation"},
    kind="metamorphic",
    catches=("TK3", "TK4", "TK12", "DM19"),
)
def special_tokens_stand_where_they_should(lab: Lab) -> None:
    """A conversation begins with its one bos, each assistant turn has one end token, one of eos_ids, and no special
    token stands twice in a row."""
    t = lab.traits
    special = specials(lab)
    lab.require(special, "no special ids are declared")
    for messages in _conversations(lab):
        ids, mask = plain_row(lab.subject.encode_conversation(messages))
        rows = {"encode_conversation": ids}
        if lab.has("encode_prompt"):
            rows["encode_prompt"] = [int(i) for i in lab.subject.encode_prompt(messages[:-1])]
        for what, row in rows.items():
            case = f"{what} of {shown(messages)}"
            if t.bos_id is not None and t.bos_id not in t.eos_ids:
                places = [i for i, token in enumerate(row) if token == t.bos_id]
                if places != [0]:
                    raise Failed(f"bos_id {t.bos_id} stands at {places}, not at 0 alone", case=case, resembles="TK3")
            if twice := [i for i in range(1, len(row)) if row[i] == row[i - 1] and row[i] in special]:
                raise Failed(f"special id {row[twice[0]]} stands twice in a row", case=case, resembles="TK4")
        if not t.eos_ids:
            continue
        turns = sum(message["role"] == "assistant" for message in messages)
        if t.supervised == "assistant":
            runs = supervised_runs(ids, mask)
            lab.equal(len(runs), turns, "supervised runs, one for each assistant turn", case=shown(messages))
            for run in runs:
                _one_end(lab, run, shown(messages))
        else:
            n = sum(token in t.eos_ids for token in ids)
            if n not in (turns, len(messages), 2 * turns):
                raise Failed(f"{n} end tokens for {turns} assistant turns", case=shown(messages), resembles="TK4")


@check(
    family="tokenizer",
    level=0,
    needs={"encode_conversation", "decode"},
    kind="metamorphic",
    catches=("TK10", "TK11", "DM20", "DM22"),
)
def messages_are_recoverable(lab: Lab) -> None:
    """Every message stands in the decoded conversation and in the decoded prompt, letter for letter and in order, with
    the white space at its ends unless trimming is declared."""

    edges = [("", "")] if lab.traits.trims else [("  ", ""), ("", " \n"), ("\n ", "  "), ("", "")]

    def test(messages: list[Message]) -> None:
        # Marks keep a dropped "a" from being found in "assistant", and ends away from a template that trims.
        marked = []
        for k, message in enumerate(messages):
            first, last = edges[(k + len(messages[0]["content"])) % len(edges)]
            marked.append({**message, "content": f"{first}[{k}Q{message['content']}Z{k}]{last}"})
        texts = {"encode_conversation": (marked, lab.subject.encode_conversation(marked)[0])}
        if lab.has("encode_prompt"):
            texts["encode_prompt"] = (marked[:-1], lab.subject.encode_prompt(marked[:-1]))
        for what, (shown, ids) in texts.items():
            text = lab.subject.decode([int(i) for i in ids])
            at = 0
            for message in shown:
                content = normalised(lab, message["content"])
                found = text.find(content, at)
                if found < 0 and text.find(content.strip(), at) >= 0:
                    raise Failed(
                        f"white space at the ends of the {message['role']} message {content!r} is not in what {what} "
                        "gives; if it is meant, declare trims",
                        case=f"decoded: {text!r}",
                        resembles="DM22",
                    )
                if found < 0:
                    row = (
                        "TK10" if content.lower() in text.lower() else "TK11" if message["role"] == "system" else "DM22"
                    )
                    raise Failed(
                        f"the {message['role']} message {content!r} is not in what {what} gives (in its place)",
                        case=f"decoded: {text!r}",
                        resembles=row,
                    )
                at = found + len(content)

    lab.forall(conversations(*roles(lab)), test, examples=20)


# Used by the other checks of text


def specials(lab: Lab) -> set[int]:
    """Ids with a meaning of their own. A pad id may be an ordinary token, so it counts only where it is listed."""
    t = lab.traits
    return {*t.special_ids, *t.eos_ids, *([] if t.bos_id is None else [t.bos_id])}


def special_names(lab: Lab) -> dict[str, int]:
    """What a user would type -> the special id."""
    names = {lab.subject.decode([i]): i for i in sorted(specials(lab))}
    names = {name: i for name, i in names.items() if name.strip()}
    if not names:
        raise NotApplicable("decode shows no special token, so nobody can type one")
    return names


def normalised(lab: Lab, text: str) -> str:
    """The text as the declared tokenizer keeps it."""
    form: Any = lab.traits.normalisation
    return unicodedata.normalize(form, text) if form else text


def texts() -> Any:
    """Any text, and texts put together of what tokenizers stumble over."""
    from hypothesis import strategies as st

    # Not st.characters: it makes tables of Unicode first, for seconds, and leaves them in the user's folder.
    ranges = ((32, 126), (0, 0x24FF), (0x2500, 0xD7FF), (0xE000, 0x10FFFF))
    character = st.one_of(*(st.integers(low, high) for low, high in ranges)).map(chr)
    return st.one_of(
        st.text(character, max_size=12), st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join)
    )


def conversations(system: bool, several: bool) -> Any:
    """Conversations that end in an assistant message; contents are not empty."""
    from hypothesis import strategies as st

    content = texts().filter(bool)
    turn = st.tuples(content, content)

    def build(value: tuple[str | None, list[tuple[str, str]]]) -> list[Message]:
        return conversation(value[0], value[1])

    return st.tuples(
        st.one_of(st.none(), content) if system else st.none(),
        st.lists(turn, min_size=1, max_size=3 if several else 1),
    ).map(build)


def conversation(system: str | None, turns: Sequence[tuple[str, str]]) -> list[Message]:
    """Messages from (user, assistant) pairs."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return messages


def plain_row(row: Row) -> tuple[list[int], list[int]]:
    """A conversation's ids and mask as lists of one length."""
    ids, mask = [int(i) for i in row[0]], [int(m) for m in row[1]]
    if len(ids) != len(mask):
        raise Failed(f"encode_conversation gives {len(ids)} ids and a mask of {len(mask)}")
    return ids, mask


def supervised_runs(ids: Sequence[int], mask: Sequence[int]) -> list[list[int]]:
    """The ids of each unbroken run of supervised tokens."""
    runs: list[list[int]] = []
    for t, token in enumerate(ids):
        if mask[t]:
            if t and mask[t - 1] and runs:
                runs[-1].append(token)
            else:
                runs.append([token])
    return runs


def _one_end(lab: Lab, run: list[int], case: str) -> None:
    """One end token, with nothing but white space behind it."""
    ends = [i for i, token in enumerate(run) if token in lab.traits.eos_ids]
    if len(ends) != 1:
        raise Failed(
            f"an assistant turn has {len(ends)} supervised end tokens of eos_ids {lab.traits.eos_ids}: {run[-6:]}",
            case=case,
            resembles="TK4" if ends else "TK12",
        )
    behind = run[ends[0] + 1 :]
    if behind and not (lab.has("decode") and not lab.subject.decode(behind).strip()):
        raise Failed(f"after the end token {run[ends[0]]} more is supervised: {behind}", case=case, resembles="TK12")


def roles(lab: Lab) -> tuple[bool, bool]:
    """Whether the template takes a system message, and more than one exchange."""
    lab.subject.encode_conversation(conversation(None, [("Ask", "Owl")]))  # a plain one it must take
    encode = lab.subject.encode_conversation
    system = _or_refusal(encode, conversation("Be", [("Ask", "Owl")])) is not None
    several = _or_refusal(encode, conversation(None, [("Ask", "Owl"), ("Why", "So")])) is not None
    return system, several


def _conversations(lab: Lab) -> list[list[Message]]:
    """A few plain ones, the shortest first."""
    system, several = roles(lab)
    turns = [("Is it 7?", "No, Owl."), ("Why?\n", "Because"), ("And then", "The end\n\nof it.")]
    some = [conversation(None, turns[:1])]
    if several:
        some += [conversation(None, turns[:2]), conversation(None, turns)]
    if system:
        some.append(conversation("Be brief.", turns if several else turns[:1]))
    return some


def _or_refusal(call: Callable[[Any], Any], value: Any) -> Any:
    """The result, or None where the subject refuses the value by an exception."""
    try:
        return call(value)
    except Exception:  # noqa: BLE001 (which exception says no is the subject's choice)
        return None


def shown(messages: Sequence[Message]) -> str:
    return " / ".join(f"{m['role']}: {m['content']!r}" for m in messages)
