"""`leanear classify` and `leanear transcribe`."""

import functools
from pathlib import Path
from typing import Any

import click

from leanear.benchmarks.device.classify import print_labels
from leanear.benchmarks.device.transcribe import Piped
from leanear.benchmarks.device.transcript_files import FORMATS, clips_in, forms_of, is_several
from leanear.cli.early import check_early
from leanear.cli.options import (
    asked_option,
    not_empty,
    numbers,
    runtime_option,
    seed_option,
    threads_option,
    window_option,
)
from leanear.cli.sections import LISTENING, command
from leanear.cli.voice import narrated
from leanear.data.audio import SUFFIXES, check_audio
from leanear.families.asked import NOTHING_ASKED, Asked
from leanear.families.checkpoint import DEMO_MODEL
from leanear.outputs import check_file
from leanear.progress import Narrator
from leanear.runtimes.audio.piped_audio import STANDARD_INPUT, raw_audio, read_standard_input
from leanear.runtimes.choose import PRECISIONS
from leanear.runtimes.speech.decode_options import DecodeOptions, hotwords_of
from leanear.runtimes.speech.encoder_windows import DEFAULT_WINDOW
from leanear.runtimes.speech.subtitles import chosen_lines
from leanear.runtimes.voice.speech_only import AUTO, CHOICES


@command()
@click.argument("clips", nargs=-1, required=True, metavar="CLIP...", type=click.Path(path_type=Path))
@click.option(
    "--model",
    "model",
    default=DEMO_MODEL,
    show_default=True,
    help="A checkpoint folder, a Hub id, or an artifact folder.",
)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many labels.")
@runtime_option
@click.option("--json", "as_json", is_flag=True, help="Print the labels as JSON.")
@narrated
def classify(clips: tuple[Path, ...], model: str, top: int, runtime: str, as_json: bool) -> None:
    """The labels that a model gives each CLIP, the likeliest first; CLIP is an audio file, or a folder of them.

    Of a model whose clips may have several labels, each label has a probability of its own: they need not add up to 1.

    \b
    Examples:
      leanear classify clip.wav
      leanear classify recordings/ clip.wav --model deployments/demo-ast/cpu/slim --json
    """
    check_early(model, NOTHING_ASKED)
    several, paths = is_several(clips), [each for path in clips for each in clips_in(path, SUFFIXES)]
    if not several:
        check_audio(paths[0])
    from leanear.evaluate.evaluation import classify as classify_clips

    print_labels(classify_clips(paths, model, top, runtime, several), as_json=as_json, one=not several)


@command(sections=LISTENING)
@click.argument("audio", nargs=-1, required=True, metavar="AUDIO...", type=click.Path(path_type=Path))
@click.option(
    "--model",
    default="demo-whisper",
    show_default=True,
    callback=not_empty,
    help="A checkpoint folder, a Hub id, or an artifact folder.",
)
@asked_option
@click.option("--no-timestamps", is_flag=True, help="Decode without timestamps: windows, not sentences, have times.")
@click.option(
    "--beam-size",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="Hypotheses of beam search; 1 is greedy.",
)
@click.option("--best-of", type=click.IntRange(1, 100), default=5, show_default=True, help="Samples of a second try.")
@click.option(
    "--temperatures",
    default="0,0.2,0.4,0.6,0.8,1",
    show_default=True,
    help="Tried in turn until a window is neither repetitive nor unlikely.",
)
@click.option(
    "--condition",
    is_flag=True,
    help="Show the decoder what it said in the window before; long audio is heard in full windows then.",
)
@click.option("--prompt", default="", help="Text that the decoder is shown as if it had been said before.")
@click.option("--hotwords", metavar="A,B", help="Names and rare words that it is shown before every window.")
@click.option(
    "--vad",
    type=click.Choice(CHOICES),
    default=AUTO,
    show_default=True,
    help="Transcribe only stretches that contain speech; auto: of audio over 30 s. How much was kept is reported.",
)
@window_option(f"an artifact's own; {DEFAULT_WINDOW} for a checkpoint")
@click.option("--word-timestamps", is_flag=True, help="Each word has times of its own.")
@click.option("--max-line-width", type=int, help="Characters per subtitle line, at most; takes --word-timestamps.")
@click.option("--max-line-count", type=int, help="Maximum lines per subtitle.  [default: 2]")
@click.option(
    "--output-format",
    "output_formats",
    type=click.Choice(FORMATS),
    multiple=True,
    help="The text alone, SubRip or WebVTT subtitles, or one JSON object with everything known of each segment; may be"
    " repeated with --output-dir.  [default: printed with times, written as txt]",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write there, whole or not at all.  [default: print]")
@click.option("--raw", is_flag=True, help="Standard input is PCM of 16 bits (little-endian) without a header.")
@click.option("--rate", type=int, metavar="HZ", help="Sample rate of --raw.  [default: 16000]")
@click.option("--channels", type=int, help="Channels of --raw.  [default: 1]")
@click.option("--output-dir", type=click.Path(path_type=Path), help="Write a file per recording and format there.")
@runtime_option
@click.option("--precision", type=click.Choice(PRECISIONS), help="For an artifact.  [default: what its graphs are of]")
@threads_option
@click.option(
    "--batch",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Pieces of a long recording, or short recordings, decoded together; 1 takes the least memory.",
)
@seed_option
@narrated
@click.pass_obj
def transcribe(narrator: Narrator, audio: tuple[Path, ...], model: str, asked: Asked, **flags: Any) -> None:
    """The words of AUDIO with their times, as they are found.

    AUDIO is WAV, FLAC, OGG, Opus, MP3 or AIFF of any length and sample rate, mono or stereo, a folder of such files, or
    - for standard input, which is WAV or raw PCM and is heard while it comes, window by window (--window).

    \b
    Examples:
      leanear transcribe talk.flac
      leanear transcribe talk.flac --model deployments/demo-whisper/cpu/slim --output-format srt --out talk.srt
      leanear transcribe talk.flac --word-timestamps --output-format vtt --max-line-width 42
      leanear transcribe talks/ interview.wav --output-format srt --output-format json --output-dir subtitles
      arecord -f S16_LE -r 16000 -c 1 | leanear transcribe -
    """
    take, is_piped = flags.pop, STANDARD_INPUT in audio
    raw_format = raw_audio(take("raw"), is_piped, take("rate"), take("channels"))
    words, told = take("word_timestamps"), {name: take(name) for name in ("out", "output_dir", "vad")}
    forms = forms_of(take("output_formats"), told["output_dir"])
    lines = chosen_lines(forms, words, take("max_line_width"), take("max_line_count"))
    opening = {name: take(name) for name in ("runtime", "precision", "threads", "window")}
    options = DecodeOptions(
        timestamps=not take("no_timestamps"),
        hotwords=hotwords_of(take("hotwords")),
        temperatures=numbers("--temperatures", take("temperatures")),
        task=asked.task,
        language=asked.language,
        **flags,
    )
    if told["out"] is not None:
        check_file(told["out"])
    reader = read_standard_input() if is_piped else None
    check_early(model, asked, window=opening["window"])
    from leanear.evaluate.transcribing import speech_listener, transcribe_files

    piped = None if reader is None else Piped(reader, raw_format)
    opened = functools.partial(speech_listener, model, options=options, word_timestamps=words, **opening)
    transcribe_files(audio, forms, opened, options, narrator, piped=piped, lines=lines, word_timestamps=words, **told)
