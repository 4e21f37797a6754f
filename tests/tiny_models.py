"""Tiny transformers with word tokenizers, made in memory: an encoder, a masked LM, a causal LM."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from core.models.encoder import TextEncoder
from core.models.load import LanguageModel

WORDS = """
a the it was is movie film review good great fine bad terrible awful plot boring fun lovely dull bright dark N/A . - yes
no maybe : in summary , very not story actor scene music and or but
""".split()  # noqa: SIM905
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer(causal: bool = False) -> PreTrainedTokenizerFast:
    """Whitespace words; the masked kind wraps texts in [CLS] ... [SEP]."""
    vocab = {w: i for i, w in enumerate([*SPECIAL, *WORDS])}
    fast = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if not causal:
        ids = [("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
        fast.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    if not causal:
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=fast, model_max_length=64, **names)


def _made(seed: int, build):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


def bert_config(width: int = 16, layers: int = 3) -> BertConfig:
    return BertConfig(
        vocab_size=len(WORDS) + len(SPECIAL),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        pad_token_id=0,
    )


def encoder(width: int = 16, layers: int = 3, seed: int = 0) -> TextEncoder:
    """A BERT encoder with mean pooling."""
    backbone = _made(seed, lambda: BertModel(bert_config(width, layers), add_pooling_layer=False))
    return TextEncoder(backbone, tokenizer(), f"tiny{width}", f"tiny-{width}-{layers}-{seed}", 64).eval()


def masked(width: int = 16, layers: int = 3, seed: int = 0) -> LanguageModel:
    model = _made(seed, lambda: BertForMaskedLM(bert_config(width, layers)))
    return LanguageModel(model, tokenizer(), "masked", "tinymlm", f"mlm-{width}-{seed}", 64)


def causal(width: int = 16, layers: int = 3, seed: int = 0) -> LanguageModel:
    config = LlamaConfig(
        vocab_size=len(WORDS) + len(SPECIAL),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        tie_word_embeddings=True,
    )
    model = _made(seed, lambda: LlamaForCausalLM(config))
    return LanguageModel(model, tokenizer(causal=True), "causal", "tinyllama", f"clm-{width}-{seed}", 64)


TEXTS = [
    "a good movie",
    "a great film and lovely music",
    "fine plot , very fun",
    "the story was bright",
    "a bad movie",
    "terrible plot and awful actor",
    "a boring film , very dull",
    "the scene was dark",
]
LABELS = [1, 1, 1, 1, 0, 0, 0, 0]
