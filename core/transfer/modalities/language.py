"""Language: a causal or sequence-to-sequence model that answers a prompt with text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from core.data.examples import Examples
from core.models.encoder import mean_pool
from core.models.folder import check_architecture, check_complete, check_tokenizer
from core.models.gguf import dequantised
from core.models.layers import first_layers, longest_input, output_width
from core.models.load import Source, default_device, locate
from core.models.quiet import quietly
from core.models.score import Tokenized, evaluating, length_buckets
from core.progress import track
from core.transfer.modalities import MODALITIES, seeded

IGNORED = -100
WANTED = "a causal or sequence-to-sequence language model with its head (SmolLM2, GPT-2, T5, ...)"


@MODALITIES.register("language", reads="prompts (texts) and reference answers (labels)")
class LanguageBody(nn.Module):
    """A model with its language head. Features are the mean last hidden state (of the encoder where there is one)."""

    modality = "language"

    def __init__(
        self, backbone: nn.Module, tokenizer: Any, name: str, sha256: str, max_length: int, template: str = ""
    ):
        super().__init__()
        self.backbone, self.tokenizer, self.name, self.sha256 = backbone, tokenizer, name, sha256
        self.max_length, self.template = max_length, template
        self.seq2seq = bool(backbone.config.is_encoder_decoder)
        self.width = output_width(backbone)

    @classmethod
    def load(
        cls,
        source: Any,
        layers: int | None = None,
        max_length: int = 128,
        template: str = "",
        device: str | None = None,
    ) -> "LanguageBody":
        """From an asset, folder, GGUF file or name; ``template`` holds ``{text}`` (the task's causal template).

        Raises:
            ValueError: no language model, a model without tokenizer, or one whose files lack weights (its head).
        """
        from transformers import AutoTokenizer

        found = locate(source)
        folder = dequantised(found) if found.gguf is not None else found.path
        auto = _auto(Source(found.name, folder, found.sha256))
        check_tokenizer(folder)
        model, info = quietly(auto.from_pretrained, folder, dtype=torch.float32, output_loading_info=True)
        check_complete(found.name, info["missing_keys"], WANTED)
        if layers is not None:
            model = first_layers(model, layers)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        name = found.name if layers is None else f"{found.name}[:{layers}]"
        if not model.config.is_encoder_decoder:  # those have relative positions, without a limit
            max_length = min(max_length, longest_input(model))
        body = cls(model, tokenizer, name, found.sha256, max_length, template)
        return body.to(device or default_device()).eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def prompts(self, examples: Examples) -> list[str]:
        """The texts a model reads."""
        if examples.arrays is not None and not examples.texts:
            raise ValueError("a source of modality language reads texts, the target holds arrays")
        pairs = examples.pairs or [""] * len(examples)
        if not self.template:
            return [f"{t} {p}" if p else t for t, p in zip(examples.texts, pairs, strict=True)]
        return [self._filled(t, p) for t, p in zip(examples.texts, pairs, strict=True)]

    def _filled(self, text: str, pair: str) -> str:
        """The template with as much of the texts as the model reads beside it: its last words say what is asked."""
        filled = self.template.format(text=text, pair=pair)
        words, other = text.split(), pair.split()
        while (words or other) and self._tokens(filled) > self.max_length:
            over = max(1, (self._tokens(filled) - self.max_length) // 4)
            longer = words if len(words) >= len(other) else other
            del longer[max(0, len(longer) - over) :]
            filled = self.template.format(text=" ".join(words), pair=" ".join(other))
        return filled

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def inputs(self, examples: Examples) -> Tokenized:
        read = Tokenized.of(self.tokenizer, self.prompts(examples), None, self.max_length)
        # A causal model goes on behind the prompt, and after an end there is nothing to say.
        return read if self.seq2seq else read.unended(self.tokenizer)

    def answers(self, examples: Examples) -> Tokenized:
        """Reference answers, ended by the end-of-text token."""
        texts = [" " + str(y).strip() + (self.tokenizer.eos_token or "") for y in examples.labels]
        return Tokenized.of(self.tokenizer, texts, None, self.max_length, special=False)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.seq2seq:
            states = self.backbone.get_encoder()(**batch).last_hidden_state
        else:
            states = self.backbone(**batch, output_hidden_states=True).hidden_states[-1]
        return mean_pool(states, batch["attention_mask"].unsqueeze(-1))

    def token_loss(self, prompts: Tokenized, answers: Tokenized, indices: Sequence[int]) -> torch.Tensor:
        """Mean cross-entropy (nats a token) of the answers given the prompts."""
        if self.seq2seq:
            labels = _padded([answers.ids[i] for i in indices], IGNORED).to(self.device)
            return self.backbone(**prompts.batch(indices, self.device), labels=labels).loss
        rows = [(prompts.ids[i], answers.ids[i]) for i in indices]
        ids = _padded([p + a for p, a in rows], prompts.pad).to(self.device)
        labels = _padded([[IGNORED] * len(p) + a for p, a in rows], IGNORED).to(self.device)
        mask = _padded([[1] * (len(p) + len(a)) for p, a in rows], 0).to(self.device)
        return self.backbone(input_ids=ids, attention_mask=mask, labels=labels).loss

    @torch.inference_mode()
    def generate(self, examples: Examples, max_new_tokens: int = 32) -> list[str]:
        """Greedy answers."""
        prompts, out = self.inputs(examples), [""] * len(examples)
        with evaluating(self), track(f"generate {self.name}", len(prompts), "text") as bar:
            for indices in length_buckets(prompts.lengths, 2048):
                ids, mask = _left_padded([prompts.ids[i] for i in indices], prompts.pad, self.device, not self.seq2seq)
                made = self.backbone.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=prompts.pad,
                    eos_token_id=self.tokenizer.eos_token_id,
                )
                made = made if self.seq2seq else made[:, ids.shape[1] :]
                for i, text in zip(indices, self.tokenizer.batch_decode(made, skip_special_tokens=True)):
                    out[i] = text.strip()
                bar.advance(len(indices))
        return out

    def fresh(self, seed: int) -> "LanguageBody":
        backbone = seeded(lambda: type(self.backbone)(self.backbone.config), seed)
        body = LanguageBody(backbone, self.tokenizer, f"{self.name} (new)", "", self.max_length, self.template)
        return body.to(self.device)


def _auto(source: Source) -> Any:
    """The class of transformers that loads this model with its head."""
    import transformers as t

    seq2seq = t.AutoConfig.from_pretrained(source.path).is_encoder_decoder
    known = t.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if seq2seq else t.MODEL_FOR_CAUSAL_LM_MAPPING
    check_architecture(source, known, WANTED)
    return t.AutoModelForSeq2SeqLM if seq2seq else t.AutoModelForCausalLM


def _padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    out = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row)
    return out


def _left_padded(rows, pad: int, device, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask; a causal model continues at the right end, so its padding goes to the left."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[i, where], mask[i, where] = row, 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
