"""Latent spaces of architectures: a transformer variational autoencoder over token sequences, with a ranker.

Token and position embedding, transformer encoder, its states to mean and log-variance, causal transformer decoder with
cross-attention to the latent (Hou et al., TEVC 2025). First reconstruction + alpha * KL on cells without labels, then
+ beta * pairwise ranking loss on labelled ones, while the others go on being reconstructed. The printed sign of that
loss is the other way round; here

    L_rank = mean over pairs of exp(-(g(z_i) - g(z_j)) * sign(y_i - y_j)).

The published latent is read from the CLS state and handed to every position alike. Token sequences of a space have
fixed places, so here each place writes to the latent and reads from it by weights of its own, which is learned in a
tenth of the steps; ``summary="cls"`` is the published way.

One code serves one space or several: a :class:`Codec` over several spaces gives the learned shared encoder. Spaces are
told apart by :attr:`core.nas.spaces.Space.full_name`, so the sub-networks of two transformers are two spaces.

Training and encoding run on a CUDA device where there is one; batches and noise are drawn on the CPU in either case.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from core.config import Config
from core.nas.spaces import Genotype, Space, get_space
from core.progress import track
from core.state import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    import torch

KIND, SCHEMA = "nas-encoder", 3
END = 0


class EncoderConfig(Config):
    """Sizes and training of a latent space; epoch counts are no goal, training stops at the reconstruction."""

    width: int = Field(64, ge=8, description="model width")
    feedforward: int = Field(128, ge=8, description="feed-forward width")
    heads: int = Field(4, ge=1, description="attention heads")
    layers: int = Field(2, ge=1, description="layers of encoder and of decoder")
    latent: int = Field(32, ge=2, description="latent dimensions")
    summary: Literal["places", "cls"] = Field("places", description="how a latent meets the places of a sequence")
    batch: int = Field(64, ge=8, description="cells a step")
    lr: float = Field(2e-3, gt=0, description="AdamW learning rate: 10 % warm-up, last half falls")
    weight_decay: float = Field(1e-6, ge=0)
    alpha: float = Field(1e-4, ge=0, description="weight of the KL term")
    beta: float = Field(0.1, ge=0, description="weight of the ranking loss")
    stop_at: float = Field(0.995, gt=0, le=1, description="held-out reconstruction at which pre-training stops")
    steps: int = Field(4000, ge=1, description="most steps without labels")
    rank_steps: int = Field(600, ge=0, description="steps with the ranking loss")
    every: int = Field(100, ge=1, description="steps between looks at the held-out cells")
    seed: int = 0


PRESETS: dict[str, EncoderConfig] = {
    "fast": EncoderConfig(),
    "paper": EncoderConfig(
        width=128,
        feedforward=256,
        layers=4,
        latent=64,
        summary="cls",
        batch=32,
        lr=2e-5,
        stop_at=1.0,
        steps=75_000,
        rank_steps=25_000,
    ),
    "paper-darts": EncoderConfig(
        width=512,
        feedforward=2048,
        layers=4,
        latent=128,
        summary="cls",
        batch=32,
        lr=2e-5,
        stop_at=1.0,
        steps=75_000,
        rank_steps=25_000,
    ),
    "darts": EncoderConfig(width=128, feedforward=256, latent=64, steps=3000, rank_steps=1000, lr=1e-3, beta=0.5),
}


class Codec:
    """Token sequences of one or several spaces in one vocabulary, padded with END to one length.

    Raises:
        ValueError: no space, or one twice.
    """

    def __init__(self, spaces: Sequence[Space]):
        if not spaces:
            raise ValueError("a codec needs at least one space")
        self.spaces = tuple(spaces)
        self.names = [s.full_name for s in spaces]
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"a codec has each space once, got {', '.join(self.names)}")
        self.length = max(s.token_length for s in spaces)
        sizes = [len(s.vocabulary) for s in spaces]
        self.offset = dict(zip(self.names, np.cumsum([1, *sizes[:-1]]).tolist(), strict=True))
        self.size = 1 + sum(sizes)

    def first(self, space: Space) -> int:
        """Where the tokens of ``space`` begin. Raises ValueError for a space that is not encoded here."""
        if space.full_name not in self.offset:
            raise ValueError(f"this latent space is one of {', '.join(self.names)}, not of {space.full_name}")
        return self.offset[space.full_name]

    def encode(self, space: Space, cells: Sequence[Genotype]) -> np.ndarray:
        """int64 ``[n, length]``: the space's own CLS, its tokens, END."""
        out, first = np.full((len(cells), self.length), END), self.first(space)
        for i, cell in enumerate(cells):
            space.own(cell)
            tokens = np.asarray(space.encode(cell))[:-1]
            out[i, : len(tokens)] = tokens + first
        return out

    def decode(self, space: Space, tokens: np.ndarray) -> Genotype | None:
        """The cell that ``tokens`` spell in ``space``; None when they spell none."""
        own = np.asarray(tokens[: space.token_length - 1]) - self.first(space)
        if (own < 0).any() or (own >= len(space.vocabulary)).any():
            return None
        try:
            cell = space.decode([*own.tolist(), space.token_of["END"]])
            space.check(cell)
        except ValueError:
            return None
        return cell


def _network(codec: Codec, config: EncoderConfig) -> Any:
    """The autoencoder as a torch module (defined here so that importing this file does not import torch)."""
    import torch
    from torch import nn

    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            w, places = config.width, codec.length if config.summary == "places" else 1
            shape = {"d_model": w, "nhead": config.heads, "dim_feedforward": config.feedforward, "dropout": 0.0}
            self.token = nn.Embedding(codec.size, w)
            self.place = nn.Parameter(0.02 * torch.randn(codec.length, w))
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(**shape, batch_first=True, norm_first=True),
                config.layers,
                enable_nested_tensor=False,
            )
            self.places = places
            self.latent = nn.Linear(places * w, 2 * config.latent)
            self.memory = nn.Linear(config.latent, places * w)
            self.decoder = nn.TransformerDecoder(
                nn.TransformerDecoderLayer(**shape, batch_first=True, norm_first=True), config.layers
            )
            self.out = nn.Linear(w, codec.size)
            self.ranker = nn.Sequential(nn.Linear(config.latent, w), nn.GELU(), nn.Linear(w, 1))
            mask = torch.triu(torch.full((codec.length, codec.length), float("-inf")), 1)
            self.register_buffer("causal", mask, persistent=False)

        def encode(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Mean and log-variance, ``[n, latent]`` each."""
            states = self.encoder(self.token(tokens) + self.place)[:, : self.places]
            mean, log_variance = self.latent(states.flatten(1)).chunk(2, dim=-1)
            return mean, log_variance.clamp(-12, 4)

        def logits(self, z: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            """Next-token logits ``[n, t, vocabulary]`` after each of ``tokens [n, t]``."""
            t, memory = tokens.shape[1], self.memory(z).unflatten(1, (self.places, -1))
            x = self.token(tokens) + self.place[:t] + memory[:, :t]
            return self.out(self.decoder(x, memory, tgt_mask=self.causal[:t, :t], tgt_is_causal=True))

    return Autoencoder()


@dataclass
class LatentSpace:
    """A trained latent space: encode, decode, rank. Arrays in, arrays out; torch stays inside."""

    codec: Codec
    config: EncoderConfig
    network: Any
    facts: dict[str, float]

    @property
    def device(self) -> "torch.device":
        """Where the network is."""
        return next(self.network.parameters()).device

    def encode(self, space: Space, cells: Sequence[Genotype]) -> np.ndarray:
        """Means of the cells' latents, float32 ``[n, latent]``. Raises ValueError for a space that it does not know."""
        import torch

        tokens, device = torch.from_numpy(self.codec.encode(space, cells)), self.device
        with torch.inference_mode():
            parts = [self.network.encode(t.to(device))[0].cpu().numpy() for t in tokens.split(2048)]
        return np.concatenate(parts)

    def decode(self, space: Space, z: np.ndarray) -> list[Genotype | None]:
        """Greedy decoding of latents ``[n, latent]``; None where the sequence is no valid cell."""
        import torch

        z_t, device = self._latents(z), self.device
        tokens = torch.full((len(z), 1), self.codec.first(space) + space.token_of["CLS"], device=device)
        with torch.inference_mode():
            for _ in range(space.token_length - 2):
                tokens = torch.cat([tokens, self.network.logits(z_t, tokens)[:, -1:].argmax(-1)], dim=1)
        return [self.codec.decode(space, row) for row in tokens.cpu().numpy()]

    def rank(self, z: np.ndarray) -> np.ndarray:
        """Ranker's value of latents, larger better, ``[n]``."""
        import torch

        with torch.inference_mode():
            return self.network.ranker(self._latents(z))[:, 0].cpu().numpy()

    def _latents(self, z: np.ndarray) -> "torch.Tensor":
        import torch

        return torch.as_tensor(np.asarray(z, dtype=np.float32)).to(self.device)

    def reconstruction(self, space: Space, cells: Sequence[Genotype]) -> float:
        """Share of cells that come back as the same architecture from their latent."""
        back = self.decode(space, self.encode(space, cells))
        return float(np.mean([b is not None and space.key(b) == space.key(c) for b, c in zip(back, cells)]))

    def arrays(self) -> dict[str, np.ndarray]:
        return {k: v.cpu().numpy() for k, v in self.network.state_dict().items()}

    def save(self, path: str | Path) -> None:
        """One checksummed file."""
        payload = {
            "spaces": [s.name for s in self.codec.spaces],
            "settings": [s.settings for s in self.codec.spaces],
            "config": self.config.model_dump(),
            "facts": self.facts,
        }
        save_checkpoint(path, payload, kind=KIND, schema=SCHEMA, arrays=self.arrays())

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> "LatentSpace":
        """Read what :meth:`save` wrote, wherever it was trained.

        Args:
            device: ``"cpu"``, ``"cuda"``, ...; None takes CUDA where it is.

        Raises:
            StateError: a damaged, foreign or newer file.
            ValueError: a space, or a setting of one, that this program does not have.
        """
        import torch

        payload, arrays, _ = load_checkpoint(path, kind=KIND, schema=SCHEMA)
        names = payload["spaces"]
        settings = payload.get("settings", [{}] * len(names))  # before schema 3 all spaces had the default ones
        codec = Codec([get_space(n, **s) for n, s in zip(names, settings, strict=True)])
        config = EncoderConfig(**{"summary": "cls", **payload["config"]})  # files of schema 1 name no summary
        with torch.random.fork_rng(devices=[]):
            network = _network(codec, config).eval()
        network.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in arrays.items()})
        return cls(codec, config, network.to(_placed(device)), payload["facts"])


def _placed(device: str | None) -> str:
    """``device``, or where there is a choice CUDA.

    As :func:`core.models.load.default_device` has it, but without the code that loads models: a search's rows depend on
    the code that it imports.
    """
    import torch

    if device is not None:
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Corpus:
    """Cells of one space to learn from; ``labels`` larger better, NaN where unknown."""

    space: Space
    cells: Sequence[Genotype]
    labels: np.ndarray | None = None


def train_latent_space(
    corpora: Sequence[Corpus],
    config: EncoderConfig | None = None,
    checkpoint: str | Path | None = None,
    device: str | None = None,
) -> LatentSpace:
    """Train one latent space over one or several spaces; a tenth of the cells (at most 500 a space) is held out.

    Args:
        checkpoint: file written at every look at the held-out cells; if it is there training continues from it.
        device: ``"cpu"``, ``"cuda"``, ...; None takes CUDA where it is. The weights begin as the same numbers on all.

    Raises:
        ValueError: no cells, fewer than 20 of a space, one space twice, or a checkpoint of another training.
    """
    import torch

    config = config or PRESETS["fast"]
    if not corpora or min(len(c.cells) for c in corpora) < 20:
        raise ValueError("a latent space is learned from at least 20 cells of each space")
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(config.seed)
    try:
        network = _network(codec := Codec([c.space for c in corpora]), config)
    finally:
        torch.random.set_rng_state(torch_state)
    latent = LatentSpace(codec, config, network.to(_placed(device)), {})
    return _Training(latent, corpora, checkpoint).run()


class _Training:
    """The training loop with its state, so that a killed run continues identically."""

    def __init__(self, latent: LatentSpace, corpora: Sequence[Corpus], checkpoint: str | Path | None):
        import torch

        self.latent, self.config, self.network = latent, latent.config, latent.network
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        rng = np.random.default_rng(self.config.seed)
        tokens, labels, group = [], [], []
        self.held: list[tuple[Space, list[Genotype]]] = []
        for number, corpus in enumerate(corpora):
            order = rng.permutation(len(corpus.cells))
            away = min(500, max(1, len(order) // 10))
            self.held.append((corpus.space, [corpus.cells[i] for i in order[:away]]))
            kept = order[away:]
            tokens.append(latent.codec.encode(corpus.space, [corpus.cells[i] for i in kept]))
            known = corpus.labels if corpus.labels is not None else np.full(len(corpus.cells), np.nan)
            labels.append(np.asarray(known, dtype=np.float64)[kept])
            group.append(np.full(len(kept), number))
        self.device = latent.device
        self.tokens, self.labels = torch.from_numpy(np.concatenate(tokens)), np.concatenate(labels)
        self.group = np.concatenate(group)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay
        )
        self.rng = np.random.default_rng([self.config.seed, 1])
        self.noise = torch.Generator().manual_seed(self.config.seed)
        self.step, self.phase = 0, "reconstruct"

    def run(self) -> LatentSpace:
        if self.checkpoint is not None and self.checkpoint.exists():
            self._restore()
        config = self.config
        with track(f"latent space {'+'.join(self.latent.codec.names)}", config.steps + config.rank_steps) as bar:
            while self.phase != "done":
                self._one_step()
                bar.advance()
                last = config.steps if self.phase == "reconstruct" else config.rank_steps
                if self.step % config.every == 0 or self.step >= last:
                    self._look(last)
        self.network.eval()
        shares = {s.full_name: self.latent.reconstruction(s, cells) for s, cells in self.held}
        self.latent.facts |= {f"reconstruction.{name}": share for name, share in shares.items()}
        return self.latent

    def _look(self, last: int) -> None:
        """Decide whether the phase is over, and write the checkpoint."""
        self.network.eval()
        if self.phase == "reconstruct":
            good = min(self.latent.reconstruction(s, cells[:256]) for s, cells in self.held)
            over = good >= self.config.stop_at or self.step >= last
        else:
            over = self.step >= last
        if over:
            self.latent.facts[f"steps.{self.phase}"] = float(self.step)
            ranked = np.isfinite(self.labels).any() and self.config.rank_steps > 0
            self.phase = "rank" if self.phase == "reconstruct" and ranked else "done"
            self.step = 0
        self.network.train()
        if self.checkpoint is not None:
            self._store()

    def _one_step(self) -> None:
        import torch

        config = self.config
        if self.phase == "rank":
            pool = np.flatnonzero(np.isfinite(self.labels))
            labelled = pool[self.rng.integers(0, len(pool), min(config.batch, len(pool)))]
            rows = np.concatenate([labelled, self.rng.integers(0, len(self.tokens), config.batch)])
        else:
            rows = self.rng.integers(0, len(self.tokens), config.batch)
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * self._share_of_rate()
        loss = self._loss(self.tokens[rows].to(self.device), rows)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()

    def _share_of_rate(self) -> float:
        """Of the learning rate: a rise at the beginning of the training, a fall in the last half of each phase."""
        if self.phase == "rank":
            return min(0.5, 1 - (self.step - 1) / self.config.rank_steps)
        done = self.step / self.config.steps
        return min(1.0, 10 * done, 2 * (1 - done) + 0.02)

    def _loss(self, tokens: "torch.Tensor", rows: np.ndarray) -> "torch.Tensor":
        import torch
        from torch.nn import functional

        mean, log_variance = self.network.encode(tokens)
        noise = torch.randn(mean.shape, generator=self.noise).to(self.device)
        z = mean + noise * (0.5 * log_variance).exp()
        logits = self.network.logits(z, tokens[:, :-1])
        reconstruction = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        loss = reconstruction + self.config.alpha * kl
        if self.phase == "rank":
            y = torch.as_tensor(self.labels[rows]).to(self.device)
            same = torch.as_tensor(self.group[rows]).to(self.device)
            order = torch.sign(y[:, None] - y[None]).nan_to_num(0.0)  # nothing is known of a cell without a label
            sign = order * (same[:, None] == same[None])
            value = self.network.ranker(mean)[:, 0]
            margin = (value[:, None] - value[None]) * sign
            pairs = sign != 0
            loss = loss + self.config.beta * torch.exp(-margin.clamp(-10, 10))[pairs].mean()
        return loss

    def _store(self) -> None:
        arrays = {f"network.{k}": v for k, v in self.latent.arrays().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            arrays |= {f"adam.{i}.{k}": v.cpu().numpy() for k, v in state.items()}
        arrays["noise"] = self.noise.get_state().numpy()
        payload = {"step": self.step, "phase": self.phase, "rng": self.rng.bit_generator.state}
        payload |= {"facts": self.latent.facts, "config": self.config.model_dump(), "spaces": self.latent.codec.names}
        save_checkpoint(self.checkpoint, payload, kind=f"{KIND}-training", schema=SCHEMA, arrays=arrays)

    def _restore(self) -> None:
        import torch

        payload, arrays, _ = load_checkpoint(self.checkpoint, kind=f"{KIND}-training", schema=SCHEMA)
        names = self.latent.codec.names
        if payload["config"] != self.config.model_dump() or payload.get("spaces", names) != names:
            raise ValueError(f"{self.checkpoint} was written by a training with other settings or spaces; remove it")
        tensors = {k: torch.from_numpy(v.copy()) for k, v in arrays.items()}
        weights = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        self.network.load_state_dict(weights)
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, i, field = name.split(".")
                state.setdefault(int(i), {})[field] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.noise.set_state(tensors["noise"])
        self.rng.bit_generator.state = payload["rng"]
        self.step, self.phase, self.latent.facts = payload["step"], payload["phase"], dict(payload["facts"])


def kendall(latent: LatentSpace, space: Space, cells: Sequence[Genotype], labels: np.ndarray) -> float:
    """Kendall tau between the ranker and labels of cells it has not seen."""
    from scipy.stats import kendalltau

    return float(kendalltau(latent.rank(latent.encode(space, cells)), labels).statistic)


Preset = Literal["fast", "paper", "paper-darts", "darts"]
