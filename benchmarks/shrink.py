"""One rule that makes any architecture of transformers tiny: by the names and types of a config's attributes, never by
the model's name."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

VOCABULARY = 96
"""Tokens: those of the tiny tokenizer, and a margin for the special ones that some architectures want."""

SPECIAL = 80
"""Where the margin begins."""

END = 4
"""The tiny tokenizer's end token; its padding is 0."""

LAYERS = 4
POSITIONS = 128
WINDOW = 8
EXPERTS = 4


Unset = Literal["derive", "set", "fill"]


@dataclass(frozen=True)
class Scale:
    """The sizes of a shrunk model, and what becomes of attributes whose default is None.

    derive: they are left to the config's class, which may work them out from the rest; set: they are what the class
    made of them, shrunk; fill: as set, and numbers of heads and the like that are still None are given.
    """

    heads: int
    head_size: int
    hidden: int
    unset: Unset


SCALES = tuple(
    Scale(heads, size, hidden, unset)
    for heads, size, hidden in ((4, 8, 32), (4, 16, 64), (8, 8, 32), (4, 24, 96), (4, 32, 128), (2, 64, 128))
    for unset in get_args(Unset)
)
"""Tried in this order until one can be built and run; always hidden = heads x head size, or twice that or half of it
(state space models keep heads x head size = expansion x hidden)."""

ID = re.compile(r"(_id|_ids|_token_index|token_idx)$")
LIST_OF_LAYERS = re.compile(r"layer|idx|index|depth")
COUNT_OF_LAYERS = re.compile(r"(^|_)(n|num)_(\w+_)?(layers?|blocks|hidden_groups)$|^(\w+_)?layers?$|^(\w+_)?depth$")
RHYTHM = re.compile(r"period|interval|every|pattern|sparse_step|frequency|layer_step|group_size|per_attn")
START = re.compile(r"offset|first_k|start_index|dense_layers|insert_layer|shared_layers")
HEAD_SIZE = re.compile(r"head_?dim|dim_head|d_head|head_size|^d_kv$|kv_channels|rotary_dim|attention_head_dim")
HEADS = re.compile(r"(^|_)heads?$|heads_per|query_groups")
FEW_HEADS = re.compile(r"kv|key_value|key_heads|query_groups")
EXPERTS_USED = re.compile(r"per_tok|moe_top_?k|moe_k$|topk_group")
EXPERT = re.compile(r"experts?$|expert_num$")
GROUPS = re.compile(r"group")
LENGTH = re.compile(r"position|n_ctx|seq_len|context_length|max_length|max_target|landmarks|index_topk$")
NEAR = re.compile(r"window|local_attention$|chunk_(size|length)|attn_chunk|block_size|sliding")
RANK = re.compile(r"rank|state|ple_|d_rel|laurel|per_layer_input|codebook")
INNER = re.compile(r"intermediate|ffn|d_ff|dim_ff|dff|mlp_dim|d_inner|feed_forward|n_inner|expert_dim")
MISSED = re.compile(rf"{HEAD_SIZE.pattern}|{HEADS.pattern}|{EXPERTS_USED.pattern}|{EXPERT.pattern}|vocab_size|group")
IMAGE = re.compile(r"(image|img)_size|resolution|crop")
PATCH = re.compile(r"patch_size")


@dataclass(frozen=True)
class Sizes:
    """What a config says of itself before it is shrunk; ids: of special tokens that are still to be given away."""

    layers: int
    heads: int
    hidden: int
    ids: Iterator[int]


def shrink_config(config: Any, scale: Scale) -> Any:
    """A tiny config of the same class: its defaults, attribute by attribute, nested configs as well."""
    return type(config)(**_attributes(config, scale))


def _attributes(config: Any, scale: Scale) -> dict[str, Any]:
    sizes = Sizes(*(_first(config, names) for names in NAMES), iter(range(SPECIAL, VOCABULARY)))
    nested = set(getattr(config, "sub_configs", {}) or {})
    fields = getattr(type(config), "__dataclass_fields__", {})
    attributes: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if name not in fields or name in ("transformers_version", "dtype", "torch_dtype", "architectures"):
            continue
        if name in nested:
            nested_config = getattr(config, name)
            attributes[name] = (
                None
                if nested_config is None
                else shrink_config(nested_config, scale)
                if hasattr(nested_config, "to_dict")
                else value
            )
        elif scale.unset == "derive" and fields[name].default is None and not ID.search(name):
            continue
        else:
            attributes[name] = _value(name, value, scale, sizes)
    return attributes


NAMES = (
    ("num_hidden_layers", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "depth"),
    ("num_attention_heads", "num_heads", "n_heads", "decoder_attention_heads", "n_head"),
    ("hidden_size", "d_model", "embed_dim"),
)
"""Under which a config has its layers, heads and width; most have a common name for what they call otherwise."""


def _first(config: Any, names: Sequence[str]) -> int:
    values = config.to_dict()
    alias = type(config).attribute_map
    candidates = (values.get(alias.get(name, name)) for name in names)
    return next((value for value in candidates if isinstance(value, int) and value > 0), 1)


def _value(name: str, value: Any, scale: Scale, sizes: Sizes) -> Any:
    if value is None and scale.unset == "fill":
        value = [1, 3] if name.endswith("layer_indices") else 1 << 30 if MISSED.search(name) else None
    if isinstance(value, bool) or value is None or isinstance(value, str | float):
        return value
    if name in ("id2label", "label2id"):
        return value
    if isinstance(value, dict):
        return {k: _value(str(k), v, scale, sizes) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return _list(name, list(value), scale, sizes)
    return _number(name, value, scale, sizes) if isinstance(value, int) else value


def _list(name: str, value: list[Any], scale: Scale, sizes: Sizes) -> list[Any]:
    """Shortened where it has an entry a layer, so that every kind of entry stays."""
    if ID.search(name):
        return [_number(name, entry, scale, sizes) for entry in value]
    ints = [entry for entry in value if isinstance(entry, int) and not isinstance(entry, bool)]
    if len(value) == sizes.layers > LAYERS:
        if ints == sorted(set(ints)) and len(ints) == len(value):
            return [entry for entry in ints if entry < LAYERS]  # numbers of layers
        value = _every_kind(value)
    elif len(ints) == len(value) and LIST_OF_LAYERS.search(name) and ints == sorted(ints):
        return sorted({entry * LAYERS // sizes.layers for entry in ints})
    elif len(value) == 2 and isinstance(value[0], list) and ints and ints[0] * len(value[0]) == sizes.layers:
        return [value[0], max(1, LAYERS // len(value[0]))]  # kinds, and how often they come
    elif "section" in name and ints:
        half = scale.head_size // 2
        cut = [max(1, entry * half // sum(ints)) for entry in ints]
        return [cut[0] + half - sum(cut), *cut[1:]]
    return [_value(name, entry, scale, sizes) for entry in value]


def _every_kind(value: list[Any]) -> list[Any]:
    """LAYERS entries in their order: of each kind the first, then of each the second, and so on."""
    ranks: list[tuple[int, int]] = []
    for index, kind in enumerate(value):
        ranks.append((value[:index].count(kind), index))
    return [value[index] for index in sorted(index for _, index in sorted(ranks)[:LAYERS])]


def _number(name: str, value: int, scale: Scale, sizes: Sizes) -> int:
    if ID.search(name):
        if name.endswith(("pad_token_id", "pad_id")):
            return 0
        return END if name.startswith(("bos", "eos")) else next(sizes.ids, VOCABULARY - 1)
    if "vocab" in name and "type_" not in name:
        return VOCABULARY if value > 16 else value
    if value <= 1:
        return value
    few = scale.heads if value == sizes.heads else scale.heads // 2
    rules: tuple[tuple[re.Pattern[str], int], ...] = (
        (START, max(1, value * LAYERS // sizes.layers) if value * 4 >= sizes.layers else 1),
        (RHYTHM, 2),
        (COUNT_OF_LAYERS, LAYERS),
        (HEAD_SIZE, scale.head_size),
        (EXPERTS_USED, 2),
        (EXPERT, EXPERTS),
        (FEW_HEADS, few) if "head" in name or "query_groups" in name else (FEW_HEADS, scale.head_size),
        (HEADS, scale.heads),
        (LENGTH, POSITIONS),
        (NEAR, WINDOW),
        (RANK, 8),
        (GROUPS, 2),
        (INNER, 2 * scale.hidden),
        (PATCH, 16),
        (IMAGE, 32),
    )
    for pattern, limit in rules:
        if pattern.search(name):
            return min(value, limit)
    return value if value <= scale.hidden else max(1, value * scale.hidden // max(sizes.hidden, value // 4))
