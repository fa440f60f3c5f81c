"""Checks before round 1 that a base model can be trained: by its config, its weights, and a few short passes."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from airpfed.core.errors import UserError, first_line
from airpfed.model.precision import in_float32, is_coarse
from airpfed.model.tokens import affix_ids, control_ids

SHORT = 5
"""Tokens of the samples for short passes."""

LONG = 2048
"""Tokens of the longest sample that is run to test a length. Of longer samples only the last position is run."""

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit, between passes that should agree (float32)."""

COARSE_TOLERANCE = 0.1
"""The same where products are rounded to 16 or 8 bits."""

NO_TOKENIZER = "no tokenizer in its folder; tokenizer.json, or what the model came with, should lie beside config.json"


def is_causal(config: Any, kind: str, base: str) -> bool:
    """Whether a base model is a causal LM; otherwise it is a classifier. kind: the setting `model.kind`.

    Raises UserError for a model that is neither a decoder nor an encoder of text, nor a decoder of images and text,
    whose text layers then get the adapters.
    """
    name = f'model.base = "{base}"'
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{name}: an encoder-decoder ({config.model_type}); a decoder (causal LM) or an encoder (classifier) fits"
        )
    if config.get_text_config() is not config:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise UserError(
                f"{name}: a model of more than text ({config.model_type}); a decoder or an encoder of text, or a "
                "decoder of images and text fits"
            )
        if kind == "classifier":
            raise UserError(f'{name}: a decoder of images and text; model.kind = "causal" fits')
        return True
    if kind != "auto":
        return kind == "causal"
    architectures: list[str] = config.architectures or []
    return any(architecture.endswith(("ForCausalLM", "LMHeadModel")) for architecture in architectures)


def auto_class(config: Any, causal: bool) -> Any:
    """The class of transformers that loads a base: a causal LM, one of images and text, or a classifier."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSequenceClassification

    if not causal:
        return AutoModelForSequenceClassification
    return AutoModelForCausalLM if config.get_text_config() is config else AutoModelForImageTextToText


def check_weights(model: Any, missing: Iterable[str], heads: Sequence[str], base: str) -> None:
    """Raise UserError where weights outside the head are missing in the files, or where a weight is not finite."""
    dimensions = {name: weight.ndim for name, weight in model.named_parameters()}
    body = {id(weight) for weight in model.base_model.parameters()} if model.base_model is not model else set()
    outside = {name for name, weight in model.named_parameters() if body and id(weight) not in body}
    norms = {name for name in outside if dimensions[name] == 1}  # the norm of a new head always starts at 1
    lost = sorted(key for key in missing if key.rpartition(".")[0] not in heads and key not in norms)
    if lost:
        raise UserError(
            f'model.base = "{base}": its files lack {len(lost)} of the weights that its config asks for, {lost[0]} '
            "among them; a whole model should be there"
        )
    for name, weight in model.named_parameters():
        if type(weight) is not nn.Parameter:
            continue  # quantised; a damaged weight shows in the logits
        if weight.is_floating_point() and weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():
            raise UserError(f'model.base = "{base}": its weight {name} holds NaN or infinite values; the file is bad')


def head_layers(model: Any, missing: Iterable[str]) -> list[str]:
    """The linear layers of a classifier's head, in module order: all linear layers outside its backbone.

    Linear layers of the backbone outside its lists of layers also count where the files lack all of their weights: a
    pooler that was not saved.
    """
    inside = {id(module) for module in model.base_model.modules()} if model.base_model is not model else set()
    lists = tuple(name + "." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    lost = set(missing)

    def is_head(name: str, module: nn.Module) -> bool:
        if not isinstance(module, nn.Linear):
            return False
        if inside and id(module) not in inside:
            return True
        return not name.startswith(lists) and lost.issuperset(f"{name}.{k}" for k, _ in module.named_parameters())

    return [name for name, module in model.named_modules() if is_head(name, module)]


def redraw(model: Any, names: Iterable[str]) -> None:
    """Draw some layers' weights again by the model's own rule. Random: torch's global generator."""
    with torch.no_grad():
        for name in names:
            module = model.get_submodule(name)
            for item in (module, *module.parameters()):
                item._is_hf_initialized = False
            model._init_weights(module)


def end_tokens(tokenizer: Any, model: Any) -> tuple[int, ...]:
    """Tokens that end an answer, first the token that training answers end with; none where there is no such token.

    The tokenizer's end token, and the end tokens that the base declares where these are control tokens. An ordinary
    word never ends an answer, whatever a config says by default.
    """
    control = control_ids(tokenizer)
    candidates = [tokenizer.eos_token_id]
    for config in (getattr(model, "generation_config", None), model.config, model.config.get_text_config()):
        declared = getattr(config, "eos_token_id", None)
        declared = declared if isinstance(declared, list | tuple) else [declared]
        candidates += [token for token in declared if token in control]
    size = vocabulary_size(model)
    return tuple(dict.fromkeys(token for token in candidates if token is not None and 0 <= token < size))


def set_padding(tokenizer: Any, model: Any, causal: bool) -> None:
    """Give the tokenizer a padding token that the model knows, where it has none.

    The choice does not matter: no loss reads it. But a classifier that reads the last token before padding must not get
    the token that the tokenizer appends for it, unless its own config says so.
    """
    configured = getattr(model.config, "pad_token_id", None) is not None
    appended = set() if causal or configured else set(affix_ids(tokenizer)[1])
    kinds = ("pad", "eos", "unk", "bos", "cls", "sep", "mask")
    special = [getattr(tokenizer, f"{kind}_token_id", None) for kind in kinds]
    size = vocabulary_size(model)
    free = [token for token in special if token is not None and token < size and token not in appended]
    free += [token for token in sorted(tokenizer.get_vocab().values(), reverse=True) if token < size][:1]
    if free[0] != tokenizer.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(free[0])
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id


def vocabulary_size(model: Any) -> int:
    """Tokens that the model has an embedding for; by its config where it hashes tokens."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (NotImplementedError, AttributeError):
        return int(getattr(model.config, "vocab_size", None) or 1 << 20)


def sample_logits(model: Any, ids: Sequence[int], causal: bool) -> Float[Tensor, "1 t C"]:
    """Logits of one sample; t = 1 for a classifier."""
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    with torch.no_grad():
        out: Tensor = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **no_cache_option(model)).logits
    return out if causal else out[:, None]


def no_cache_option(model: Any) -> dict[str, bool]:
    """Keyword arguments that turn off a model's cache of keys and values; none where it has no such option.

    A head may pass an option that it does not name on to the model below it.
    """
    outer, inner = signature(model.forward).parameters, signature(model.base_model.forward).parameters
    passed_on = "use_cache" in inner and any(item.kind is item.VAR_KEYWORD for item in outer.values())
    return {"use_cache": False} if "use_cache" in outer or passed_on else {}


def differ(model: Any, compute: Callable[[], tuple[Tensor, Tensor]]) -> bool:
    """Whether two tensors of logits differ by more than rounding, in float32 where the model can be held so.

    compute: a function that computes both.
    """

    def off() -> bool:
        return relative_difference(*compute()) > (COARSE_TOLERANCE if is_coarse(model) else TOLERANCE)

    with in_float32(model), suppress(Exception):  # a model may have a type in its code
        return off()
    return off()


def relative_difference(logits: Tensor, reference: Tensor) -> float:
    """Largest difference, relative to the largest reference logit; infinite where a logit is not finite."""
    difference = (logits - reference).abs().max() / reference.abs().max().clamp(min=1e-30)
    return float(difference) if difference.isfinite() else float("inf")


def check_passes(model: Any, tokenizer: Any, causal: bool, base: str) -> None:
    """Raise UserError where a model does not run on tokens alone, has logits that are not finite, or looks ahead.

    Also where a pass changes weights: adapters trained on these would fit no weights in a file.
    """
    name = f'model.base = "{base}"'
    special = control_ids(tokenizer) | {tokenizer.pad_token_id, tokenizer.unk_token_id}
    ordinary = [token for token in range(min(vocabulary_size(model), 4096)) if token not in special] or [0]
    *ids, other = [ordinary[(7 * index + 3) % len(ordinary)] for index in range(SHORT + 1)]
    versions = {key: (id(weight), weight._version) for key, weight in model.named_parameters()}
    try:
        logits = sample_logits(model, ids, causal)
    except Exception as error:  # a model may raise anything
        raise UserError(f"{name}: does not run on tokens alone: {first_line(error)}") from None
    if not logits.isfinite().all():
        raise UserError(f"{name}: its logits are no numbers, before any training")
    new_versions = {key: (id(weight), weight._version) for key, weight in model.named_parameters()}
    for key, state in versions.items():
        if new_versions.get(key) != state:  # torch counts in-place changes
            raise UserError(
                f"{name}: a pass changes its weights ({key}), so what is trained could not be merged into those of "
                "its files; a base whose weights stay as they are fits"
            )
    if not causal:
        return

    def before_the_end() -> tuple[Tensor, Tensor]:
        changed, logits = (sample_logits(model, sample, causal) for sample in ([*ids[:-1], other], ids))
        return changed[:, :-1], logits[:, :-1]

    if differ(model, before_the_end):
        raise UserError(
            f'{name}: its predictions read what comes later, so it is no causal LM; model.kind = "classifier" fits'
        )


def check_length(
    model: Any, tokenizer: Any, causal: bool, padding: int, tokens: int, answer: int, base: str
) -> str | None:
    """Check that the base reads `tokens` tokens and an answer; returns a line where this exceeds its declared length.

    padding: the padding token of the base's own config. tokens: the setting `model.max_tokens`. answer: the largest of
    the settings `tasks.*.max_new_tokens`. Raises UserError that names the base's limit.
    """
    declared = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    declared = declared if isinstance(declared, int) and declared > 0 else None
    total = tokens + max(0, answer - 1)  # the last token of an answer is not read
    if declared is not None and total < declared - padding:  # some models count positions from the padding token's id
        return None
    special = control_ids(tokenizer) | {tokenizer.pad_token_id, padding}
    ordinary = next((token for token in range(vocabulary_size(model)) if token not in special), 0)

    def reads(count: int) -> bool:
        if count <= LONG:
            return runs(model, [ordinary] * count, causal)
        if "position_ids" not in signature(model.forward).parameters:
            return runs(model, [ordinary] * LONG, causal) and (declared is None or count <= declared)
        last = count - 1 + first_position(model, ordinary, padding)
        return runs(model, [ordinary, ordinary], causal, (0, last))

    keys = f"model.max_tokens = {tokens}" + (
        f" with {answer} tokens of an answer (tasks.*.max_new_tokens)" * (answer > 0)
    )
    if reads(total):
        past = declared is not None and total > declared
        return f"{keys}: the base was made for {declared} tokens, and reads more" if past else None
    limit = last_true(reads, 1, total)
    raise UserError(
        f"{keys}: the base reads at most {limit} tokens; model.max_tokens should be at most {limit - total + tokens}"
    )


def runs(model: Any, ids: Sequence[int], causal: bool, positions: Sequence[int] | None = None) -> bool:
    """Whether a model runs on one sample. positions: position of each token; None lets the model number them."""
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    fields: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)} | no_cache_option(model)
    if causal and "logits_to_keep" in signature(model.forward).parameters:
        fields["logits_to_keep"] = 1
    if positions is not None:
        fields["position_ids"] = torch.tensor([positions], device=tokens.device)
    try:
        with torch.no_grad():
            model(**fields)
    except Exception:  # IndexError, RuntimeError, ...: models differ
        return False
    return True


def first_position(model: Any, token: int, padding: int) -> int:
    """Position that a model gives a text's first token by itself: 0, or one more than the padding token's id."""
    tokens = torch.full((1, SHORT), token, device=next(model.parameters()).device)
    fields = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)} | no_cache_option(model)

    def both() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            counted = model(**fields, position_ids=torch.arange(SHORT, device=tokens.device)[None]).logits
            return counted, model(**fields).logits

    return padding + 1 if differ(model, both) else 0


def last_true(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The largest n with holds(n), by bisection. holds(low) is True, holds(high) False, with one change between."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def frozen_stacks(layers: nn.ModuleList) -> str | None:
    """A line where layers hold stacked matrices, for example of routed experts, which take no adapter; else None."""
    plain = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d)
    stacks = [
        f"{name.partition('.')[2]}.{key}"
        for name, module in layers.named_modules()
        if not isinstance(module, plain)
        for key, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3 and min(weight.shape) > 1
    ]
    if not stacks:
        return None
    return (
        f"{len(stacks)} stacked weights of the layers ({', '.join(dict.fromkeys(stacks))}) are no nn.Linear: they take "
        "no adapter and stay frozen, as routed experts do"
    )


def check_vocabulary(tokenizer: Any, base: str) -> None:
    """Raise UserError where a tokenizer knows only control tokens, because the folder holds none of its files."""
    if set(tokenizer.get_vocab().values()) <= control_ids(tokenizer) | {tokenizer.unk_token_id, tokenizer.pad_token_id}:
        raise UserError(f'model.base = "{base}": {NO_TOKENIZER}')


def tokenizer_error(error: Exception, folder: str) -> str:
    """One line on why a tokenizer cannot be loaded."""
    path = Path(folder)
    names = {file.name for file in path.iterdir()} if path.is_dir() else {"tokenizer.json"}
    files = names - {"config.json", "generation_config.json", "tokenizer_config.json"}
    if not any(
        name.startswith(("tokenizer.", "vocab", "merges")) or name.endswith((".model", ".json"))
        for name in files
        if not name.endswith(".index.json")
    ):
        return NO_TOKENIZER
    models = sorted(path.glob("*.model")) if path.is_dir() else []
    if models and not (path / "tokenizer.json").is_file():
        try:
            import sentencepiece  # type: ignore[import-not-found] # noqa: F401
        except ImportError:
            return f"{models[0].name} needs the package sentencepiece (pip install sentencepiece), or a tokenizer.json"
    return f"its tokenizer cannot be loaded: {first_line(error)}"
