"""Conversations as token ids: what the model reads, and which tokens it is trained to write.

A conversation is <|bos|>, then in turn <|user_start|>…<|user_end|> and <|assistant_start|>…<|assistant_end|>. Text is
encoded by `Tokenizer.encode`, so a special token that a user types stays text. A system message has no turn of its
own: it is put before the first user message, with an empty line between.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kat.errors import UsageError
from kat.tokenizer.special import SPECIAL_TOKENS

if TYPE_CHECKING:
    from kat.tokenizer.bpe import Tokenizer

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": str}


def render_conversation(tok: "Tokenizer", messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """The ids of a conversation and, aligned with them, the mask: 1 where the token is supervised.

    Supervised are the tokens of each assistant message and the <|assistant_end|> after it, nothing else. Nothing is
    truncated. Keys of a message other than role and content are ignored. UsageError, naming the message, if there is no
    message, a role is out of order (optional system, then user and assistant in turn) or a content is no string.
    """
    ids, mask = [tok.bos_id], [0]
    for role, content in _turns(messages):
        tokens = [tok.special[f"<|{role}_start|>"], *tok.encode(content), tok.special[f"<|{role}_end|>"]]
        ids += tokens
        mask += [0, *[int(role == "assistant")] * (len(tokens) - 1)]
    return ids, mask


def render_for_completion(tok: "Tokenizer", messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The ids after which the assistant speaks: the conversation, ended by a user turn, and <|assistant_start|>."""
    ids, _ = render_conversation(tok, messages)
    if messages[-1]["role"] != "user":
        where = f"message {len(messages)} of {len(messages)}"
        raise UsageError(f"{where}: role 'assistant', but a completion follows a user message")
    return [*ids, tok.special["<|assistant_start|>"]]


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(role, content) of each turn, the system message merged into the first."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UsageError("a conversation is a list of at least one message")
    turns: list[tuple[str, str]] = []
    system: str | None = None
    for i, message in enumerate(messages):
        where = f"message {i + 1} of {len(messages)}"
        if not isinstance(message, Mapping):
            raise UsageError(f"{where}: {type(message).__name__} where an object with role and content is expected")
        role, content = message.get("role"), message.get("content")
        expected = "assistant" if len(turns) % 2 else "user"
        if role != expected and not (i == 0 and role == "system"):
            raise UsageError(f"{where}: role {role!r} where {expected!r} is expected")
        if not isinstance(content, str):
            raise UsageError(f"{where}: content is {type(content).__name__}, not a string")
        if role == "system":
            system = content
            continue
        turns.append((expected, content if system is None else f"{system}\n\n{content}"))
        system = None
    if not turns:
        raise UsageError("message 1 of 1: a system message must be followed by a user message")
    return turns


# The same ids by transformers' `apply_chat_template`, and the same mask by its `return_assistant_tokens_mask`. It hands
# the tokenizer one text, in which a special token typed by somebody would become that special token: so the template
# refuses such a message, where `render_conversation` keeps it as text.
CHAT_TEMPLATE = """\
{%- set specials = SPECIALS -%}
{%- set first = 1 if messages[0]['role'] == 'system' else 0 -%}
{%- if messages | length == first -%}
{{- raise_exception('a conversation needs a user message') -}}
{%- endif -%}
{{- '<|bos|>' -}}
{%- for message in messages -%}
{%- set where = 'message ' ~ loop.index ~ ' of ' ~ loop.length ~ ': ' -%}
{%- set content = message['content'] -%}
{%- set expected = 'assistant' if (loop.index0 - first) % 2 else 'user' -%}
{%- if loop.index0 >= first and message['role'] != expected -%}
{{- raise_exception(where ~ 'role ' ~ message['role'] ~ ' where ' ~ expected ~ ' is expected') -}}
{%- endif -%}
{%- if content is not string -%}
{{- raise_exception(where ~ 'content is not a string') -}}
{%- endif -%}
{%- for special in specials -%}
{%- if special in content -%}
{{- raise_exception(where ~ 'content holds the special token ' ~ special) -}}
{%- endif -%}
{%- endfor -%}
{%- if loop.index0 >= first -%}
{%- if expected == 'assistant' -%}
{{- '<|assistant_start|>' -}}
{%- generation -%}{{- content ~ '<|assistant_end|>' -}}{%- endgeneration -%}
{%- elif first and loop.index0 == 1 -%}
{{- '<|user_start|>' ~ messages[0]['content'] ~ '\\n\\n' ~ content ~ '<|user_end|>' -}}
{%- else -%}
{{- '<|user_start|>' ~ content ~ '<|user_end|>' -}}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{%- if messages[-1]['role'] != 'user' -%}
{{- raise_exception('a completion follows a user message') -}}
{%- endif -%}
{{- '<|assistant_start|>' -}}
{%- endif -%}
""".replace("SPECIALS", str(list(SPECIAL_TOKENS)))
