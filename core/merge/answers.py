"""Answers of a causal language model: how likely it finds given ones, and what it writes by itself. Token ids only.

Batches are of similar length. Answers that are read after the same tokens share one row, so one-word answers (label
words) cost a single pass of the prompt however many there are, and the head sees only the positions that answer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from core.models.prompt import body_and_head
from core.models.score import Tokenized, length_buckets

BATCH_TOKENS = 2048
Ids = Sequence[int]


def tokens_of(ids: Sequence[Ids], pad: int) -> Tokenized:
    """Rows of token ids as :class:`core.models.score.Tokenized`."""
    return Tokenized([list(row) for row in ids], None, pad, np.array([len(row) for row in ids], dtype=np.int64))


def log_likelihoods(
    model: Any, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]], pad: int, batch_tokens: int = BATCH_TOKENS
) -> list[np.ndarray]:
    """Natural log-probability of every answer of every prompt: n arrays, as long as the prompt has answers.

    Args:
        model: causal language model of transformers (any floating dtype).
        prompts: token ids, at least one each.
        answers: a prompt's answers as token ids, at least one each.
    """
    rows: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for i, listed in enumerate(answers):
        for k, answer in enumerate(listed):
            rows.setdefault((i, tuple(answer[:-1])), []).append(k)
    keys = list(rows)
    tokens = tokens_of([[*prompts[i], *read] for i, read in keys], pad)
    out = [np.empty(len(listed)) for listed in answers]
    body, head = body_and_head(model)
    device = next(model.parameters()).device
    with torch.inference_mode():
        for part in length_buckets(tokens.lengths, batch_tokens):
            states = body(**tokens.batch(part, device)).last_hidden_state
            said = [len(keys[r][1]) + 1 for r in part]
            ends = [int(tokens.lengths[r]) for r in part]
            kept = torch.cat([states[row, end - n : end] for row, (n, end) in enumerate(zip(said, ends, strict=True))])
            logp = head(kept).float().log_softmax(-1).cpu().numpy()
            for r, block in zip(part, np.split(logp, np.cumsum(said)[:-1]), strict=True):
                i = keys[r][0]
                for k in rows[keys[r]]:
                    out[i][k] = block[np.arange(len(block)), list(answers[i][k])].sum()
    return out


def written(
    model: Any, tokenizer: Any, prompts: Sequence[Ids], new_tokens: int, batch_tokens: int = BATCH_TOKENS
) -> list[str]:
    """What the model writes after each prompt, greedily, up to the end-of-text token or ``new_tokens`` tokens."""
    device, pad = next(model.parameters()).device, tokenizer.pad_token_id or 0
    lengths, out = np.array([len(p) for p in prompts]), [""] * len(prompts)
    with torch.inference_mode():
        for part in length_buckets(lengths, batch_tokens):
            longest = int(lengths[part].max())
            ids, mask = np.full((len(part), longest), pad), np.zeros((len(part), longest), dtype=np.int64)
            for row, i in enumerate(part):  # padded on the left: the answer goes on at the right end
                ids[row, longest - len(prompts[i]) :], mask[row, longest - len(prompts[i]) :] = prompts[i], 1
            made = model.generate(
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=torch.from_numpy(mask).to(device),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=tokenizer.eos_token_id,
            )
            texts = tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)
            for i, text in zip(part, texts, strict=True):
                out[i] = text
    return out
