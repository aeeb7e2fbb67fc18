"""Tokenizers made on the spot: no hub, no merges, one token for each letter or byte."""

from __future__ import annotations

import string
import tempfile
from pathlib import Path
from typing import Any

import transformers

LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits + string.punctuation

CLIP_MARKS = ("<|startoftext|>", "<|endoftext|>")
CLIP_VOCABULARY = 2 * len(LETTERS) + len(CLIP_MARKS)
CLIP_TOKENS = 77

T5_EXTRA = 4
T5_VOCABULARY = 4 + len(LETTERS) + T5_EXTRA

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template in the form of Qwen's, whose marks every tokenizer here knows."""

MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
BYTES_VOCABULARY = 256 + len(MARKS)


def _bytes() -> list[str]:
    """The 256 characters by which byte-level tokenizers write bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def mark(name: str) -> int:
    """Number of a mark in the vocabulary of :func:`qwen`."""
    return 256 + MARKS.index(name)


def clip(tokens: int = CLIP_TOKENS) -> Any:
    """A CLIP tokenizer, which takes so many tokens."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *CLIP_MARKS]
    return transformers.CLIPTokenizer(vocab=_numbered(words), merges=[], model_max_length=tokens)


def t5(tokens: int = 512) -> Any:
    """A T5 tokenizer."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -2.0) for letter in LETTERS)]
    words += [(f"<extra_id_{number}>", 0.0) for number in range(T5_EXTRA)]
    return transformers.T5Tokenizer(vocab=words, extra_ids=T5_EXTRA, model_max_length=tokens)


def qwen(tokens: int = 1024) -> Any:
    """A byte-level tokenizer as Qwen 2 and 3 have it, with a chat template."""
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=_numbered([*_bytes(), *MARKS]),
        merges=[],
        model_max_length=tokens,
        eos_token="<|im_end|>",
        additional_special_tokens=list(MARKS[1:]),
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def byte_level(
    marks: tuple[str, ...] = (), chat_template: str | None = None, begin: tuple[str, ...] = (), **more: Any
) -> Any:
    """A byte-level tokenizer of no class of its own, as Llama 3, Mistral and GLM 4 have it, texts begun by marks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE(vocab=_numbered([*_bytes(), *marks]), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begin:
        numbers = [(mark, 256 + marks.index(mark)) for mark in begin]
        tokenizer.post_processor = processors.TemplateProcessing(single=[*begin, "$A"], special_tokens=numbers)
    options = {"model_max_length": 1024, "additional_special_tokens": list(marks)} | more
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    fast.chat_template = chat_template
    return fast


GEMMA_MARKS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
GEMMA_VOCABULARY = len(GEMMA_MARKS) + 256 + 2 + len(LETTERS)


def gemma(tokens: int = 1024) -> Any:
    """A Gemma tokenizer."""
    words = [*GEMMA_MARKS, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n", *LETTERS]
    return transformers.GemmaTokenizer(vocab=_numbered(words), merges=[], model_max_length=tokens)


def llama(tokens: int = 1024, **more: Any) -> Any:
    """A Llama 1 or 2 tokenizer."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]
    return transformers.LlamaTokenizer(vocab=_numbered(words), merges=[], model_max_length=tokens, **more)


LLAMA_VOCABULARY = 3 + 256 + 1 + len(LETTERS)

BERT_VOCABULARY = 5 + 2 * len(LETTERS)


def bert(tokens: int = 77) -> Any:
    """A BERT tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return transformers.BertTokenizer(vocab=_numbered(words), do_lower_case=False, model_max_length=tokens)


ROBERTA_VOCABULARY = 5 + 1 + len(LETTERS)


def roberta(tokens: int = 77) -> Any:
    """An XLM-RoBERTa tokenizer."""
    words = [(mark, 0.0) for mark in ("<s>", "<pad>", "</s>", "<unk>")]
    words += [("▁", -2.0), *((letter, -2.0) for letter in LETTERS), ("<mask>", 0.0)]
    return transformers.XLMRobertaTokenizer(vocab=words, model_max_length=tokens)


def sentencepiece_model(folder: Path) -> Path:
    """Train a SentencePiece model on a few lines, and return its file."""
    import sentencepiece

    # It only reads files.
    with tempfile.TemporaryDirectory() as work:
        lines = Path(work) / "lines.txt"
        lines.write_text("\n".join([LETTERS, *LETTERS, "a photo of a cat and a dog"] * 20))
        sentencepiece.SentencePieceTrainer.train(
            input=str(lines),
            model_prefix=str(folder / "tokenizer"),
            vocab_size=len(LETTERS) + 264,
            model_type="char",
            byte_fallback=True,
            hard_vocab_limit=False,
            character_coverage=1.0,
            minloglevel=2,
        )
    (folder / "tokenizer.vocab").unlink()
    return folder / "tokenizer.model"


def _numbered(words: list[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words)}
