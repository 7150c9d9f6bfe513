"""Prompts that are conversations: lists of messages, as TRL has them, and what models, rewards and people read of them.

A message is {"role": "user", "content": "Hello"}. A model reads a conversation through its tokenizer's chat template,
which writes all special tokens itself, so that the tokenizer adds none.

Tables hold a conversation twice: as text for people, in the column that a plain text would be in, and as JSON in the
column `messages`.
"""

import json
import reprlib
from typing import Any

import pandas as pd
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rarlhf_nb.data.text_files import is_text
from rarlhf_nb.errors import UserError, first_line

Messages = list[dict[str, Any]]
Prompt = str | Messages
MESSAGES = "messages"


def is_conversation(prompt: Prompt) -> bool:
    """Whether a prompt is a list of messages, not a text."""
    return not isinstance(prompt, str)


def check_messages(messages: Any, what: str) -> None:
    """Raise a `UserError` that begins with `what` unless these are messages with a role and a text as content."""
    for message in messages:
        if not (isinstance(message, dict) and is_text(message.get("role")) and is_text(message.get("content"))):
            wanted = '{"role": "user", "content": "a text"}'
            raise UserError(f"{what} holds {reprlib.repr(message)}; give messages like {wanted}.")
    if not len(messages):
        raise UserError(f"{what} holds no message; give one at least.")


def templated(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, answer: bool = True) -> str:
    """What a model reads of a conversation, to be tokenized with `add_special_tokens=False`; a text as it is.

    answer: whether the beginning of an answer is added, for a model that is to give it. Raises `UserError` if the
    tokenizer has no chat template, or one that does not take these messages.
    """
    if not is_conversation(prompt):
        return prompt
    if tokenizer.chat_template is None:
        raise UserError(
            "the prompts are conversations, but the policy's tokenizer has no chat template: set its `chat_template`, "
            "choose a model that was trained to chat, or give the prompts as texts."
        )
    try:
        return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=answer)
    except (TemplateError, ValueError, TypeError) as error:
        shown = reprlib.repr(transcript(prompt))
        raise UserError(f"the chat template does not take the conversation {shown}: {first_line(error)}") from error


def transcript(prompt: Prompt) -> str:
    """A conversation for people, its turns as lines "role: content"; a text as it is."""
    return "\n".join(f"{each['role']}: {each['content']}" for each in prompt) if is_conversation(prompt) else prompt


def contents(prompt: Prompt) -> str:
    """A conversation as plain text, the contents of its turns as lines, without the system's; a text as it is."""
    if not is_conversation(prompt):
        return prompt
    return "\n".join(each["content"] for each in prompt if each["role"] != "system")


def answered(messages: Messages) -> bool:
    """Whether the last turn is the assistant's, which is then a human's completion of those before it."""
    return messages[-1]["role"] == "assistant"


def prompts_of(table: pd.DataFrame, column: str = "prompt") -> list[Prompt]:
    """The prompts, or whole texts, that the rows of a table hold: conversations if it has a column `messages`."""
    return [json.loads(row) for row in table[MESSAGES]] if MESSAGES in table else table[column].tolist()
