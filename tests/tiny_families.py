"""Tiny random transformers of many families, saved as folders with a tokenizer of the family's kind."""

from pathlib import Path

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from core.models.quiet import quietly

WORDS = """
good bad film plot dull fine great awful story scene actor music the a was is very not and but so at on it : . , review
in who what where when how many number place person thing why terrible
""".split()  # noqa: SIM905
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
WIDE = {**SIZES, "intermediate_size": 64, "max_position_embeddings": 64}
GROUPED = {**WIDE, "num_key_value_heads": 1, "head_dim": 24}  # heads wider than hidden_size / num_attention_heads

# family: configuration, its values, and what transformers calls its models
FAMILIES = {
    "bert": (t.BertConfig, WIDE, "Bert"),
    "roberta": (t.RobertaConfig, WIDE, "Roberta"),
    "xlm-roberta": (t.XLMRobertaConfig, WIDE, "XLMRoberta"),
    "mpnet": (t.MPNetConfig, WIDE, "MPNet"),
    "distilbert": (
        t.DistilBertConfig,
        {"n_layers": 2, "n_heads": 2, "dim": 32, "hidden_dim": 64, "max_position_embeddings": 64},
        "DistilBert",
    ),
    "albert": (t.AlbertConfig, {**WIDE, "embedding_size": 16}, "Albert"),
    "electra": (t.ElectraConfig, {**WIDE, "embedding_size": 16}, "Electra"),
    "deberta": (
        t.DebertaConfig,
        {**WIDE, "type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "Deberta",
    ),
    "deberta-v2": (
        t.DebertaV2Config,
        {**WIDE, "type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
        | {"position_biased_input": False, "share_att_key": True, "position_buckets": 16, "norm_rel_ebd": "layer_norm"},
        "DebertaV2",
    ),
    "modernbert": (t.ModernBertConfig, {**WIDE, "local_attention": 8, "global_attn_every_n_layers": 2}, "ModernBert"),
    "gpt2": (t.GPT2Config, {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64}, "GPT2"),
    "opt": (
        t.OPTConfig,
        {
            **SIZES,
            "ffn_dim": 64,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
        },
        "OPT",
    ),
    "gpt_neox": (t.GPTNeoXConfig, WIDE, "GPTNeoX"),
    "llama": (t.LlamaConfig, {**WIDE, "num_key_value_heads": 1}, "Llama"),
    "qwen2": (t.Qwen2Config, {**WIDE, "num_key_value_heads": 1}, "Qwen2"),
    "qwen3": (t.Qwen3Config, GROUPED, "Qwen3"),
    "phi": (t.PhiConfig, WIDE, "Phi"),
    "gemma2": (t.Gemma2Config, {**GROUPED, "sliding_window": 16, "query_pre_attn_scalar": 24}, "Gemma2"),
    "gemma3_text": (
        t.Gemma3TextConfig,
        {**GROUPED, "sliding_window": 16, "query_pre_attn_scalar": 24, "final_logit_softcapping": 2.0},
        "Gemma3",
    ),
    "t5": (
        t.T5Config,
        {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
        "T5",
    ),
}
PADDED_ONE = ("roberta", "xlm-roberta", "mpnet", "opt")  # <s> is 0 and <pad> 1, as in their own vocabularies
CAUSAL = ("gpt2", "opt", "gpt_neox", "llama", "qwen2", "qwen3", "phi", "gemma2", "gemma3_text")
MASKED = tuple(f for f in FAMILIES if f not in (*CAUSAL, "t5"))


def tokenizer(family: str) -> t.PreTrainedTokenizerFast:
    """Words of WORDS: masked models wrap a text in ``<s> ... </s>``, T5 ends it; bytes and merges for causal ones."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    if family in PADDED_ONE:
        special[:2] = "<s>", "<pad>"
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if family in CAUSAL:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator([f"{w} {w}" for w in WORDS], trainer)
        return t.PreTrainedTokenizerFast(tokenizer_object=made, **names)
    ids = {w: i for i, w in enumerate([*special, *WORDS])}
    fast = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    begin = "" if family == "t5" else "<s> "
    fast.post_processor = processors.TemplateProcessing(
        single=f"{begin}$A </s>",
        pair=f"{begin}$A </s> $B:1 </s>:1",
        special_tokens=[(w, ids[w]) for w in ("<s>", "</s>")],
    )
    names |= {"mask_token": "<mask>", "cls_token": "<s>", "sep_token": "</s>"}
    return t.PreTrainedTokenizerFast(tokenizer_object=fast, **names)


def config(family: str, **changes) -> t.PretrainedConfig:
    maker, values, _ = FAMILIES[family]
    words = tokenizer(family)
    kinds = ("pad", "bos", "eos", "cls", "sep") if family == "modernbert" else ("pad", "bos", "eos")
    ids = {f"{k}_token_id": getattr(words, f"{k}_token_id") for k in kinds}
    return maker(**{"vocab_size": len(words), **ids, **values, **changes})


def save(family: str, folder: Path, kind: str = "", **changes) -> str:
    """Save a tiny model and its tokenizer; its folder as text.

    Args:
        kind: ``"encoder"`` (no head), ``"masked"`` or ``"causal"``; empty: what the family is used as.
        changes: values of the configuration.
    """
    kind = kind or ("causal" if family in CAUSAL else "masked")
    prefix = FAMILIES[family][2]
    if kind == "encoder":
        name = {"Gemma3": "Gemma3TextModel"}.get(prefix, f"{prefix}Model")
    elif family == "t5":
        name = "T5ForConditionalGeneration"
    else:
        name = {"GPT2causal": "GPT2LMHeadModel"}.get(prefix + kind, f"{prefix}For{kind.capitalize()}LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(t, name)(config(family, **changes)).eval()
        with torch.no_grad():  # weights of a size at which what is wrong shows
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(5)
    quietly(model.save_pretrained, folder)
    tokenizer(family).save_pretrained(folder)
    return str(folder)
