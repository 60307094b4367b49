"""Training the demo AST from nothing: patch dropping, bfloat16, a running average of the weights, resumable."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import Module
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from leanear.calibration.sites import AttentionSite
from leanear.families.ast import AstModel, attention_sites
from leanear.studies.demo.acoustics import Mixed, Ranges, Scene, mix
from leanear.studies.demo.optimising import State, average_into, restore_state, save_state
from leanear.studies.demo.spectrograms import log_mel, normalise
from leanear.studies.demo.words import WORDS

MAX_FRAMES = 100


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train."""

    steps: int = 2_200
    batch: int = 96
    matrix_rate: float = 3e-3  # Muon, the matrices of the layers
    other_rate: float = 1e-3  # AdamW, everything else
    weight_decay: float = 0.05
    warmup_steps: int = 100
    full_token_share: float = 0.1  # of the steps, at the end
    patches_kept: float = 0.35  # before that
    easy_share: float = 0.4  # of the steps, while the lowest SNR comes down
    guide_weight: float = 0.5  # of the loss of a second classifier that hears the mean of the patches
    average_decay: float = 0.995
    check_every: int = 200
    save_every: int = 100
    seed: int = 0


TRAIN_RANGES = Ranges(snr_db=(-8.0, 25.0), peak=(0.02, 0.9), speed=(0.88, 1.14), samples=(14_400, 17_600))


def new_config() -> ASTConfig:
    """The demo AST's settings: AST's tokenisation and head width, a third of AST's model width, half its layers."""
    return ASTConfig(
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=512,
        max_length=MAX_FRAMES,
        num_labels=len(WORDS),
        id2label=dict(enumerate(WORDS)),
        label2id={word: label for label, word in enumerate(WORDS)},
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def new_model(seed: int) -> ASTForAudioClassification:
    """The demo AST, untrained."""
    torch.manual_seed(seed)
    model = ASTForAudioClassification(new_config())
    initialise(model)
    return model


@torch.no_grad()
def initialise(model: AstModel) -> None:
    """Draws the weights that training starts from; biases and the classifier stay as the model's class made them.

    The stock initialisation suits fine-tuning: from its small weights and zero positions, nothing is learnt for
    hundreds of steps. Here every product keeps the scale of what goes into it, whatever the heads' widths are.
    """
    config, body = model.config, model.audio_spectrogram_transformer
    for name, weight in body.layers.named_parameters():
        if weight.ndim == 2:
            into_residual = name.endswith(("o_proj.weight", "fc2.weight"))
            weight.normal_(std=(0.4 if into_residual else 1.0) * weight.shape[1] ** -0.5)
    for site in attention_sites(model):
        _keep_the_scale_of_scores(site)
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    columns = (config.max_length - config.patch_size) // config.time_stride + 1
    body.embeddings.patch_embeddings.projection.weight.normal_(std=1 / config.patch_size)
    body.embeddings.position_embeddings[0, 2:] = 0.4 * _plane_waves(rows, columns, config.hidden_size)
    body.embeddings.cls_token.normal_(std=0.3)
    body.embeddings.distillation_token.normal_(std=0.3)


def _keep_the_scale_of_scores(site: AttentionSite) -> None:
    """Gives the attention scores of every head deviation 1; a head as wide as its softmax scale expects has it."""
    widths = torch.tensor(site.query_key_widths)
    gains = (widths * site.scaling**2) ** -0.25
    rows = gains.repeat_interleave(widths)[:, None]
    site.query.weight *= rows
    site.key.weight *= rows


def _plane_waves(rows: int, columns: int, width: int) -> torch.Tensor:
    """Sine and cosine position vectors of a grid, float32 (rows * columns, width), half for the row."""
    rate = 100.0 ** (-torch.arange(width // 4) / (width // 4))
    parts = []
    for place in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"):
        angle = place.reshape(-1, 1) * rate
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1)


def measured_extractor(scene: Scene, seed: int) -> ASTFeatureExtractor:
    """An extractor whose mean and deviation are those of 4,096 training clips, padding included, as AST takes them."""
    extractor = ASTFeatureExtractor(max_length=MAX_FRAMES, num_mel_bins=128, sampling_rate=16_000)
    rng = np.random.default_rng([seed, 11])
    features = []
    for _ in range(32):
        mixed = mix(scene, rng.integers(len(scene.labels), size=128), TRAIN_RANGES, rng)
        features.append(log_mel(mixed.waves, mixed.lengths, extractor))
    values = torch.cat(features)
    extractor.mean, extractor.std = round(float(values.mean()), 6), round(float(values.std()), 6)
    return extractor


def tokens_of(model: AstModel, values: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """The last layer's tokens, (B, 2 + T, D), from the patches numbered `kept` (B, T) alone, or from all where None."""
    body = model.audio_spectrogram_transformer
    hidden = body.embeddings(values)
    if kept is not None:
        patches = hidden[:, 2:].gather(1, kept[:, :, None].expand(-1, -1, hidden.shape[2]))
        hidden = torch.cat([hidden[:, :2], patches], dim=1)
    for layer in body.layers:
        hidden = layer(hidden)
    return body.layernorm(hidden)


def logits_of(model: AstModel, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (B, labels) from the last layer's tokens, as the stock model takes them: the mean of its class tokens."""
    return model.classifier((tokens[:, 0] + tokens[:, 1]) / 2)


@torch.no_grad()
def accuracy_by_clip(model: AstModel, features: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """Whether each clip is named correctly, bool (N,); `features` are normalised, float32 (N, frames, mel bins)."""
    model.eval()
    named = [model(part).logits.argmax(1) for part in features.split(128)]
    return torch.cat(named).numpy() == labels


def train(  # noqa: PLR0915
    model: AstModel,
    extractor: ASTFeatureExtractor,
    scene: Scene,
    dev: Mixed,
    schedule: Schedule,
    state_file: Path,
    advance: Callable[[int, str], None],
) -> AstModel:
    """The model with the running average of its weights, after all of the schedule; continues from `state_file`.

    `advance(step, note)` is called after each step. Every draw depends on the seed and the step alone, so a resumed
    run sees the clips that an uninterrupted one would have seen.
    """
    layers = model.audio_spectrogram_transformer.layers
    matrices = [weight for weight in layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    # The class tokens learn slowly on their own; a second classifier, thrown away later, teaches the patches.
    torch.manual_seed(schedule.seed + 1)
    guide = torch.nn.Linear(model.config.hidden_size, model.config.num_labels)
    others = [weight for weight in model.parameters() if id(weight) not in chosen] + list(guide.parameters())
    muon = torch.optim.Muon(
        matrices, lr=schedule.matrix_rate, weight_decay=schedule.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=schedule.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    averaged = copy.deepcopy(model)
    modules: dict[str, Module] = {"model": model, "averaged": averaged, "guide": guide}
    state = State(modules, {"muon": muon, "adamw": adamw})
    dev_features = normalise(log_mel(dev.waves, dev.lengths, extractor), extractor.mean, extractor.std)
    log_file = state_file.with_suffix(".jsonl")
    first = restore_state(state_file, state) if state_file.exists() else 0
    note = ""
    advance(first, note)

    patches = model.audio_spectrogram_transformer.embeddings.position_embeddings.shape[1] - 2
    seconds, seen, loss_sum = 0.0, 0, 0.0
    for step in range(first, schedule.steps):
        start = time.monotonic()
        rng = np.random.default_rng([schedule.seed, 13, step])
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
        mixed = mix(scene, rng.integers(len(scene.labels), size=schedule.batch), _ranges_at(step, schedule), rng)
        values = normalise(log_mel(mixed.waves, mixed.lengths, extractor), extractor.mean, extractor.std)
        kept = None
        if step < schedule.steps * (1 - schedule.full_token_share):
            order = torch.rand(len(values), patches, generator=generator).argsort(1)
            kept = order[:, : int(patches * schedule.patches_kept)]
        model.train()
        scale = _rate_scale_at(step, schedule)
        muon.param_groups[0]["lr"] = schedule.matrix_rate * scale
        adamw.param_groups[0]["lr"] = schedule.other_rate * scale
        labels = torch.from_numpy(mixed.labels)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = tokens_of(model, values, kept)
            logits, guide_logits = logits_of(model, tokens), guide(tokens[:, 2:].mean(1))
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        guide_loss = torch.nn.functional.cross_entropy(guide_logits.float(), labels)
        (loss + schedule.guide_weight * guide_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
        average_into(averaged, model, schedule.average_decay, step)
        seen, loss_sum = seen + len(values), loss_sum + float(loss.detach())
        seconds += time.monotonic() - start

        done = step + 1
        if done % schedule.check_every == 0 or done == schedule.steps:
            right = accuracy_by_clip(averaged, dev_features, dev.labels)
            steps_here = seen / schedule.batch
            record = {"step": done, "loss": loss_sum / steps_here, "samples_per_s": seen / seconds}
            record |= {"dev_accuracy": float(right.mean())}
            record |= _accuracy_by_snr(right, dev.snr_db)
            with log_file.open("a") as log:
                log.write(json.dumps(record) + "\n")
            note = f"loss {record['loss']:.3f}, dev {record['dev_accuracy']:.3f}"
            seconds, seen, loss_sum = 0.0, 0, 0.0
        if done % schedule.save_every == 0 or done == schedule.steps:
            save_state(state_file, state, done)
        advance(done, note)
    return averaged.eval()


def _accuracy_by_snr(right: np.ndarray, snr_db: np.ndarray) -> dict[str, float]:
    """The accuracy in each band of 5 dB that has clips, by the band's lower edge."""
    band_db = (5 * np.floor(snr_db / 5)).astype(int)
    return {f"from_{low}_db": float(right[band_db == low].mean()) for low in np.unique(band_db)}


def _rate_scale_at(step: int, schedule: Schedule) -> float:
    """The share of the peak learning rates: a linear rise, then half a cosine down to 1 %."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * progress))


def _ranges_at(step: int, schedule: Schedule) -> Ranges:
    """The training conditions: the lowest SNR comes down from 15 dB, so that the first steps can learn something."""
    low, high = TRAIN_RANGES.snr_db
    share = min(1.0, step / max(1, schedule.steps * schedule.easy_share))
    return Ranges(
        snr_db=(15.0 + (low - 15.0) * share, high),
        peak=TRAIN_RANGES.peak,
        speed=TRAIN_RANGES.speed,
        samples=TRAIN_RANGES.samples,
    )
