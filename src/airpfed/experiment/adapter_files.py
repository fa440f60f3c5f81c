"""What lies beside exported weights: task.json, with all that is needed to answer, and README.md, a model card."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from airpfed.config.schema import Settings
from airpfed.core import run_files
from airpfed.core.run_files import AdapterTask
from airpfed.experiment.build import source_of
from airpfed.model import origin
from airpfed.model.backbone import Backbone
from airpfed.model.chat import chat_format, exported_template, is_export_exact
from airpfed.model.tokens import affix_ids, shared_length, tokenize
from airpfed.tasks.sources import fill_template, template_columns, with_defaults
from airpfed.training.evaluate import TaskView

TASK_FILE = "task.json"
CARD = "README.md"
CHAT_TEMPLATE = "chat_template.jinja"
"""Where transformers looks for a tokenizer's chat template."""


@dataclass(frozen=True)
class RunFacts:
    """What a card tells about the run.

    command: its command line. summary: its scores; None if it has not ended. per_device: whether devices of a task have
    models of their own.
    """

    command: str = ""
    summary: run_files.Summary | None = None
    per_device: bool = False


def public_command(command: str) -> str:
    """A command line for a model card: without folders of this machine, and the same after a resume.

    >>> public_command("airpfed run /home/me/mine.toml --out /tmp/x --resume --set server.rounds=3")
    'airpfed run mine.toml --set server.rounds=3'
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    public: list[str] = []
    skip = False
    for word in words:
        if skip or word == "--resume" or word.startswith("--out="):
            skip = False
        elif word == "--out":
            skip = True
        else:
            path = Path(word)
            public.append(path.name if path.is_absolute() or word.endswith(".toml") else word)
    return shlex.join(public)


def adapter_task(settings: Settings, number: int, view: TaskView, backbone: Backbone) -> AdapterTask:
    """The content of task.json for a task of settings. number: index of the task. view: the task as it is scored."""
    task = settings.tasks[number]
    source = with_defaults(source_of(task))
    words = list(view.labels)
    names = list(view.names) if len(set(view.names)) == len(words) else [word.strip() for word in words]
    generates = view.kind != "classify"
    prompt = source.prompt or ""
    columns = template_columns(prompt)
    chat = None
    if view.kind == "chat":
        chat = chat_format(backbone.tokenizer, task.template, task.name, backbone.end_tokens)
    stops = chat.turn_end.tokens if chat else ()
    score = "" if generates else "words" if view.words else "first_token" if backbone.causal else "head"
    if backbone.causal and words and not view.words:
        words = spelled_words(backbone.tokenizer, example_prompt(prompt, source.max_chars), words, view.choices)
    return AdapterTask(
        name=task.name,
        kind=view.kind,
        prompt=prompt,
        text_column=next((name for name in (source.text_column, *columns) if name in columns), source.text_column),
        max_chars=source.max_chars,
        max_tokens=settings.model.max_tokens,
        labels=dict(zip(names, words, strict=True)),
        label_score=score,
        label_tokens=[list(word) for word in view.words],
        label_normalised=view.normalised,
        id2label={str(index): name for index, name in enumerate(names)},
        label2id={name: index for index, name in enumerate(names)},
        max_new_tokens=task.max_new_tokens if generates else None,
        end_tokens=list(dict.fromkeys((*backbone.end_tokens, *stops))) if backbone.causal else [],
        messages=source.messages_column,
        system=source.system,
        template=task.template,
        turn_end=chat.turn_end.text if chat and not stops else "",
        base=settings.model.base,
        base_revision=backbone.origin.revision,
        base_dtype=backbone.precision.dtype,
        base_quantization=backbone.precision.quantisation,
        base_sha256=backbone.origin.identity,
    )


def example_prompt(template: str, max_chars: int | None) -> str:
    """A prompt with a letter in place of every column."""
    return fill_template(template, dict.fromkeys(template_columns(template), "a"), max_chars)


def spelled_words(tokenizer: Any, prompt: str, words: Sequence[str], choices: Sequence[int]) -> list[str]:
    """The words as they follow a prompt: without their first space where the prompt ends in white space of its own.

    choices: the tokens that the run's scores compare.
    """
    for spelling in (list(words), [word.lstrip() for word in words]):
        rows = tokenize(tokenizer, [prompt + word for word in spelling])
        start = min(shared_length(rows[0], row) for row in rows)
        if [row[start : start + 1] for row in rows] == [(token,) for token in choices]:
            return spelling
    return list(words)


def adapter_documents(
    settings: Settings, number: int, view: TaskView, backbone: Backbone, facts: RunFacts, merged: bool = False
) -> dict[str, str]:
    """The files task.json and README.md of a task's folder, by name, and the template of a chat that names one.

    merged: whether weights lie there, no adapter.
    """
    task = adapter_task(settings, number, view, backbone)
    template = {}
    if task.template:  # the base's tokenizer has another one, or none
        template[CHAT_TEMPLATE] = exported_template(chat_format(backbone.tokenizer, task.template, task.name))
    return template | {
        TASK_FILE: json.dumps(task.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n",
        CARD: model_card(settings, number, task, backbone, facts, merged),
    }


# The card


def model_card(
    settings: Settings, number: int, task: AdapterTask, backbone: Backbone, facts: RunFacts, merged: bool
) -> str:
    """A model card in Hugging Face's form: a head in YAML, then base, use, task, scores and training in Markdown."""
    base = origin.base_facts(task.base, backbone.origin)
    adapters, radio = settings.adapters, settings.radio
    rank = f"rank {adapters.rank_shared} + {adapters.rank_personal}, alpha {adapters.alpha:g}"
    kind = "Weights with a merged LoRA adapter" if merged else "A LoRA adapter"
    layers = ", ".join(sorted({name.rpartition(".")[2] for name in backbone.target_layers}))
    devices = sum(item.devices for item in settings.tasks)
    rounds = facts.summary.rounds if facts.summary else settings.server.rounds
    link = radio.design.label if radio.scheme.name == "linear" else radio.scheme.label
    known_base = base.hub or f"a local model ({base.title})"
    lines = [
        f"# {task.name}",
        "",
        f"{kind} for {known_base}, fine-tuned by federated learning over a simulated wireless uplink (over-the-air "
        f"computation) with airpfed {version('airpfed')}. It answers one task; other tasks of the run have models of "
        "their own.",
        "",
        "## Use",
        "",
        "`task.json` holds the prompt, the labels and the length at which prompts are cut.",
        "",
        *fence(usage_code(task, backbone, merged), "python"),
        "",
        "## Task",
        "",
        f"- kind: {task.kind}",
        *chat_lines(task, backbone),
        *([] if task.messages else ["- prompt:", "", *fence(task.prompt, "text")]),
        "",
    ]
    if task.labels:
        by = "the word that follows the prompt" if backbone.causal else "output"
        lines += [
            f"Classes, each with {by}; a text gets the class with the largest score:",
            "",
            *fence(json.dumps(task.labels if backbone.causal else task.id2label, indent=2, ensure_ascii=False), "json"),
            "",
        ]
    lines += ["## Scores", "", *score_lines(task, facts, settings.run.seed), ""]
    lines += [
        "## Base model",
        "",
        f"- model: {base.title}" + (f", `{base.hub}`" if base.hub and base.hub != base.title else ""),
        *([f"- revision: `{task.base_revision}`"] if task.base_revision else []),
        f"- hash of its files: `{task.base_sha256}`",
        f"- licence: {base.licence or 'not known to the run; see the base'}",
        *(
            []
            if base.hub
            else ["- no name on the hub: set `base_model` above, and `base_model_name_or_path`, before uploading"]
        ),
        "",
        "## Training",
        "",
        f"- adapters: {adapters.method.label}, {rank}, on {layers}, layers {adapters.layers}",
        f"- {devices} devices with {len(settings.tasks)} tasks; {rounds} rounds, "
        f"{settings.server.optimizer.label}; uplink: {link}",
        f"- seed {settings.run.seed}",
        *([f"- command: {code_span(facts.command)}"] if facts.command else []),
        "",
    ]
    return f"---\n{card_head(task, base, backbone.causal, facts.summary, merged)}\n---\n\n" + "\n".join(lines)


def chat_lines(task: AdapterTask, backbone: Backbone) -> list[str]:
    """What a card says about a chat's conversations; nothing for other tasks."""
    if task.kind != "chat":
        return []
    template = f"the template {task.template}" if task.template else "the base's own template"
    lines = [f"- conversations are written by {template} (`{CHAT_TEMPLATE}`, or in the tokenizer's config)"]
    if task.template and not is_export_exact(chat_format(backbone.tokenizer, task.template, task.name)):
        lines.append(
            "- this base's tokenizer reads the first word after its begin token otherwise than training did, so that "
            "answers of the code above may differ from the run's"
        )
    if task.messages:
        lines.append(f"- read from the column {code_span(task.messages)}: messages with role and content")
    if task.system:
        lines += ["- system message of conversations that have none:", "", *fence(task.system, "text"), ""]
    return lines


def card_head(
    task: AdapterTask, base: origin.BaseFacts, causal: bool, summary: run_files.Summary | None, merged: bool
) -> str:
    """The YAML between the card's lines of dashes. A base without a name on the hub is left out of it."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    kind = "text-classification" if task.kind == "classify" else "text-generation"
    scores = summary.tasks.get(task.name) if summary else None
    if scores and scores.final is not None:
        results.append(
            EvalResult(
                task_type=kind,
                dataset_type=task.name,
                dataset_name=task.name,
                dataset_split="test",
                metric_type=scores.metric,
                metric_value=round(scores.final, 6),
            )
        )
    data = ModelCardData(
        base_model=base.hub or None,
        base_model_relation=("finetune" if merged else "adapter") if base.hub else None,
        library_name="transformers" if merged else "peft",
        license=base.licence.lower() or None,
        pipeline_tag="text-generation" if causal else "text-classification",
        tags=["lora", "federated-learning", "over-the-air-computation", "airpfed"],
        model_name=task.name if results else None,
        eval_results=results or None,
    )
    text: str = data.to_yaml()
    return text.strip()


def score_lines(task: AdapterTask, facts: RunFacts, seed: int) -> list[str]:
    """The card's table of scores; a line where there are none."""
    summary = facts.summary
    scores = summary.tasks.get(task.name) if summary else None
    if summary is None or scores is None or scores.final is None:
        return ["None: the run has not ended, or does not score this task."]
    rows: list[tuple[str, float | None, float | None]] = [(scores.metric, scores.base, scores.final)]
    if scores.final_balanced is not None and scores.metric != "balanced_accuracy":
        rows.append(("balanced_accuracy", scores.base_balanced, scores.final_balanced))
    return [
        f"Test split of {scores.samples} samples, one run with seed {seed}"
        + ("; mean over the models of the task's devices, weighted by their samples:" if facts.per_device else ":"),
        "",
        "| metric | untouched base | fine-tuned |",
        "|---|---|---|",
        *(f"| {name} | {run_files.format_metric(old)} | {run_files.format_metric(new)} |" for name, old, new in rows),
    ]


def usage_code(task: AdapterTask, backbone: Backbone, merged: bool) -> str:
    """Python that answers texts, or conversations, with PEFT or transformers alone, from the folder of this card."""
    kind = "CausalLM" if backbone.causal else "SequenceClassification"
    auto = f"AutoModelFor{kind}" if merged else f"AutoPeftModelFor{kind}"
    argument, prompt = prompt_code(task.prompt)
    options = "dtype=torch.float32"
    if not backbone.causal and not merged:  # merged weights have the classes in their config
        options = "id2label=task['id2label'], label2id=task['label2id'], ignore_mismatched_sizes=True, " + options
    appended = len(affix_ids(backbone.tokenizer)[1]) if backbone.causal else 0
    end = f"[:-{appended}]" if appended else ""
    modules = ["json", *(["os"] if task.label_score == "first_token" else []), *(["re"] if "re.sub" in prompt else [])]
    others = [*([auto] if merged else []), "AutoTokenizer", *(["GenerationConfig"] if task.kind != "classify" else [])]
    head = [
        *(f"import {name}" for name in modules),
        "from pathlib import Path",
        "",
        "import torch",
        *([] if merged else [f"from peft import {auto}"]),
        f"from transformers import {', '.join(others)}",
        "",
        'folder = "."',
        'task = json.loads(Path(folder, "task.json").read_text(encoding="utf-8"))',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {auto}.from_pretrained(folder, {options}).eval()",
    ]
    cut = 'n = task["max_tokens"]', "shown = torch.tensor([ids[: n - n // 3] + ids[max(n, len(ids)) - n // 3 :]])"
    body = [f"prompt = {prompt}"]
    if task.label_score == "first_token":
        body += [
            'texts = [prompt + word for word in task["labels"].values()]',
            "rows = tokenizer(texts, split_special_tokens=True).input_ids",
            "ids = os.path.commonprefix(rows)  # up to the token in which the label words differ",
            *cut,
            "scores = model(input_ids=shown).logits[0, -1, [row[len(ids)] for row in rows]]",
            'return list(task["labels"])[int(scores.argmax())]',
        ]
    elif task.label_score == "words":
        body += [
            'words = task["label_tokens"]  # with the end token, where one word begins with another',
            'count = len([token for token in words[0] if token not in task["end_tokens"]])',
            'ids = tokenizer(prompt + next(iter(task["labels"].values())), split_special_tokens=True).input_ids' + end,
            "ids = ids[: len(ids) - count]",
            'n = task["max_tokens"] + 1 - max(map(len, words))',
            "shown = ids[: n - n // 3] + ids[max(n, len(ids)) - n // 3 :]",
            "scores = []",
            "for word in words:",
            "    logs = model(input_ids=torch.tensor([shown + word[:-1]])).logits[0, len(shown) - 1 :].log_softmax(-1)",
            f"    scores.append(float(logs[range(len(word)), word].{'mean' if task.label_normalised else 'sum'}()))",
            'return list(task["labels"])[scores.index(max(scores))]',
        ]
    elif task.label_score == "head":
        body += [
            "ids = tokenizer(prompt, split_special_tokens=True).input_ids",
            *cut,
            'return task["id2label"][str(int(model(input_ids=shown).logits[0].argmax()))]',
        ]
    else:
        head += [
            f"model.{'' if merged else 'get_base_model().'}generation_config = GenerationConfig(",
            '    do_sample=False, eos_token_id=task["end_tokens"], pad_token_id=tokenizer.pad_token_id',
            ")",
        ]
        body += [
            f'ids = tokenizer(prompt.rstrip(" "), split_special_tokens=True).input_ids{end}',
            *cut,
            'out = model.generate(input_ids=shown, max_new_tokens=task["max_new_tokens"])',
            "return tokenizer.decode(out[0, shown.shape[1] :], skip_special_tokens=True)",
        ]
    if task.kind == "chat":
        body = [
            'if task["system"] and messages[0]["role"] != "system":',
            '    messages = [{"role": "system", "content": task["system"]}, *messages]',
            "text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)",
            'ids = tokenizer(text.rstrip(" "), add_special_tokens=False).input_ids',
            *cut,
            'out = model.generate(input_ids=shown, max_new_tokens=task["max_new_tokens"])',
            "reply = tokenizer.decode(out[0, shown.shape[1] :], skip_special_tokens=True)",
            *(['return reply.partition(task["turn_end"])[0]'] if task.turn_end else ["return reply"]),
        ]
        reply = ["", "", "def reply(messages):", *(f"    {line}" for line in body)]
        if task.messages:
            return "\n".join([*head, *reply])
        whole = f"({prompt}).strip()"
        ask = f"    return reply([{{'role': 'user', 'content': {whole}}}])"
        return "\n".join([*head, *reply, "", "", f"def predict({argument}):", ask])
    return "\n".join([*head, "", "", f"def predict({argument}):", *(f"    {line}" for line in body)])


def prompt_code(template: str) -> tuple[str, str]:
    """The argument of the card's function, a `text` or a `row` of several columns, and an expression for the prompt."""
    columns, literal = template_columns(template), re.sub(r"\{\{|\}\}|\{[^{}]*\}", "", template)
    cut = '.strip()[: task["max_chars"]]'
    if not all(name.isidentifier() for name in columns) or "{" in literal or "}" in literal:
        pattern = r"r'\{\{|\}\}|\{([^{}]*)\}'"  # str.format would read this template differently
        return "row", f're.sub({pattern}, lambda m: m[0][0] if m[1] is None else row[m[1]]{cut}, task["prompt"])'
    if len(columns) > 1:
        return "row", f'task["prompt"].format(**{{name: text{cut} for name, text in row.items()}})'
    return "text", f'task["prompt"].format({columns[0]}=text{cut})'


def fence(text: str, language: str) -> list[str]:
    """A code block of Markdown; its fence is longer than any in the text."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{ticks}{language}", text, ticks]


def code_span(text: str) -> str:
    """Code within a line of Markdown."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{ticks}{space}{' '.join(text.split())}{space}{ticks}"
