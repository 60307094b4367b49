"""What somebody who has nothing but the bundle has to know: README.txt in it, and what is printed when it is made."""

import textwrap
import time
from pathlib import Path
from statistics import median
from typing import Any

from leanear.benchmarks.device.bundled import ALL_THREADS, RUNNER_FILE, Bundle, BundleDocument
from leanear.benchmarks.device.doctor import package
from leanear.benchmarks.inference import milliseconds, one_inference
from leanear.benchmarks.measure.measure import REPEATS
from leanear.benchmarks.results_document import Role
from leanear.runtimes.artifact import read_artifact, read_golden
from leanear.runtimes.choose import choose_runtime
from leanear.runtimes.clips import Clips, read_clips
from leanear.runtimes.errors import LeanearError
from leanear.runtimes.process.notes import plural
from leanear.runtimes.sessions import SessionOptions
from leanear.runtimes.speech.encoder_windows import window_tokens

README_FILE = "README.txt"
TIMED_RUNS = 5
VERBS = (
    ("doctor", "says what is missing, and the command that installs it"),
    ("compile", "does what the runtime can do ahead of time"),
    ("bench", "checks both models, measures them, and writes results/"),
)


def by_hand() -> tuple[str, ...]:
    """The three commands to type on the device, in the folder that the bundle was copied to."""
    return tuple(f"python3 {RUNNER_FILE} {verb}" for verb, _ in VERBS)


def wanted(runtime: str) -> str:
    """What has to be installed on the device, with the versions that will do."""
    libraries = [found for found in (package("numpy"), package(runtime)) if found is not None]
    return f"Python 3.9 or later, {' and '.join(libraries)}"


def readme_text(document: BundleDocument, clips: Clips | None, unpacked: int) -> str:
    """README.txt of a bundle; the same bundle has the same text.

    document: bundle.json, but for README.txt itself among its files; unpacked: bytes of what its packed files hold.
    """
    run, files = document.run, document.files
    size = sum(facts.bytes for facts in files.values())
    title = f"{document.name}: a bundle of leanear {document.leanear}"
    typed = [(f"python3 {RUNNER_FILE} {verb}", said) for verb, said in VERBS]
    width = max(len(command) for command, _ in typed)
    unpacking = f"The first command that needs the models unpacks them, {unpacked / 1e6:.1f} MB more. " * bool(unpacked)
    threads = "all cores" if run.threads == ALL_THREADS else f"{run.threads} threads"
    return f"""{title}
{"=" * len(title)}

For {document.target}.
{plural(len(files) + 2, "file")}, {size / 1e6:.1f} MB: {_held(document, clips)}.
Models compute by {run.runtime} on {threads}.

1. What the device needs

   {wanted(run.runtime)}.
   Nothing of leanear has to be installed: {RUNNER_FILE} holds it.

2. What to type, in this folder

{chr(10).join(f"   {command:{width}}   {said}" for command, said in typed)}

   {textwrap.fill(f"{unpacking}{_duration(document, clips)}", 110, subsequent_indent="   ")}
   Interrupted and typed again, it goes on where it was. A model that does not compute here what it computed where
   it was made is not measured: bench then ends with exit status 3, and the results say so.
   python3 {RUNNER_FILE} --help lists what else there is.

3. How the results come home

   Bring the folder results/ to the machine that made this bundle, and type there

   leanear import results/

   It puts them into the deployment in deployments/ that they belong to (--into FOLDER names one elsewhere) and writes
   its report.
"""


def _held(document: BundleDocument, clips: Clips | None) -> str:
    models = " and ".join(f"the {role} model" for role in document.artifacts)
    if clips is None:
        return f"{models}, no evaluation clips"
    seconds = sum(len(waveform) for waveform in clips.waveforms) / clips.sample_rate_hz
    return f"{models}, {plural(len(clips), 'evaluation clip')} of {seconds:.0f} s in all"


def _duration(document: BundleDocument, clips: Clips | None) -> str:
    """How long `bench` takes, as far as that does not depend on the device."""
    run, roles = document.run, len(document.artifacts)
    fixed = run.budget_s + roles * run.sustained_s
    rest = f"starting each model {REPEATS + 2} times"
    if clips is not None:
        rest += f" and answering each of the {len(clips)} clips by each"
    return f"bench takes {fixed:.0f} s of timing, and as long as the device needs for {rest}."


def expected_time(bundle: Bundle, artifacts: dict[str, Path]) -> str:
    """One line on how long `bench` will take, by what inferences take on this machine; or why that is not known.

    artifacts: folder by role, of what the bundle has packed.
    """
    seconds, told = 0.0, []
    clips = None if bundle.clips is None else read_clips(bundle.clips)
    try:
        for role, folder in artifacts.items():
            each_ms, waveform_s = _inference_here(bundle, role, folder)
            told.append(f"{role} {each_ms:.1f} ms")
            seconds += _inferences(clips, waveform_s) * each_ms / 1e3
    except LeanearError as error:
        return f"expected: {_duration(bundle.document, clips)} Not timed here: {error}"
    fixed = bundle.document.run.budget_s + len(artifacts) * bundle.document.run.sustained_s
    return (
        f"expected of bench: {fixed:.0f} s of timing, and for the clips {seconds:.0f} s on a device as fast as this"
        f" machine, longer on a slower one (a rough timing on this machine, which says nothing of the device:"
        f" {', '.join(told)} an inference)"
    )


def _inferences(clips: Clips | None, window_s: float) -> int:
    """How many windows the clips are heard in by one model."""
    if clips is None:
        return 0
    return sum(max(1, -(-len(waveform) // int(window_s * clips.sample_rate_hz))) for waveform in clips.waveforms)


def _inference_here(bundle: Bundle, role: Role, folder: Path) -> tuple[float, float]:
    """Milliseconds of one inference on this machine, the median of a few, and the seconds of its window."""
    artifact = read_artifact(folder)
    runtime = choose_runtime(bundle.runtime)
    options = SessionOptions(threads=bundle.threads, precision=bundle.precision_of(role))
    reason = runtime.available()
    if reason is not None:
        raise LeanearError(reason)
    tokens = window_tokens(artifact.speech.decoding) if artifact.is_speech else None
    session = runtime.load(artifact, options)
    infer = one_inference(session, artifact, read_golden(artifact).waveforms[0], tokens)
    timed = [_timed_ms(infer) for _ in range(TIMED_RUNS)]
    session.close()
    return median(timed[1:]), artifact.manifest.input.window_samples / artifact.sample_rate_hz


def _timed_ms(infer: Any) -> float:
    start = time.perf_counter_ns()
    infer()
    return milliseconds(time.perf_counter_ns() - start)


def to_type(bundle: Bundle, deployment: Path) -> tuple[str, ...]:
    """How the bundle is used: where it goes, the commands to type there, and how the results come home."""
    size = sum(facts.bytes for facts in bundle.document.files.values())
    return (
        f"copy the folder {bundle.folder} ({size / 1e6:.1f} MB; its {README_FILE} says all of this) to the device, "
        f"which needs {wanted(bundle.runtime)}, and there, in that folder:",
        *by_hand(),
        f"bring its folder results/ home, and here: leanear import results/ --into {deployment}",
    )
