"""Small tokenizers of every kind that bases come with, trained on the spot, and real SentencePiece ones."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from airpfed.core.wheels import Wheel, read_member

TEXTS = [
    "the film was good and bad",
    "Label: red blue",
    "Answer: 42 is it",
    "a sad story\nLabel: good",
    "one two three",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
MISTRAL = Wheel("mistral-common", "1.13.1", "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af")


def trained(kind: str) -> Tokenizer:
    """bytes: as GPT-2's; metaspace, legacy: as Llama's, new and old; unigram: as XLM-R's; wordpiece: as BERT's."""
    common: dict[str, Any] = {"special_tokens": SPECIAL, "show_progress": False}
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=120, **common)
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=80, **common, unk_token="<unk>")
    elif kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=340, **common, initial_alphabet=alphabet)
    else:
        made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=120, **common, initial_alphabet=["\n"])
    made.train_from_iterator(TEXTS * 20, trainer)
    if kind == "legacy":
        made.pre_tokenizer = None  # type: ignore[assignment]
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def tokenizer(kind: str, begin: bool = False, end: bool = False) -> PreTrainedTokenizerFast:
    """begin, end: whether <s> and </s> are put around a text."""
    made = trained(kind)
    around = f"{'<s> ' * begin}$A{' </s>' * end}"
    if begin or end:
        ids = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
        made.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def real(name: str, folder: Path) -> Any:
    """A SentencePiece model of the Llama-2 or Mistral-v0 kind, out of the wheel mistral-common, as Llama reads it."""
    from tokenizers.models import BPE
    from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

    proto = import_protobuf().ModelProto()
    proto.ParseFromString(read_member(MISTRAL, f"mistral_common/data/{name}"))
    scores = [(piece.piece, piece.score) for piece in proto.pieces]
    vocab = {piece: index for index, (piece, _) in enumerate(scores)}
    made = Tokenizer(
        BPE(vocab, generate_merges(vocab, dict(scores)), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)
