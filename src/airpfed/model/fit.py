"""What a base model is and what it cannot do, found before round 1: by its config and a few short passes."""

from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from airpfed.core.errors import UserError
from airpfed.model.tokens import added, control_ids
from airpfed.model.zoo import first_line

SHORT = 5
"""Tokens of the samples that tell how a model reads."""

LONG = 2048
"""Tokens of the longest sample that is run to see whether a base reads it; of longer ones only the last position is."""

SAME = 1e-4
"""Largest difference of logits, relative to the largest of them, of passes that say the same."""


def kind_of(config: Any, kind: str, base: str) -> bool:
    """Whether a base model is a causal LM (else a classifier). kind: `model.kind`.

    Raises UserError for what is neither a decoder nor an encoder of text.
    """
    where = f'model.base = "{base}"'
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{where}: an encoder-decoder ({config.model_type}); a decoder (causal LM) or an encoder (classifier) fits"
        )
    if config.get_text_config() is not config:
        raise UserError(
            f"{where}: a model of more than text ({config.model_type}); a decoder or an encoder of text alone fits"
        )
    if kind != "auto":
        return kind == "causal"
    names: list[str] = config.architectures or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def whole(model: Any, missing: Iterable[str], heads: Sequence[str], base: str) -> None:
    """UserError where weights that are not the head's were not in the files, or are no numbers."""
    shapes = {name: weight.ndim for name, weight in model.named_parameters()}
    body = {id(weight) for weight in model.base_model.parameters()} if model.base_model is not model else set()
    outside = {name for name, weight in model.named_parameters() if body and id(weight) not in body}
    fine = {name for name in outside if shapes[name] == 1}  # a norm of a new head starts as one, wherever it is loaded
    lost = sorted(key for key in missing if key.rpartition(".")[0] not in heads and key not in fine)
    if lost:
        raise UserError(
            f'model.base = "{base}": its files lack {len(lost)} of the weights that its config asks for, {lost[0]} '
            "among them; a whole model should be there"
        )
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():
            raise UserError(f'model.base = "{base}": its weight {name} holds NaN or infinite values; the file is bad')


def head_layers(model: Any, missing: Iterable[str]) -> list[str]:
    """The linear layers of a classifier that are its head: what lies outside its backbone, in the order of the modules.

    With them, linear layers of the backbone that stand outside its lists of layers and of which the files hold nothing:
    a pooler that was not saved.
    """
    inside = {id(module) for module in model.base_model.modules()} if model.base_model is not model else set()
    lists = [name + "." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    lost = set(missing)

    def is_head(name: str, module: nn.Module) -> bool:
        if not isinstance(module, nn.Linear):
            return False
        if inside and id(module) not in inside:
            return True
        return not name.startswith(tuple(lists)) and lost.issuperset(
            f"{name}.{k}" for k, _ in module.named_parameters()
        )

    return [name for name, module in model.named_modules() if is_head(name, module)]


def redraw(model: Any, names: Iterable[str]) -> None:
    """Draw some layers anew by the model's own rule, from torch's global generator."""
    with torch.no_grad():
        for name in names:
            module = model.get_submodule(name)
            for one in (module, *module.parameters()):
                one._is_hf_initialized = False
            model._init_weights(module)


def ends(tokenizer: Any, model: Any) -> tuple[int, ...]:
    """Tokens that end an answer: first the one that training answers end with, none if there is no such token.

    The tokenizer's own, and what the base declares as ends beside it where these are control tokens: an ordinary word
    of the vocabulary never ends an answer, whatever a config says by default.
    """
    control = control_ids(tokenizer)
    configs = (getattr(model, "generation_config", None), model.config)
    declared = [tokenizer.eos_token_id]
    for config in configs:
        said = getattr(config, "eos_token_id", None)
        declared += [one for one in (said if isinstance(said, list | tuple) else [said]) if one in control]
    return tuple(dict.fromkeys(one for one in declared if one is not None and 0 <= one < rows(model)))


def pad(tokenizer: Any, model: Any, causal: bool) -> None:
    """Give the tokenizer a token to pad with, where it has none that the model knows.

    Which one does not matter: no loss reads it. A classifier that reads the last token that is no padding must not take
    the one that the tokenizer appends for it, unless its own config says so.
    """
    own = tokenizer.pad_token_id
    appended = set() if causal or getattr(model.config, "pad_token_id", None) is not None else set(added(tokenizer)[1])
    kinds = ("pad", "eos", "unk", "bos", "cls", "sep", "mask")
    known = [getattr(tokenizer, f"{kind}_token_id", None) for kind in kinds]
    free = [one for one in known if one is not None and one < rows(model) and one not in appended]
    free += [one for one in sorted(tokenizer.get_vocab().values(), reverse=True) if one < rows(model)][:1]
    if free[0] != own:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(free[0])
    model.config.pad_token_id = tokenizer.pad_token_id


def rows(model: Any) -> int:
    """Tokens that the model has an embedding for; as many as its config says where it hashes them."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (NotImplementedError, AttributeError):
        return int(getattr(model.config, "vocab_size", None) or 1 << 20)


def scores(model: Any, ids: Sequence[int], causal: bool) -> Float[Tensor, "1 t C"]:
    """Logits of one sample; of a classifier t = 1."""
    tokens = torch.tensor([ids])
    with torch.no_grad():
        out: Tensor = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **uncached(model)).logits
    return out if causal else out[:, None]


def uncached(model: Any) -> dict[str, bool]:
    """What tells a model that no cache of keys and values is wanted, where it can be told.

    A head may hand on what it does not name to the model below it.
    """
    outer, inner = signature(model.forward).parameters, signature(model.base_model.forward).parameters
    handed_on = "use_cache" in inner and any(one.kind is one.VAR_KEYWORD for one in outer.values())
    return {"use_cache": False} if "use_cache" in outer or handed_on else {}


def gap(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest wanted; infinite where something is no number."""
    size = (found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)
    return float(size) if size.isfinite() else float("inf")


def reading(model: Any, tokenizer: Any, causal: bool, base: str) -> None:
    """UserError where a model cannot be run on tokens alone, its logits are no numbers, or a causal LM looks ahead.

    Also where a pass changes weights: what is then trained on them fits no weights that a file holds.
    """
    where = f'model.base = "{base}"'
    special = control_ids(tokenizer) | {tokenizer.pad_token_id, tokenizer.unk_token_id}
    free = [one for one in range(min(rows(model), 4096)) if one not in special] or [0]
    *ids, other = [free[(7 * place + 3) % len(free)] for place in range(SHORT + 1)]
    before = {name: (id(weight), weight._version) for name, weight in model.named_parameters()}
    try:
        alone = scores(model, ids, causal)
    except Exception as error:  # whatever a model raises on tokens that are its own
        raise UserError(f"{where}: does not run on tokens alone: {first_line(error)}") from None
    if not alone.isfinite().all():
        raise UserError(f"{where}: its logits are no numbers, before any training")
    after = {name: (id(weight), weight._version) for name, weight in model.named_parameters()}
    for name, writes in before.items():
        if after.get(name) != writes:  # torch counts them
            raise UserError(
                f"{where}: a pass changes its weights ({name}), so what is trained could not be merged into those of "
                "its files; a base whose weights stay as they are fits"
            )
    if causal and gap(scores(model, [*ids[:-1], other], causal)[:, :-1], alone[:, :-1]) > SAME:
        raise UserError(
            f'{where}: its predictions read what comes later, so it is no causal LM; model.kind = "classifier" fits'
        )


def room(model: Any, tokenizer: Any, causal: bool, padding: int, tokens: int, answer: int, base: str) -> str | None:
    """Check that the base reads `tokens` tokens and an answer; a line, if that is past what it was made for.

    padding: the pad token of the base's own config. tokens: model.max_tokens; answer: the longest of
    tasks.*.max_new_tokens. Raises UserError that names the limit.
    """
    declared = getattr(model.config, "max_position_embeddings", None)
    declared = declared if isinstance(declared, int) and declared > 0 else None
    wanted = tokens + max(0, answer - 1)  # the last token is not read
    if declared is not None and wanted < declared - padding:  # some models count positions from behind it
        return None
    special = control_ids(tokenizer) | {tokenizer.pad_token_id, padding}
    one = next((each for each in range(rows(model)) if each not in special), 0)

    def enough(count: int) -> bool:
        if count <= LONG:
            return reads(model, [one] * count, causal)
        if "position_ids" not in signature(model.forward).parameters:
            return reads(model, [one] * LONG, causal) and (declared is None or count <= declared)
        return reads(model, [one, one], causal, (0, count - 1 + first_position(model, one, padding)))

    keys = f"model.max_tokens = {tokens}" + (
        f" with {answer} tokens of an answer (tasks.*.max_new_tokens)" * (answer > 0)
    )
    if enough(wanted):
        past = declared is not None and wanted > declared
        return f"{keys}: the base was made for {declared} tokens, and reads more" if past else None
    limit = last_true(enough, 1, wanted)
    raise UserError(
        f"{keys}: the base reads at most {limit} tokens; model.max_tokens should be at most {limit - wanted + tokens}"
    )


def reads(model: Any, ids: Sequence[int], causal: bool, positions: Sequence[int] | None = None) -> bool:
    """Whether a model runs on one sample, its tokens at these positions."""
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    fields: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)} | uncached(model)
    if causal and "logits_to_keep" in signature(model.forward).parameters:
        fields["logits_to_keep"] = 1
    if positions is not None:
        fields["position_ids"] = torch.tensor([positions], device=tokens.device)
    try:
        with torch.no_grad():
            model(**fields)
    except Exception:  # IndexError, RuntimeError, ...: each model has its own
        return False
    return True


def first_position(model: Any, token: int, padding: int) -> int:
    """The position that a model gives the first token of a text by itself: 0, or the one behind its pad token's id."""
    tokens = torch.full((1, SHORT), token, device=next(model.parameters()).device)
    fields = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)} | uncached(model)
    with torch.no_grad():
        alone = model(**fields).logits
        counted = model(**fields, position_ids=torch.arange(SHORT, device=tokens.device)[None]).logits
    return 0 if gap(counted, alone) <= SAME else padding + 1


def last_true(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number of which something holds, given that it holds of `low`, not of `high`, and ends once."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def frozen_stacks(layers: nn.ModuleList) -> str | None:
    """A line, if layers hold matrices in a stack, as of routed experts: no nn.Linear, so no adapter is put on them."""
    plain = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d)
    found = [
        f"{name}.{key}".removeprefix("0.")
        for name, module in layers.named_modules()
        if not isinstance(module, plain)
        for key, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3 and min(weight.shape) > 1
    ]
    if not found:
        return None
    return (
        f"{len(found)} stacked weights of the layers ({found[0]} and alike) are no nn.Linear: they take no adapter "
        "and stay frozen, as routed experts do"
    )


def vocabulary(tokenizer: Any, base: str) -> None:
    """UserError where a tokenizer knows nothing but its control tokens: the folder holds none of its files."""
    if set(tokenizer.get_vocab().values()) <= control_ids(tokenizer) | {tokenizer.unk_token_id, tokenizer.pad_token_id}:
        raise UserError(f'model.base = "{base}": {NO_TOKENIZER}')


NO_TOKENIZER = "no tokenizer in its folder; tokenizer.json, or what the model came with, should lie beside config.json"


def unreadable(error: Exception, folder: str) -> str:
    """Why a tokenizer cannot be loaded, in a line."""
    path = Path(folder)
    names = {file.name for file in path.iterdir()} if path.is_dir() else {"tokenizer.json"}
    if not any(name.startswith(("tokenizer.", "vocab", "merges")) or name.endswith((".model", ".json")) for name in
               names - {"config.json", "generation_config.json", "tokenizer_config.json"}
               if not name.endswith(".index.json")):  # fmt: skip
        return NO_TOKENIZER
    models = sorted(path.glob("*.model")) if path.is_dir() else []
    if models and not (path / "tokenizer.json").is_file():
        try:
            import sentencepiece  # type: ignore[import-not-found] # noqa: F401
        except ImportError:
            return f"{models[0].name} needs the package sentencepiece (pip install sentencepiece), or a tokenizer.json"
    return f"its tokenizer cannot be loaded: {first_line(error)}"
