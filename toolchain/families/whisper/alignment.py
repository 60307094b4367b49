"""Which cross-attention heads of a Whisper tell when a word was said: its own list, or its decoder's upper half."""

from leanear.families.checkpoint_files import PRUNING_FILE
from leanear.families.whisper.blocks import cross_attention_heads
from leanear.families.whisper.checkpoint import WhisperCheckpoint
from leanear.families.whisper.slim import AlignmentHeads
from leanear.runtimes.files import read_object
from leanear.runtimes.manifest import Alignment
from leanear.runtimes.records import read


def alignment_of(checkpoint: WhisperCheckpoint) -> Alignment:
    """The alignment heads of generation_config.json or, where it has none, all of the decoder's upper half.

    Of tiny.en, the upper half is 60 ms from its own list (docs/whisper.md). Heads that were chosen because they move
    with the text of clips were four times as far: some of the steadiest look a quarter of a second beside it.
    """
    config, settings = checkpoint.model.config, checkpoint.model.generation_config
    heads = {(int(layer), int(head)) for layer, head in getattr(settings, "alignment_heads", None) or ()}
    lost, width = _pruned_heads(checkpoint), int(config.median_filter_width)
    if heads:
        return Alignment(tuple(sorted(heads)), "generation_config", lost, width)
    counts = cross_attention_heads(config)
    upper = range(len(counts) // 2, len(counts))
    return Alignment(
        tuple((layer, head) for layer in upper for head in range(counts[layer])), "upper half", lost, width
    )


def _pruned_heads(checkpoint: WhisperCheckpoint) -> int:
    """How many heads of the dense model's list pruning took, as pruning.json says; 0 where there is none."""
    path = checkpoint.folder / PRUNING_FILE
    found = read_object(path).get("alignment_heads") if path.is_file() else None
    return 0 if found is None else len(read(AlignmentHeads, found, f"{path}, alignment_heads").dropped)
