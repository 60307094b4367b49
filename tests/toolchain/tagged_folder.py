"""A made-up set of clips with several labels each, and a tiny model for them, as a user would bring them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from tests.conftest import make_tiny_ast, tone

TAGS = ("Speech", "Chirp, tweet", "Cutlery, silverware", "Whoosh, swoosh, swish", "Bell")
FREQUENCIES_HZ = (300, 700, 1500, 3000, 6000)


def write_tagger(folder: Path, extractor, names: Sequence[str] = TAGS) -> Path:
    """A tiny random AST checkpoint in `folder`, a sigmoid for each of five names."""
    model = make_tiny_ast()
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def write_tagged_folder(folder: Path, clips: int, *, names: Sequence[str] = TAGS, lines: bool = False) -> Path:
    """Clips of no, one or two of the tones of FREQUENCIES_HZ, with metadata.csv, or metadata.jsonl of `lines`."""
    folder.mkdir(parents=True)
    generator, rows = np.random.default_rng(0), []
    for clip in range(clips):
        sounding = generator.permutation(len(names))[: (2, 1, 2, 0, 1, 2)[clip % 6]]
        sound = generator.normal(0, 0.01, 6400) + sum(tone(FREQUENCIES_HZ[number % 5]) for number in sounding)
        soundfile.write(folder / f"{clip:03}.wav", np.clip(sound, -1, 1), 16_000)
        rows.append((f"{clip:03}.wav", [names[number] for number in sounding]))
    if lines:
        text = "".join(json.dumps({"file_name": name, "labels": labels}) + "\n" for name, labels in rows)
        (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
        return folder
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["file_name", "labels"])
        table.writerows((name, "|".join(labels)) for name, labels in rows)
    return folder
