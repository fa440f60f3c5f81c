"""Settings to the base model and its inputs: the backbone with adapters, and the tasks as tokens."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from airpfed.config.plugins import code_hashes
from airpfed.config.schema import Settings, TaskSettings, choices_of
from airpfed.config.user_rows import user_functions
from airpfed.core.errors import UserError
from airpfed.core.memory import keep_freed_memory, without_garbage_collection
from airpfed.core.rng import stream
from airpfed.devices.prefix_cache import PrefixCache
from airpfed.experiment.build.data import base_hash, option_files
from airpfed.model import backbone, chat, compatibility, export, tokens, zoo
from airpfed.model.backbone import Backbone
from airpfed.model.chat import ChatFormat, Replies, TurnEnd
from airpfed.model.precision import FLOAT32, Precision
from airpfed.model.tokens import Encoding
from airpfed.tasks.metrics import Metric, import_package
from airpfed.tasks.sample import Kind, Sample, Task
from airpfed.training.evaluate import MetricChoice, Split, TaskView

MAX_UNKNOWN_SHARE = 0.9
"""Share of unknown words in a task's texts above which the tokenizer does not fit them."""


def load_backbone(settings: Settings, tasks: tuple[Task, ...]) -> Backbone:
    """Load the base model with adapters. Raises UserError if it does not fit the tasks or the adapters."""
    name = settings.model.base
    if name not in zoo.MODELS and not Path(name).is_absolute() and Path(name).is_dir():
        raise UserError(
            f'model.base = "{name}": is also a folder of the working directory, which transformers would load instead '
            f'of the model of the hub; write "./{name}" for a folder beside the settings file'
        )
    adapters = settings.adapters
    base = backbone.build_backbone(
        settings.model.base,
        settings.model.kind,
        max((len(task.labels) for task in tasks), default=1) or 1,
        adapters.target_modules,
        adapters.layers,
        adapters.scale,
        torch_device(settings.run.device),
        stream(settings.run.seed, "head"),
        settings.model.max_tokens,
        max(
            (
                task_settings.max_new_tokens
                for task, task_settings in zip(tasks, settings.tasks, strict=True)
                if task.kind != "classify"
            ),
            default=0,
        ),
        settings.model.trust_remote_code,
        precision=precision_of(settings),
        checkpointing=settings.model.checkpointing,
        rslora=adapters.rslora,
        dropout=adapters.dropout,
    )
    if adapters.method.row.averages and base.has_quantised_weights:
        raise UserError(
            f'adapters.method = "{adapters.method.name}": adds to the base\'s weights, and these are quantised; '
            'model.quantization = "none" fits'
        )
    if any(task.kind != "classify" for task in tasks):
        check_generation(base, settings.model.base)
    if not adapters.method.row.averages:
        export.check_adapter(base, adapters.rank_shared + adapters.rank_personal, adapters.alpha)
    return replace(base, notes=(*base.notes, *control_token_notes(base, settings.tasks)))


def precision_of(settings: Settings) -> Precision:
    """Return how the base's weights are held."""
    return Precision(settings.model.dtype, settings.model.quantization)


def control_token_notes(base: Backbone, tasks: Sequence[TaskSettings]) -> list[str]:
    """Write a line per control token in a prompt, because settings and data are always read as text.

    A chat's control tokens are those of its template alone.
    """
    control = [base.tokenizer.convert_ids_to_tokens(number) for number in sorted(tokens.control_ids(base.tokenizer))]
    return [
        f"tasks.{task.name}.prompt: {token!r} is read as text, not as the tokenizer's control token"
        for task in tasks
        for token in control
        if token in task.prompt
    ]


def check_generation(base: Backbone, name: str) -> None:
    """Raise UserError if a base model cannot generate text."""
    if not base.causal:
        raise UserError(f'model.base = "{name}": a classifier cannot generate; use a causal LM')
    if not base.end_tokens:
        raise UserError(
            f'model.base = "{name}": its tokenizer has no end token, so no answer could end; set eos_token in its '
            "tokenizer_config.json"
        )
    if not base.model.can_generate():
        raise UserError(f'model.base = "{name}": transformers has no generation for this model; kind = "classify" fits')


def check_head_scope(settings: Settings, base: Backbone) -> None:
    """Raise UserError if the user set the scope of a head and the base model has no new head."""
    head = settings.adapters.head
    if base.causal and head != "task" and "head" in settings.adapters.model_fields_set:
        raise UserError(
            f'adapters.head = "{head}": does nothing with model.base = "{settings.model.base}", a causal LM without a '
            "new head; leave it out, or take a classifier"
        )


def torch_device(device: str) -> str:
    """Return the torch device of `run.device`. Raises UserError if it names a GPU and there is none."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError('run.device = "cuda": torch sees no GPU here; "cpu" or "auto" would run')
    return device


@dataclass(frozen=True)
class Preparation:
    """The part of an experiment that runs with equal base model, data splits and adapted layers share.

    shards: tokens of the training samples, by task and device. cache: outputs of the layers below the lowest adapter.
    base_key: hash of everything that the scores of the untouched model depend on.
    """

    tasks: tuple[Task, ...]
    base: Backbone
    cache: PrefixCache
    shards: tuple[tuple[tuple[Encoding, ...], ...], ...]
    views: tuple[TaskView, ...]
    base_key: str


def build_preparation(settings: Settings, tasks: tuple[Task, ...]) -> Preparation:
    """Load the base model with adapters, and tokenise the tasks. Sets the threads and the heap of the process."""
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    with without_garbage_collection():
        base = load_backbone(settings, tasks)
    if (
        not base.has_quantised_weights
    ):  # dequantised weights are large and short-lived, and would leave holes in a kept heap
        keep_freed_memory()
    max_tokens = settings.model.max_tokens
    tokenized = [
        tokenize_task(base, task, max_tokens, task_settings)
        for task, task_settings in zip(tasks, settings.tasks, strict=True)
    ]
    shards = tuple(
        tuple(
            tuple(encode_sample(base, s, task, task_tokens, max_tokens, task_settings.replies) for s in shard)
            for shard in task.train
        )
        for task, task_tokens, task_settings in zip(tasks, tokenized, settings.tasks, strict=True)
    )
    views = tuple(
        task_view(base, t, w, s, max_tokens) for t, w, s in zip(tasks, tokenized, settings.tasks, strict=True)
    )
    for task, task_shards in zip(tasks, shards, strict=True):
        check_tokens(base, task.name, [sample for shard in task_shards for sample in shard])
    test_views = [_scored_content(view) for view in views]
    parts: list[Any] = [base_hash(base), [weight.tolist() for weight in base.heads.values()], test_views]
    if code := metric_code(settings):
        parts.append(code)
    if base.precision != FLOAT32:  # keys of older runs had no precision
        parts.append(asdict(base.precision))
    return Preparation(
        tasks,
        base,
        PrefixCache(base, settings.devices.cache_gb, settings.devices.cache_precision),
        shards,
        views,
        hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
    )


def _scored_content(view: TaskView) -> dict[str, Any]:
    """Return what the score of a task's untouched model depends on, besides the model."""
    tree = asdict(view) | {"name": "", "dev": ""}
    del tree["names"]
    metric = {key: tree.pop(key) for key in ("metric", "metric_options")}
    for key, default in (("further_metrics", ()), ("words", ()), ("normalised", False), ("turn_end", TurnEnd())):
        if getattr(view, key) == default:  # keys of older runs have none of these
            tree.pop(key)
    if not view.test.references:
        tree["test"].pop("references")
    return tree if metric["metric"] == "auto" else tree | metric


def metric_code(settings: Settings) -> list[str]:
    """Return the hashes of the tasks' metrics that are a user's functions or in plug-ins, and of files in options."""
    names = tuple(f"tasks.{task.name}.{key}" for task in settings.tasks for key in ("metric", "further_metrics."))
    metrics = {key for key in choices_of(settings) if key in names or key.startswith(names[1::2])}
    functions = [item["sha256"] for key, item in user_functions(settings).items() if key in metrics]
    return sorted([*code_hashes(settings, metrics).values(), *option_files(settings, metrics).values(), *functions])


def preparation_key(settings: Settings) -> str:
    """Return a key that is equal for settings with equal results of `build_preparation`."""
    adapters = settings.adapters
    parts = settings.model_dump(mode="json", include={"model": True, "tasks": True, "run": {"seed", "device"}})
    layers = [
        adapters.target_modules,
        adapters.layers,
        adapters.scale,
        adapters.dropout,
        settings.devices.cache_precision,
    ]
    return json.dumps([parts, layers, metric_code(settings)])


@dataclass(frozen=True)
class TaskTokens:
    """The tokens of a task.

    choices: the output of the model for each class, a token (causal LM) or the class index (classifier). prompts:
    prompt -> token ids. words: all tokens of each label word where these are scored as a whole. chat: how conversations
    become tokens.
    """

    choices: tuple[int, ...]
    prompts: dict[str, tuple[int, ...]]
    words: tuple[tuple[int, ...], ...] = ()
    chat: ChatFormat | None = None


def tokenize_task(base: Backbone, task: Task, max_tokens: int, settings: TaskSettings) -> TaskTokens:
    """Tokenise the prompts and label words of a task, for all its splits. Longer prompts are cut to `max_tokens`.

    Where whole label words are scored, prompt and word have `max_tokens` together.
    """
    if task.kind == "chat":  # training reads no prompts alone
        conversations = chat.chat_format(base.tokenizer, settings.template, task.name, base.end_tokens)
        samples = {sample.prompt: sample for sample in (*task.dev, *task.test)}
        ids_of = {
            text: chat.conversation_prompt(conversations, sample.messages[:-1], max_tokens)
            for text, sample in samples.items()
        }
        return TaskTokens((), ids_of, chat=conversations)
    shards = (*task.train, task.dev, task.test)
    texts = list(dict.fromkeys(sample.prompt for shard in shards for sample in shard))
    choices, words, room = tuple(range(len(task.labels))), tuple[tuple[int, ...], ...](), max_tokens
    if task.kind == "generate":
        ids = tokens.tokenize(base.tokenizer, [tokens.strip_prompt(text) for text in texts])
    elif base.causal:
        end = next(iter(base.end_tokens), None)
        labels = tokens.encode_labels(
            base.tokenizer, texts or ["Label:"], task.labels, task.name, settings.label_score, end
        )
        ids, choices = labels.prompts, tuple(word[0] for word in labels.words)
        if not labels.first_tokens or settings.label_score == "words":
            words, choices = labels.words, ()
            room = word_room(task, words, max_tokens)
    else:
        if settings.label_score == "words":
            raise UserError(
                f'tasks.{task.name}.label_score = "words": the base is a classifier, whose head has a row for each '
                "class; leave it out"
            )
        ids = tokens.tokenize(base.tokenizer, texts, causal=False)
    if () in ids[: len(texts)]:
        raise UserError(
            f"tasks.{task.name}.prompt: the base's tokenizer makes no token of {texts[ids.index(())][:40]!r}"
        )
    prompts = {text: tokens.cut_middle(prompt, room) for text, prompt in zip(texts, ids, strict=False)}
    return TaskTokens(choices, prompts, words)


def word_room(task: Task, words: Sequence[tuple[int, ...]], max_tokens: int) -> int:
    """Number of tokens that the longest label word leaves for a prompt. Raises UserError if it is less than half."""
    number = max(range(len(words)), key=lambda n: len(words[n]))
    room = max_tokens + 1 - len(words[number])
    if 2 * room < max_tokens:
        raise UserError(
            f"tasks.{task.name}.labels: label word {task.labels[number][:40]!r} has {len(words[number])} tokens, more "
            f"than half of model.max_tokens = {max_tokens}; a shorter word, or more tokens would be right"
        )
    return room


def encode_sample(
    base: Backbone, sample: Sample, task: Task, task_tokens: TaskTokens, max_tokens: int, replies: Replies = "all"
) -> Encoding:
    """Encode a sample as input and targets of the loss. replies: replies that a chat's loss reads."""
    if task_tokens.chat is not None:
        return chat.encode_conversation(task_tokens.chat, sample.messages, replies, max_tokens).encoding
    if task.kind == "generate":
        return tokens.encode_completion(base.tokenizer, sample.prompt, sample.answer, max_tokens, base.end_tokens[0])
    prompt = task_tokens.prompts[sample.prompt]
    if task_tokens.words:
        word = task_tokens.words[sample.label]
        return Encoding(prompt + word[:-1], word)
    return Encoding(prompt, (task_tokens.choices[sample.label],))


def task_view(base: Backbone, task: Task, task_tokens: TaskTokens, settings: TaskSettings, max_tokens: int) -> TaskView:
    """Return the dev and test splits of a task for evaluation. Raises UserError if a metric does not fit."""
    further = tuple(MetricChoice(c.name, c.options, c.label) for c in settings.further_metrics)
    for key, choice in (("metric", settings.metric), *(("further_metrics", c) for c in settings.further_metrics)):
        check_metric_fits(f'tasks.{task.name}.{key} = "{choice.name}"', choice.row, task.kind)
    likelihoods = any(c.row.reads == "likelihoods" for c in (settings.metric, *settings.further_metrics))

    def split(samples: tuple[Sample, ...]) -> Split:
        prompts = tuple(Encoding(task_tokens.prompts[s.prompt], (0,)) for s in samples)
        references = tuple(
            encode_sample(base, s, task, task_tokens, max_tokens, settings.replies)
            for s in (samples if likelihoods else ())
        )
        return Split(prompts, tuple(s.label for s in samples), tuple(s.answer for s in samples), references)

    return TaskView(
        name=task.name,
        kind=task.kind,
        labels=task.labels,
        choices=task_tokens.choices,
        max_new_tokens=settings.max_new_tokens,
        metric=settings.metric.name,
        metric_options=settings.metric.options,
        further_metrics=further,
        words=task_tokens.words,
        normalised=settings.label_normalised,
        turn_end=TurnEnd() if task_tokens.chat is None else task_tokens.chat.turn_end,
        dev=split(task.dev),
        test=split(task.test),
        names=task.names,
    )


def check_metric_fits(key: str, metric: Metric, kind: Kind) -> None:
    """Raise UserError if a metric is for other tasks, or if a package that it needs is not installed."""
    if metric.kind is not None and (metric.kind == "classify") != (kind == "classify"):
        raise UserError(f"{key}: is for {metric.kind} tasks, not {kind}")
    if metric.module:
        try:
            import_package(metric.module)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None


def check_tokens(base: Backbone, name: str, samples: Sequence[Encoding]) -> None:
    """Raise UserError if the tokenizer does not fit the model or the texts.

    That is the case if a token id is beyond the model's vocabulary, if the base cannot run the shortest text, or if
    more than MAX_UNKNOWN_SHARE of the words are unknown.
    """
    if not samples:
        return
    vocabulary_size = compatibility.vocabulary_size(base.model)
    targets = [sample.targets for sample in samples if base.causal]
    if (highest := max(max(ids) for ids in [*(sample.ids for sample in samples), *targets])) >= vocabulary_size:
        raise UserError(
            f"tasks.{name}: its texts have token {highest}, but the base model has {vocabulary_size} tokens; tokenizer "
            "and model should belong together"
        )
    if not compatibility.runs(base.model, min((sample.ids for sample in samples), key=len), base.causal):
        raise UserError(f"tasks.{name}: the base cannot read its shortest text; prompt should have more words")
    unknown, control = base.tokenizer.unk_token_id, tokens.control_ids(base.tokenizer)
    counts = Counter(token for sample in samples for token in set(sample.ids))
    # Tokens of all samples belong to the template and do not count.
    text_tokens = {token for token, count in counts.items() if count < len(samples)} - control | {unknown}
    words = Counter(token for sample in samples for token in sample.ids if token in text_tokens)
    if (share := words[unknown] / max(1, words.total())) > MAX_UNKNOWN_SHARE:
        raise UserError(
            f"tasks.{name}: the base's tokenizer knows {1 - share:.0%} of the words in its texts; another base fits"
        )
