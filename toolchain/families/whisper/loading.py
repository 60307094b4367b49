"""A Whisper checkpoint's folder, read and checked."""

from pathlib import Path

from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from leanear.families.asked import NOTHING_ASKED, Asked
from leanear.families.checkpoint_files import (
    UNUSABLE_SETTINGS,
    SizeSigns,
    check_front_end,
    first_line,
    load_config,
    load_weights,
    read_model_type,
    require_features,
    require_gelu,
)
from leanear.families.modeling_slim_whisper import SlimWhisperConfig, SlimWhisperForConditionalGeneration
from leanear.families.whisper.forward import features
from leanear.families.whisper.model import (
    FRAMES_PER_POSITION,
    SLIM_MODEL_TYPE,
    WhisperCheckpoint,
    cross_attention_heads,
)
from leanear.families.whisper.prompts import set_defaults
from leanear.families.whisper.settings import END, NO_TIMESTAMPS, START, complete_settings
from leanear.runtimes.errors import BadInput
from leanear.runtimes.process.notes import note

SIZE_SIGNS = SizeSigns(
    layers={"encoder_layers": r"encoder\.layers\.(\d+)\.", "decoder_layers": r"decoder\.layers\.(\d+)\."},
    widths={"d_model": r"encoder\.layer_norm\.weight$"},
)


def load_checkpoint(folder: Path, asked: Asked = NOTHING_ASKED) -> WhisperCheckpoint:
    """The dense or slim Whisper checkpoint in `folder` (fp32). Weights come from safetensors; no code in it is run.

    asked: becomes the model's own task and language, in memory.

    Raises:
        BadInput: a file is missing or damaged, model, front end, tokenizer and generation settings disagree, or the
            model does not have what is asked for.
    """
    folder = Path(folder)
    feature_extractor = _load_feature_extractor(folder)
    tokenizer = _load_tokenizer(folder)
    slim = read_model_type(folder) == SLIM_MODEL_TYPE
    model_class = SlimWhisperForConditionalGeneration if slim else WhisperForConditionalGeneration
    config = load_config(SlimWhisperConfig if slim else WhisperConfig, model_class, folder, SIZE_SIGNS)
    _check_geometry(folder, config)
    _check_window(folder, config, feature_extractor)
    wanted = config.num_mel_bins, config.max_source_positions * FRAMES_PER_POSITION
    require_features(folder, feature_extractor, features, wanted)
    _check_vocabulary(folder, config, tokenizer)
    generation_config = _load_generation_config(folder, config, tokenizer)
    model = load_weights(model_class, folder)
    model.generation_config = generation_config
    checkpoint = WhisperCheckpoint(folder, model, feature_extractor, tokenizer)
    set_defaults(checkpoint, asked)
    return checkpoint


def _load_feature_extractor(folder: Path) -> WhisperFeatureExtractor:
    path = folder / "preprocessor_config.json"
    if not path.is_file() and (folder / "processor_config.json").is_file():
        path = folder / "processor_config.json"  # where transformers 5 puts the front end's settings
    if not path.is_file():
        raise BadInput(f"{path}: no such file; the audio front end's settings are needed")
    check_front_end(path)
    try:
        return WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except UNUSABLE_SETTINGS as error:
        raise BadInput(f"{path}: not the settings of a WhisperFeatureExtractor ({first_line(error)})") from None


def _load_tokenizer(folder: Path) -> WhisperTokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file() and (folder / "vocab.json").is_file():
        path = folder / "vocab.json"
    if not path.is_file():
        raise BadInput(f"{path}: no such file; the tokenizer's vocabulary is needed")
    try:
        return WhisperTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # the Rust code behind it raises bare Exceptions, so that these cannot be named more closely
        if type(error) is not Exception and not isinstance(error, UNUSABLE_SETTINGS):
            raise
        raise BadInput(f"{path}: not a Whisper tokenizer's ({first_line(error)})") from None


def _check_geometry(folder: Path, config: WhisperConfig) -> None:
    for key in ("encoder_layers", "decoder_layers"):
        if getattr(config, key) < 1:
            raise BadInput(f"{folder}/config.json: {key} is 0; there is no attention to prune")
    if config.encoder_attention_heads != config.decoder_attention_heads:
        raise BadInput(
            f"{folder}/config.json: encoder_attention_heads is {config.encoder_attention_heads} and "
            f"decoder_attention_heads {config.decoder_attention_heads}; heads of two widths are not supported"
        )
    require_gelu(folder, "activation_function", config)


def _check_window(folder: Path, config: WhisperConfig, feature_extractor: WhisperFeatureExtractor) -> None:
    path = f"{folder}/preprocessor_config.json"
    if feature_extractor.feature_size != config.num_mel_bins:
        raise BadInput(
            f"{path}: feature_size is {feature_extractor.feature_size}, but config.json says {config.num_mel_bins}"
        )
    frames, positions = feature_extractor.nb_max_frames, config.max_source_positions
    if frames != positions * FRAMES_PER_POSITION:
        longer = "longer" if frames > positions * FRAMES_PER_POSITION else "shorter"
        raise BadInput(
            f"{path}: chunk_length is {feature_extractor.chunk_length} s, {frames} frames, a window {longer} than the "
            f"model's: max_source_positions in config.json is {positions}, for {positions * FRAMES_PER_POSITION} frames"
        )


def _check_vocabulary(folder: Path, config: WhisperConfig, tokenizer: WhisperTokenizer) -> None:
    known = tokenizer.get_vocab()
    for token in (END, START, NO_TIMESTAMPS):
        if token not in known:
            raise BadInput(f"{folder}/tokenizer.json: it has no {token!r}, which Whisper's prompts are made of")
    largest = max(known.values())
    if largest >= config.vocab_size:
        raise BadInput(
            f"{folder}/tokenizer.json: the vocabulary has {largest + 1} tokens, but the model {config.vocab_size} "
            "(vocab_size in config.json)"
        )
    # Older tokenizers do not list the timestamps, which are the last tokens of the model.
    if largest + 1 < config.vocab_size and largest != known[NO_TIMESTAMPS]:
        raise BadInput(
            f"{folder}/tokenizer.json: the vocabulary has {largest + 1} tokens, fewer than the model's "
            f"{config.vocab_size} (vocab_size in config.json)"
        )
    for key, token in (("decoder_start_token_id", START), ("eos_token_id", END)):
        found = getattr(config, key)
        if found not in (known[token], [known[token]]):
            raise BadInput(f"{folder}/config.json: {key} is {found}, but {token!r} of the tokenizer is {known[token]}")


def _load_generation_config(folder: Path, config: WhisperConfig, tokenizer: WhisperTokenizer) -> GenerationConfig:
    path = folder / "generation_config.json"
    if not path.is_file():
        raise BadInput(f"{path}: no such file; Whisper's decoding rules are needed")
    try:
        settings = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except UNUSABLE_SETTINGS as error:
        raise BadInput(f"{path}: not generation settings ({first_line(error)})") from None
    complete_settings(folder, settings, tokenizer)
    known = tokenizer.get_vocab()
    for key, token in (("no_timestamps_token_id", NO_TIMESTAMPS), ("decoder_start_token_id", START)):
        found = getattr(settings, key)
        if found != known[token]:
            raise BadInput(f"{path}: {key} is {found}, but {token!r} of the tokenizer is {known[token]}")
    for key in ("lang_to_id", "task_to_id"):
        for name, token_id in (getattr(settings, key, None) or {}).items():
            token = name if key == "lang_to_id" else f"<|{name}|>"
            if known.get(token) != token_id:
                raise BadInput(f"{path}: {key} says that {token!r} is {token_id}, and the tokenizer {known.get(token)}")
    if settings.is_multilingual and settings.task not in settings.task_to_id:
        raise BadInput(f"{path}: task is {settings.task!r}, but it has {', '.join(settings.task_to_id)}; set another")
    for key in ("suppress_tokens", "begin_suppress_tokens"):
        beyond = [token for token in getattr(settings, key, None) or () if not 0 <= token < config.vocab_size]
        if beyond:
            raise BadInput(f"{path}: {key} holds {beyond[0]}, which no token of the model is")
    _check_alignment_heads(path, config, settings)
    return settings


def _check_alignment_heads(path: Path, config: WhisperConfig, settings: GenerationConfig) -> None:
    """Refuse what is no list of heads, and forget a list of heads that the model lacks, as a distilled one may have."""
    heads = cross_attention_heads(config)
    for entry in getattr(settings, "alignment_heads", None) or ():
        if not (isinstance(entry, list | tuple) and len(entry) == 2 and all(type(each) is int for each in entry)):
            raise BadInput(f"{path}: alignment_heads names {entry}, which is no decoder layer and head")
        layer, head = entry
        if not (0 <= layer < len(heads) and 0 <= head < heads[layer]):
            note(f"{path}: alignment_heads names {entry}, which the model does not have; the list is not used")
            del settings.alignment_heads
            return
