"""Tiny random models of every modality, saved as folders, and tasks they can learn."""

from pathlib import Path

import numpy as np
import torch

from core.data.examples import Examples

SENTENCE = "good bad film plot dull fine great awful story scene actor music the a was is very not and but so at on it"
QUESTION = "in who what where when how many number place person thing why"
WORDS = SENTENCE.split() + QUESTION.split()


def tokenizer(folder: Path) -> None:
    """A word-level fast tokenizer over WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    vocabulary = {w: i for i, w in enumerate([*special, *WORDS])}
    t = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=t, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>", mask_token="<mask>"
    )
    fast.save_pretrained(folder)


def _sizes(**more):
    return {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **more}


def build(kind: str, folder: Path) -> Path:
    """Save the tiny model of ``kind`` and return its folder."""
    import transformers as t

    makers = {
        "bert": lambda: t.BertModel(t.BertConfig(**_sizes(intermediate_size=64, max_position_embeddings=64))),
        "mpnet": lambda: t.MPNetModel(t.MPNetConfig(**_sizes(intermediate_size=64, max_position_embeddings=64))),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**_sizes(intermediate_size=64, max_position_embeddings=64))),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=48, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0)
        ),
        "resnet": lambda: t.ResNetForImageClassification(
            t.ResNetConfig(
                num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
            )
        ),
        "vit": lambda: t.ViTForImageClassification(
            t.ViTConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                image_size=8,
                patch_size=4,
                num_channels=1,
            )
        ),
        "wav2vec2": lambda: t.Wav2Vec2ForSequenceClassification(
            t.Wav2Vec2Config(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                conv_dim=(16, 16),
                conv_stride=(5, 4),
                conv_kernel=(10, 8),
                num_feat_extract_layers=2,
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4,
                mask_time_prob=0.0,
                layerdrop=0.0,
            )
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = makers[kind]()
    model.save_pretrained(folder)
    if kind in ("bert", "mpnet", "llama", "t5"):
        tokenizer(folder)
    return folder


def texts(n: int, seed: int = 0, classes: int = 2, pairs: bool = False) -> Examples:
    """Texts whose class is told by one of its words."""
    rng = np.random.default_rng(seed)
    tells = ["good", "bad", "dull"][:classes]
    rest = WORDS[8:]
    labels = [i % classes for i in range(n)]
    rows = []
    for y in labels:
        words = list(rng.choice(rest, size=5))
        words[int(rng.integers(5))] = tells[y]
        rows.append(" ".join(words))
    return Examples(rows, list(reversed(rows)) if pairs else None, labels)


def images(n: int, seed: int = 0, classes: int = 3, side: int = 8) -> Examples:
    """Grey images with a bright row that tells the class."""
    rng = np.random.default_rng(seed)
    labels = [i % classes for i in range(n)]
    pixels = rng.integers(0, 60, size=(n, 1, side, side)).astype(np.uint8)
    for i, y in enumerate(labels):
        pixels[i, 0, 2 * y : 2 * y + 2] += 180
    return Examples([], None, labels, pixels)


def waves(n: int, seed: int = 0, classes: int = 2) -> Examples:
    """Noisy sines whose frequency tells the class."""
    rng = np.random.default_rng(seed)
    labels = [i % classes for i in range(n)]
    time = np.arange(400)
    sound = [np.sin(time * (0.1 + 0.5 * y) + rng.uniform(0, 6)) + 0.1 * rng.normal(size=400) for y in labels]
    return Examples([], None, labels, np.array(sound, dtype=np.float32))


def table(n: int, seed: int = 0, classes: int = 3, regression: bool = False) -> Examples:
    """Columns of which the first ones tell the class or value."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    if regression:
        return Examples([], None, [float(v) for v in 2 * x[:, 0] - x[:, 1] + 3], x)
    labels = [i % classes for i in range(n)]
    x[np.arange(n), labels] += 3
    return Examples([], None, labels, x)
