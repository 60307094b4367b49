"""A checkpoint of Whisper-tiny's size, vocabulary and settings with random weights, for timing and for parity.

Whisper's real vocabulary is needed (`whisper-multilingual.tiktoken`, 50,257 ranks), its weights are not:

    python -m leanear.benchmarks.peers.whisper_tiny_size RANKS OUT
"""

from __future__ import annotations

import argparse
import base64
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS_MULTI
from transformers.models.whisper.tokenization_whisper import LANGUAGES

WINDOW_S = 30
LANGUAGE_CODES = tuple(LANGUAGES)[:99]  # Cantonese came with the third large model
END = 50257
START = END + 1
TRANSLATE = START + 1 + len(LANGUAGE_CODES)
TRANSCRIBE, START_OF_LM, PREVIOUS, NO_SPEECH, NO_TIMESTAMPS = range(TRANSLATE + 1, TRANSLATE + 6)
TIMESTAMPS = WINDOW_S * 50 + 1
VOCABULARY = NO_TIMESTAMPS + 1 + TIMESTAMPS
ALIGNMENT_HEADS = ((2, 2), (3, 0), (3, 2), (3, 3), (3, 4), (3, 5))  # those of openai/whisper-tiny

# Standard deviations by part of a parameter's name, and 1.4 / sqrt(inputs) otherwise. Small embeddings and large
# sub-layers keep the last token from being the likeliest next one. Queries and keys much larger than these make so much
# of rounding (at 0.23, logits in float32 are wrong by 0.003) that equal tokens on two runtimes would be chance; here
# they are wrong by 0.00006, and the two likeliest tokens are hardly ever less than 0.002 apart.
SPREADS = {
    "embed_tokens": 0.1, "embed_positions": 0.5, "norm": 0.05, "bias": 0.05,
    "q_proj": 0.14, "k_proj": 0.14, "out_proj": 0.17, "fc2": 0.11,
}  # fmt: skip
OF_TIMESTAMPS, OF_END = 0.4, 2.0  # by which these embeddings are scaled: rare where not asked for, and now and then


def read_ranks(path: Path) -> dict[bytes, int]:
    """The rank of every token of a tiktoken file; the last one of Whisper's is empty."""
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable letter for every byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + index) for index, byte in enumerate(others)}


def derive_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The BPE merges that these ranks imply, in order: of each token, the last two parts by lower ranks."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda entry: entry[1]):
        if len(token) < 2:
            continue
        parts = [token[index : index + 1] for index in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, rank) for left, right in zip(parts, parts[1:])]
            lowest = min(pairs)
            if lowest >= rank:
                break
            at = pairs.index(lowest)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def tiny_size_tokenizer(ranks_path: Path) -> WhisperTokenizer:
    """Whisper's multilingual tokenizer: 50,257 ranks, 107 special tokens, 1,501 timestamps."""
    ranks, letters = read_ranks(ranks_path), byte_alphabet()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    languages = [f"<|{code}|>" for code in LANGUAGE_CODES]
    tasks = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokenizer = WhisperTokenizer(
        vocab={spelled(token): rank for token, rank in ranks.items()},
        merges=[(spelled(left), spelled(right)) for left, right in derive_merges(ranks)],
        additional_special_tokens=["<|startoftranscript|>", *languages, *tasks],
    )
    tokenizer.add_tokens([AddedToken(f"<|{step * 0.02:.2f}|>", normalized=False) for step in range(TIMESTAMPS)])
    tokenizer.english_spelling_normalizer = {"colour": "color"}  # Whisper's own list is not in the ranks
    return tokenizer


def tiny_size_model(seed: int = 0) -> WhisperForConditionalGeneration:
    """A model of Whisper-tiny's size whose greedy text varies with the audio and from token to token."""
    config = WhisperConfig(
        vocab_size=VOCABULARY,
        decoder_start_token_id=START,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name == "model.encoder.embed_positions.weight":
            continue  # sinusoids, not trained
        inputs = parameter[0].numel() if parameter.ndim > 1 else 1
        spread = next((spread for part, spread in SPREADS.items() if part in name), 1.4 / inputs**0.5)
        parameter.data = spread * torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            parameter.data += 1
    embeddings = model.model.decoder.embed_tokens.weight.data
    embeddings[NO_TIMESTAMPS + 1 :] *= OF_TIMESTAMPS
    embeddings[END] *= OF_END
    model.generation_config = GenerationConfig(
        decoder_start_token_id=START,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        max_length=config.max_target_positions,
        suppress_tokens=sorted({*NON_SPEECH_TOKENS_MULTI, TRANSLATE, TRANSCRIBE}),
        begin_suppress_tokens=[220, END],
        forced_decoder_ids=[[1, None], [2, TRANSCRIBE]],
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": START + 1 + index for index, code in enumerate(LANGUAGE_CODES)},
        task_to_id={"transcribe": TRANSCRIBE, "translate": TRANSLATE},
        no_timestamps_token_id=NO_TIMESTAMPS,
        prev_sot_token_id=PREVIOUS,
        max_initial_timestamp_index=50,
        return_timestamps=False,
        alignment_heads=[list(head) for head in ALIGNMENT_HEADS],
    )
    return model


def write_tiny_size_checkpoint(folder: Path, tiktoken_path: Path, seed: int = 0) -> None:
    """Write the checkpoint with everything that stock `from_pretrained` of model and processor reads."""
    tiny_size_model(seed).save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=WINDOW_S).save_pretrained(folder)
    tokenizer = tiny_size_tokenizer(tiktoken_path)
    tokenizer.save_pretrained(folder)
    tokenizer.save_vocabulary(str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ranks", type=Path, help="whisper-multilingual.tiktoken")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_tiny_size_checkpoint(arguments.out, arguments.ranks, arguments.seed)


if __name__ == "__main__":
    main()
