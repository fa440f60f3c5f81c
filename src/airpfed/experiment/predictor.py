"""A task's model that answers texts: from a run, or from the folder of an adapter or of merged weights alone."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.run_files import AdapterTask
from airpfed.experiment.adapter_files import TASK_FILE
from airpfed.model import answers, export
from airpfed.model.chat import ChatFormat, chat_format, conversation_prompt
from airpfed.model.compatibility import end_tokens
from airpfed.model.precision import Precision
from airpfed.model.tokens import cut_middle, encode_labels, strip_prompt, tokenize
from airpfed.tasks.sample import Message
from airpfed.tasks.sources import Source, fill_template, messages_of, template_columns

if TYPE_CHECKING:
    import pandas as pd

Texts = Sequence[str | Mapping[str, Any] | Sequence[Any]]
"""Texts, or dicts with the columns that the task's prompt names; of a chat task also lists of messages."""


@dataclass(frozen=True)
class Predictor:
    """A task's model, loaded and ready to answer.

    model: a PEFT model, or one of transformers where its weights are merged.

    >>> import airpfed as ap
    >>> run = ap.Experiment.from_toml("tiny.toml", {"server.rounds": 1}).run("runs/predictor")
    >>> predictor = ap.load_predictor(run.adapters["moods"])
    >>> predictor.predict(["ba be bi"]) == run.predict(["ba be bi"], "moods")
    True
    >>> predictor.predict_proba(["ba be bi"]).columns.tolist()
    ['good', 'bad', 'it']
    """

    task: AdapterTask
    model: Any
    tokenizer: Any

    def predict(self, texts: Texts) -> list[str]:
        """Answer texts: the name of a class each, or the generated text.

        texts: each a text, or a dict with the columns that the task's prompt names; of a chat task also messages up to
        the user's last, as a list, or as a list or JSON in a dict under the column of the task's messages. Raises
        UserError for other texts.
        """
        if self.task.kind == "chat":
            return self.reply(self.conversations(texts))
        prompts = self._prompts(texts)
        if self.task.kind == "generate":
            ids = tokenize(self.tokenizer, [strip_prompt(prompt) for prompt in prompts])
            return answers.complete_prompts(self.model, self.tokenizer, self._cut(ids), self.task.max_new_tokens or 1)
        names = list(self.task.labels)
        return [names[int(number)] for number in self._scores(prompts).argmax(1)]

    def predict_proba(self, texts: Texts) -> "pd.DataFrame":
        """Probabilities of the classes, a row each text and a column each class: the softmax of the classes' scores.

        They add up to 1 over the task's classes, whatever else the model could say. Raises UserError for a task that
        generates text.
        """
        import pandas as pd

        if self.task.kind != "classify":
            raise UserError(f"predict_proba: the task {self.task.name} generates text, which has no classes")
        scores = self._scores(self._prompts(texts))
        return pd.DataFrame(scores.double().softmax(1).numpy(), columns=list(self.task.labels))

    def conversations(self, texts: Texts) -> list[list[Message]]:
        """The messages of a chat task's texts, prepared as those that it trained on. Raises UserError as `predict`."""
        source = chat_source(self.task)
        found = []
        for number, text in enumerate(check_texts(texts), 1):
            try:
                found.append(messages_of(text, source))
            except ValueError as error:
                raise UserError(f"predict: conversation {number:,} of {self.task.name} {error}") from None
        return found

    def reply(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """A chat task's reply to each of its `conversations`."""
        task = self.task
        return answers.reply(self.model, self._chat_format(), conversations, task.max_tokens, task.max_new_tokens or 1)

    def too_long(self, conversations: Sequence[Sequence[Message]]) -> int:
        """How many of a chat task's conversations exceed its `max_tokens`, so that a part of them is not read."""
        chat, limit = self._chat_format(), self.task.max_tokens
        lengths = (len(conversation_prompt(chat, messages, sys.maxsize)) for messages in conversations)
        return sum(length > limit for length in lengths)

    def _chat_format(self) -> ChatFormat:
        ends = end_tokens(self.tokenizer, answers.plain_model(self.model))
        return chat_format(self.tokenizer, self.task.template, self.task.name, ends)

    def _prompts(self, texts: Texts) -> list[str]:
        return [self._prompt(text, number) for number, text in enumerate(check_texts(texts), 1)]

    def _prompt(self, text: str | Mapping[str, Any] | Sequence[Any], number: int) -> str:
        task = self.task
        if not isinstance(text, str | Mapping):
            raise UserError(f"predict: text {number} should be a text, or a dict of columns, not {text!r:.60}")
        row = {task.text_column: text} if isinstance(text, str) else dict(text)
        for column in template_columns(task.prompt):
            if column not in row:
                raise UserError(
                    f"predict: the prompt of {task.name} needs the column {column!r}; give texts as dicts with it"
                )
            if not isinstance(row[column], str):
                raise UserError(f"predict: {column!r} of text {number} should be a text, not {row[column]!r:.60}")
        return fill_template(task.prompt, row, task.max_chars)

    def _scores(self, prompts: Sequence[str]) -> Tensor:
        """Scores (n, C) of the classes. Raises UserError where one is not finite."""
        if not prompts:
            return torch.zeros(0, len(self.task.labels))
        if self.task.label_score == "head":
            scores = answers.class_scores(self.model, self._cut(tokenize(self.tokenizer, prompts, causal=False)))
        else:
            task, words = self.task, list(self.task.labels.values())
            whole = task.label_score == "words"
            end = next(iter(end_tokens(self.tokenizer, answers.plain_model(self.model))), None)
            labels = encode_labels(self.tokenizer, prompts, words, task.name, "words" if whole else "auto", end)
            if not whole and not labels.first_tokens:
                raise UserError(
                    f"predict: the labels of {task.name} do not differ in their first token after this text"
                )
            ids = self._cut(labels.prompts, max(map(len, labels.words)) - 1)
            scores = answers.label_scores(self.model, ids, labels.words, task.label_normalised)
        if not (finite := scores.isfinite().all(1)).all():
            number = int(finite.logical_not().nonzero()[0])
            raise UserError(f"predict: the logits of text {number + 1} are no numbers")
        return scores

    def _cut(self, rows: Sequence[tuple[int, ...]], room: int = 0) -> list[tuple[int, ...]]:
        """Prompts as long as the task reads them. room: tokens of an answer that are read after them."""
        if () in rows:
            raise UserError(f"predict: the base's tokenizer makes no token of text {rows.index(()) + 1}")
        return [cut_middle(row, self.task.max_tokens - room) for row in rows]


def chat_source(task: AdapterTask) -> Source:
    """A chat task's source, as far as it says how messages are read."""
    return Source(
        task.name, task.base, "chat", task.prompt, task.text_column, max_chars=task.max_chars,
        messages_column=task.messages, system=task.system,
    )  # fmt: skip


def check_texts(texts: Texts) -> Texts:
    """The texts, unless they are one text. Raises UserError for that."""
    if isinstance(texts, str):
        raise UserError(f"predict: texts should be a list of texts, not the text {texts[:40]!r}")
    return texts


def load_predictor(folder: str | Path, base: str | None = None, *, trust_remote_code: bool = False) -> Predictor:
    """Load a task's model from an exported folder alone: an adapter's, or one of merged weights.

    base: folder or name of the base model, if it has moved since; its files must be the same. trust_remote_code:
    whether Python code in the base model's folder may run. Nothing else in the folder is code. Raises UserError if
    task.json or the base is missing, or if the base is not the one that the adapter was trained on.

    >>> import airpfed as ap
    >>> run = ap.Experiment.from_toml("tiny.toml", {"server.rounds": 1}).run("runs/alone")
    >>> ap.load_predictor("runs/alone/adapters/moods").task.prompt
    '{text} Label :'
    """
    folder = Path(folder)
    task = read_task(folder)
    if task is None:
        raise UserError(f"{folder / TASK_FILE}: missing; `airpfed export RUN_DIR` writes it beside each adapter")
    return open_predictor(task, folder, base or task.base, trust_remote_code)


def read_task(folder: Path) -> AdapterTask | None:
    """Read task.json of an exported folder. Returns None if there is none; raises UserError if it is damaged."""
    return run_files.read_json(folder / TASK_FILE, AdapterTask)


def open_predictor(task: AdapterTask, folder: Path, base: str, trusted: bool) -> Predictor:
    """Load the model of a folder for a task; on a GPU, if there is one."""
    names, causal = list(task.labels), task.label_score != "head"
    if (folder / "adapter_config.json").is_file():
        precision = Precision(task.base_dtype, task.base_quantization)
        model, tokenizer = export.load_adapter(base, task.base_sha256, folder, names, trusted, precision)
    elif (folder / "config.json").is_file():
        model, tokenizer = export.load_merged(folder, causal, names, trusted)
    else:
        raise UserError(f"{folder}: holds no adapter (adapter_config.json) and no weights (config.json)")
    return Predictor(task, model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer)


def predict(folder: str | Path, texts: Texts, base: str | None = None, *, trust_remote_code: bool = False) -> list[str]:
    """Answer texts with the model in an exported folder, which is loaded at every call; see `load_predictor`.

    >>> import airpfed as ap
    >>> run = ap.Experiment.from_toml("tiny.toml", {"server.rounds": 1}).run("runs/folder")
    >>> set(ap.predict("runs/folder/adapters/moods", ["ba be bi", "ka ke ki"])) <= {"good", "bad", "it"}
    True
    """
    return load_predictor(folder, base, trust_remote_code=trust_remote_code).predict(texts)
