"""The report about a run's data before round 1: counts, classes, rows left out, and texts cut to tokens."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from airpfed.config.schema import Settings, TaskSettings
from airpfed.core.run_files import DataReport
from airpfed.model import chat
from airpfed.model.backbone import Backbone
from airpfed.model.chat import ChatEncoding
from airpfed.model.tokens import Encoding, prompt_ids
from airpfed.tasks.sample import Sample, Task
from airpfed.training.evaluate import TaskView
from airpfed.training.setup import TrainingSetup

MAX_CLASSES = 12
"""Classes in a line."""


def report_data(settings: Settings, tasks: Sequence[Task], experiment: TrainingSetup) -> dict[str, DataReport]:
    """Map each task to the report about its data. The server of a federation only has the dev and test splits."""
    clients, task_of = experiment.clients, experiment.clients.task_of.tolist()
    shards = [
        [sample for index, shard in zip(task_of, clients.shards, strict=True) if index == number for sample in shard]
        for number in range(len(tasks))
    ]
    reports: dict[str, DataReport] = {}
    for number, task in enumerate(tasks):
        report, asked = report_task(settings, number, task, shards[number], experiment), settings.tasks[number]
        if shards[number] and asked.sizes == "equal" and report.samples_least < asked.samples_per_device:
            line = f"samples_per_device = {asked.samples_per_device}, and there are fewer"
            report = report.model_copy(update={"notes": [*report.notes, line]})
        reports[task.name] = report
    return reports


def report_task(
    settings: Settings, number: int, task: Task, train: Sequence[Encoding], experiment: TrainingSetup
) -> DataReport:
    """The report about a task's data. number: of the task. train: tokens of the samples of `task.train`, in turn."""
    view, backbone, max_tokens = experiment.tasks[number], experiment.clients.backbone, settings.model.max_tokens
    report = count_data(task, train, view, backbone.tokenizer, max_tokens)
    if view.words:
        lengths = sorted(map(len, view.words))
        tokens = f"{lengths[0]}" if lengths[0] == lengths[-1] else f"{lengths[0]} to {lengths[-1]}"
        line = f"a class is scored by all {tokens} tokens of its label word, not by the first alone"
        report = report.model_copy(update={"notes": [*report.notes, line]})
    if task.kind == "chat":
        report = report_cuts(report, task, settings.tasks[number], backbone, max_tokens)
    return report


def report_cuts(
    report: DataReport, task: Task, settings: TaskSettings, backbone: Backbone, max_tokens: int
) -> DataReport:
    """A chat task's report with what `max_tokens` leaves out of its conversations, all counted."""
    conversations = chat.chat_format(backbone.tokenizer, settings.template, task.name, backbone.end_tokens)

    def encode(samples: Sequence[Sample]) -> list[ChatEncoding]:
        return [
            chat.encode_conversation(conversations, sample.messages, settings.replies, max_tokens) for sample in samples
        ]

    shards = [sample for shard in task.train for sample in shard]
    train, held_out = encode(shards), encode((*task.dev, *task.test))
    both = [*train, *held_out]
    prompts = [item.tokens for item in both if item.prompt_cut]
    answers = [item.reply_tokens for item in train if item.reply_cut]
    notes = list(report.notes)
    if shortened := [item for item in train if item.exchanges_dropped]:
        replies = sum(item.replies_dropped for item in shortened)
        reason = f", {replies:,} replies that the loss would read among them" if replies else ""
        notes.append(
            f"model.max_tokens leaves {sum(item.exchanges_dropped for item in shortened):,} exchanges out at the "
            f"beginning of {len(shortened):,} of {len(train):,} conversations{reason}"
        )
    if count := sum(item.reply_cut for item in held_out):
        notes.append(
            f"model.max_tokens cuts {count:,} of {len(held_out):,} replies of dev and test: their perplexity is that "
            "of their beginning"
        )
    contents = [content for sample in (*shards, *task.dev, *task.test) for _, content in sample.messages]
    if count := sum(chat.break_up(content, conversations.controls) != content for content in contents):
        notes.append(f"{count:,} messages spell a control token of the base, which is broken up by a space")
    return report.model_copy(
        update={
            "prompts_cut": len(prompts) / len(both) if both else 0.0,
            "prompts_cut_tokens": median(prompts) if prompts else None,
            "answers_cut": len(answers) / len(train) if train else 0.0,
            "answers_cut_tokens": median(answers) if answers else None,
            "notes": notes,
        }
    )


def count_data(task: Task, train: Sequence[Encoding], view: TaskView, tokenizer: Any, max_tokens: int) -> DataReport:
    """What is counted of any task's data. train: tokens of the samples of `task.train`, device by device."""
    shards = [sample for shard in task.train for sample in shard]
    pairs = [
        *zip(shards, train, strict=True),
        *zip(task.dev, view.dev.prompts, strict=True),
        *zip(task.test, view.test.prompts, strict=True),
    ]
    prompts, answers = list[int](), list[int]()
    if task.kind != "chat":
        lengths = [_prompt_length(sample, encoded, tokenizer, max_tokens) for sample, encoded in pairs]
        prompts = [length for length in lengths if length > max_tokens]
        lengths = [_answer_length(sample, encoded, tokenizer) for sample, encoded in zip(shards, train, strict=True)]
        answers = [length for length in lengths if length]
    train_prompts = {encoded.ids[: len(encoded.ids) - len(encoded.targets) + 1] for encoded in train}
    sizes = [len(shard) for shard in task.train]
    splits = [Counter(sample.label for sample in samples) for samples in (shards, task.dev, task.test)]
    report = DataReport(
        rows=task.counts.rows,
        skipped=task.counts.skipped,
        duplicates=task.counts.duplicates,
        contradictions=task.counts.contradictions,
        barred=task.counts.barred,
        devices=len(sizes),
        samples_least=min(sizes, default=0),
        samples_most=max(sizes, default=0),
        dev=len(task.dev),
        test=len(task.test),
        classes={name: [split[index] for split in splits] for index, name in enumerate(task.names)},
        prompts_cut=len(prompts) / len(pairs) if pairs else 0.0,
        prompts_cut_tokens=median(prompts) if prompts else None,
        answers_cut=len(answers) / len(train) if train else 0.0,
        answers_cut_tokens=median(answers) if answers else None,
        alike_when_cut=sum(encoded.ids in train_prompts for encoded in view.test.prompts),
        notes=list(task.counts.notes),
    )
    return report.model_copy(update={"notes": [*report.notes, *_warnings(report)]})


def _prompt_length(sample: Sample, encoded: Encoding, tokenizer: Any, max_tokens: int) -> int:
    """Count the tokens of a prompt before the cut, and those of its answer except the last."""
    if len(encoded.ids) < max_tokens:
        return len(encoded.ids)
    return len(prompt_ids(tokenizer, sample.prompt, sys.maxsize)) + len(encoded.targets) - 1


def _answer_length(sample: Sample, encoded: Encoding, tokenizer: Any) -> int:
    """Count the tokens of an answer before the cut, with its end token. Returns 0 if the answer was not cut."""
    if sample.label >= 0 or tokenizer.eos_token_id is None or encoded.targets[-1] == tokenizer.eos_token_id:
        return 0
    return len(tokenizer(sample.answer, add_special_tokens=False).input_ids) + 1


def _warnings(report: DataReport) -> list[str]:
    """List reasons to doubt the result of a classification, a line each."""
    lines: list[str] = []
    trained = report.samples_most > 0
    missing = [name for name, (train, _, _) in report.classes.items() if trained and train == 0]
    if missing:
        lines.append(f"no device has a sample of class {_list_classes(missing)}")
    tested = [name for name, (_, _, test) in report.classes.items() if test]
    if len(tested) == 1 and report.test:
        lines.append(f"the test split has only class {tested[0]}: its accuracy says nothing about other classes")
    elif report.classes and len(tested) < len(report.classes):
        missing = [name for name in report.classes if name not in tested]
        lines.append(f"no test sample is of class {_list_classes(missing)}")
    if report.alike_when_cut:
        lines.append(
            f"{report.alike_when_cut} of {report.test} test prompts equal those of a training sample when cut to tokens"
        )
    return lines


def data_lines(reports: Mapping[str, DataReport]) -> list[str]:
    """Write the block before round 1: a line per task, and a line per warning."""
    return [line for name, report in reports.items() for line in _task_lines(name, report)]


def _task_lines(name: str, report: DataReport) -> list[str]:
    low, high = report.samples_least, report.samples_most
    size = f"{low}" if low == high else f"{low} to {high}"
    devices = (
        f"{report.devices} devices x {size} samples" if high else f"{report.devices} devices with their own samples"
    )
    parts = [f"task {name}: {devices}, dev {report.dev}, test {report.test}"]
    if report.classes:
        counts = [
            f"{label} {train}/{test}" if high else f"{label} {test}"
            for label, (train, _, test) in report.classes.items()
        ]
        more = f", and {len(counts) - MAX_CLASSES} more" if len(counts) > MAX_CLASSES else ""
        parts.append(f"classes ({'train/test' if high else 'test'}) {', '.join(counts[:MAX_CLASSES])}{more}")
    different = f" ({report.contradictions:,} of another class or answer than the retained row)"
    dropped = [
        f"{count:,} {reason}"
        for count, reason in (
            (report.skipped, "without text or label"),
            (report.duplicates, f"duplicates{different if report.contradictions else ''}"),
            (report.barred, "that another task tests on"),
        )
        if count
    ]
    if dropped:
        parts.append(f"left out of {report.rows:,} rows: {', '.join(dropped)}")
    lines = ["; ".join(parts)]
    if report.prompts_cut:
        length = f"median {report.prompts_cut_tokens:g} tokens"
        lines.append(f"  model.max_tokens cuts {report.prompts_cut:.1%} of the prompts ({length})")
    if report.answers_cut:
        length = f"median {report.answers_cut_tokens:g} tokens"
        lines.append(
            f"  model.max_tokens cuts {report.answers_cut:.1%} of the answers ({length}): the model does not learn "
            "their end"
        )
    return [*lines, *(f"  {note}" for note in report.notes)]


def _list_classes(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_CLASSES]) + (", ..." if len(names) > MAX_CLASSES else "")
