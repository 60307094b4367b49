"""A tiny Whisper, what is cut of it, and its dense twin: fixtures, and what tests of surgery do with them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from leanear.data.examples import SpeechInputs
from leanear.families import whisper
from leanear.plan import HeadPlan, SitePlan, full_plan
from tests.conftest import tone
from tests.toolchain.dense_twin import zero_dropped_channels_
from tests.toolchain.whisper_pruning import fed_and_said
from tests.whisper_models import WINDOW_S, make_extractor, make_tokenizer, make_whisper, write_whisper

KINDS = ("encoder", "decoder", "cross")
NAMES = (
    "encoder.layers.0.self_attn", "encoder.layers.1.self_attn",
    "decoder.layers.0.self_attn", "decoder.layers.0.encoder_attn",
    "decoder.layers.1.self_attn", "decoder.layers.1.encoder_attn",
)  # fmt: skip
TEXTS = ("the other hand", "in", "Über and out")


@pytest.fixture(scope="module")
def dense() -> WhisperForConditionalGeneration:
    return make_whisper(head_width=8, heads=4)


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory, dense) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper") / "tiny", dense)


@pytest.fixture(scope="module")
def heard() -> torch.Tensor:
    """Features of three different clips."""
    noise = (0.1 * np.random.default_rng(0).normal(size=WINDOW_S * 16000)).astype(np.float32)
    return whisper.features(make_extractor(), [tone(300, 1.5), noise, tone(900, 0.3) + noise[:4800]])


@pytest.fixture(scope="module")
def inputs(heard) -> SpeechInputs:
    return SpeechInputs(heard, fed_and_said(make_tokenizer(), TEXTS, "en")[0])


@pytest.fixture(scope="module")
def pruned(dense) -> tuple[tuple[SitePlan, ...], WhisperForConditionalGeneration, WhisperForConditionalGeneration]:
    """Ragged widths and removed heads in all blocks: what is kept, the slim model, and its dense twin with zeros."""
    sites = random_sites(dense, seed=3)
    return sites, whisper.slim_model(dense, sites), zeroed(dense, sites)


def random_sites(model, seed: int, *, kinds=KINDS, ragged=True, drop_heads=True) -> tuple[SitePlan, ...]:
    """A plan that cuts the blocks of the given kinds; another head is removed in every block."""
    generator = np.random.default_rng(seed)
    sites = []
    for number, (site, full) in enumerate(zip(whisper.attention_sites(model), full_sites(model))):
        if site.kind not in kinds:
            sites.append(full)
            continue
        heads = []
        widths = generator.integers(2, 8, size=2)
        for head in full.heads:
            if drop_heads and head.head == number % len(full.heads):
                continue
            if ragged:
                widths = generator.integers(1, 8, size=2)
            query_key, value_output = (
                sorted(generator.choice(8, size=width, replace=False).tolist()) for width in widths
            )
            heads.append(HeadPlan(head.head, tuple(query_key), tuple(value_output)))
        sites.append(SitePlan(site.name, full.dense_heads, tuple(heads)))
    return tuple(sites)


def full_sites(model) -> tuple[SitePlan, ...]:
    return full_plan("whisper", whisper.attention_sites(model)).sites


def zeroed(model, sites) -> WhisperForConditionalGeneration:
    twin = copy.deepcopy(model)
    for site, site_plan in zip(whisper.attention_sites(twin), sites):
        zero_dropped_channels_(site, site_plan)
    return twin


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return whisper.logits(model, inputs)


def generated(model, heard, **settings) -> list[list[int]]:
    settings = {"language": "en", "max_new_tokens": 24, **settings}
    torch.manual_seed(0)
    with torch.no_grad():
        return model.generate(heard, **settings).tolist()


def plan_of(model, sites):
    plan = whisper.dense_plan(model)
    return type(plan)(**{**plan.__dict__, "sites": sites})


def saved(dense_folder, sites, out: Path, facts=None) -> tuple[WhisperForConditionalGeneration, Path]:
    """The slim model, and the folder that holds it."""
    checkpoint = whisper.load_checkpoint(dense_folder)
    slim = whisper.slim_model(checkpoint.model, sites)
    whisper.save_slim_checkpoint(slim, checkpoint, plan_of(checkpoint.model, sites), out, facts)
    return slim, out


def edit(path: Path, **changes) -> None:
    """Set keys of a JSON file, or remove those that are None."""
    settings = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del settings[key]
        else:
            settings[key] = value
    path.write_text(json.dumps(settings))
