"""openai's Whisper with a Hugging Face checkpoint's weights, in the peer's environment: the words of clips with times.

python word_times_worker.py CHECKPOINT CLIPS.npz OUT.json

CLIPS.npz: one float32 waveform at 16 kHz per name. OUT.json: per name a list of [word, start in seconds, end].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "final_layer_norm": "mlp_ln",
    "self_attn": "attn",
    "encoder_attn": "cross_attn",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "layers": "blocks",
    "embed_tokens": "token_embedding",
}
WHOLE = {
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.layer_norm": "decoder.ln",
    "encoder.embed_positions.weight": "encoder.positional_embedding",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
}


def their_name(name: str) -> str:
    """What openai's model calls a tensor of a Hugging Face checkpoint."""
    name = name.removeprefix("model.")
    for ours, theirs in WHOLE.items():
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return ".".join(NAMES.get(part, part) for part in name.split("."))


def load(folder: Path) -> Any:
    """openai's model with the checkpoint's weights and alignment heads."""
    import torch
    from safetensors.torch import load_file
    from whisper.model import ModelDimensions, Whisper

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sizes = ModelDimensions(
        n_mels=config["num_mel_bins"],
        n_audio_ctx=config["max_source_positions"],
        n_audio_state=config["d_model"],
        n_audio_head=config["encoder_attention_heads"],
        n_audio_layer=config["encoder_layers"],
        n_vocab=config["vocab_size"],
        n_text_ctx=config["max_target_positions"],
        n_text_state=config["d_model"],
        n_text_head=config["decoder_attention_heads"],
        n_text_layer=config["decoder_layers"],
    )
    model = Whisper(sizes)
    weights = {their_name(name): tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    weights.pop("proj_out.weight", None)
    model.load_state_dict(weights, strict=True)
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    heads = torch.zeros(sizes.n_text_layer, sizes.n_text_head, dtype=torch.bool)
    for layer, head in settings["alignment_heads"]:
        heads[layer, head] = True
    model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    return model.eval()


def main() -> None:
    folder, clips, out = (Path(argument) for argument in sys.argv[1:])
    model, words = load(folder), {}
    with np.load(clips, allow_pickle=False) as arrays:
        for name in arrays.files:
            heard = model.transcribe(
                arrays[name], word_timestamps=True, fp16=False, language="en", condition_on_previous_text=False
            )
            words[name] = [
                [w["word"], float(w["start"]), float(w["end"])] for s in heard["segments"] for w in s["words"]
            ]
            print(f"{len(words)} of {len(arrays.files)}", flush=True)
    out.write_text(json.dumps(words), encoding="utf-8")


if __name__ == "__main__":
    main()
