"""`python3 leanear.pyz`: what a device does with the bundle that the file lies in, and a doctor for when it cannot."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from leanear.benchmarks.device.bundled import BUNDLE_FILE, Bundle, read_bundle, read_bundle_document, unpack_bundle
from leanear.benchmarks.device.doctor import lacks, lines, report
from leanear.runtimes.choose import offered_runtimes
from leanear.runtimes.errors import BadInput, LeanearError, RuntimeUnavailable
from leanear.runtimes.process.interrupts import (
    INTERRUPTED,
    TERMINATED,
    end_by_sigterm,
    forget_kept,
    was_terminated,
    what_is_kept,
)
from leanear.runtimes.process.isolation import IMPORT_ROOT
from leanear.runtimes.process.notes import leave_closed_pipe

if TYPE_CHECKING:
    from leanear.runtimes.sessions import SessionOptions

PROGRAM = "python3 leanear.pyz"
ON_A_BUNDLE = ("bench", "eval")
PASSED_ON = (*ON_A_BUNDLE, "transcribe", "compare")


def main(arguments: list[str] | None = None) -> int:
    """The exit status of one command: 0, or the error's own after its one line on stderr."""
    given = sys.argv[1:] if arguments is None else arguments
    end_by_sigterm()
    forget_kept()

    def work() -> int:
        if given and given[0] in PASSED_ON and not {"-h", "--help"} & set(given):
            return _pass_on(given[0], given[1:])
        options = _parser().parse_args(given)
        options.command(options)
        return TERMINATED if was_terminated() else 0

    return exit_status(work)


def exit_status(work: Callable[[], int]) -> int:
    """That of a command: what it gives, or, after its one line on standard error, that of its error."""
    try:
        status = work()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        return leave_closed_pipe()
    except LeanearError as error:
        status, said = error.exit_status, str(error)
    except OSError as error:
        status, said = BadInput.exit_status, f"{error.filename or 'file'}: {error.strerror or error}"
    except KeyboardInterrupt:
        status, said = INTERRUPTED, f"interrupted{what_is_kept()}"
    end_line()
    print(f"leanear: {said}", file=sys.stderr)
    return status


def end_line() -> None:
    """Clear a line that tells how far the work is."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def bundle_folder() -> Path:
    """Where the bundle is: the folder of leanear.pyz, or, started from a source tree, the current one."""
    program = Path(IMPORT_ROOT or "")
    return program.parent if program.is_file() else Path.cwd()


def _parser() -> argparse.ArgumentParser:
    what = __doc__.partition(": ")[2]
    parser = argparse.ArgumentParser(prog=PROGRAM, description=what[:1].upper() + what[1:])
    parser.add_argument("--version", action="version", version=importlib.metadata.version("leanear"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="say what this device is, what it lacks, and the command that mends it")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument("--runtime", choices=offered_runtimes(), help="the runtime to look for (default: the bundle's)")
    doctor.set_defaults(command=_doctor)

    verify = commands.add_parser("verify", help="compare every file of the bundle with its sha256")
    verify.set_defaults(command=_verify)

    compiling = commands.add_parser("compile", help="do what the runtime can do ahead of time, and keep it")
    compiling.set_defaults(command=_compile)

    classify = commands.add_parser("classify", help="the likeliest labels of WAV files")
    classify.add_argument("audio", type=Path, nargs="+", help="WAV files, or folders of them")
    classify.add_argument("--artifact", type=Path, help="artifact folder (default: the bundle's slim one)")
    classify.add_argument("--top", type=int, default=3, help="how many labels (default: 3)")
    classify.add_argument("--json", action="store_true", help="print JSON")
    classify.set_defaults(command=_classify)

    for verb, text in (
        ("bench", "measure the bundle's artifacts: latency, memory, accuracy"),
        ("eval", "the accuracy of the bundle's slim artifact, or of another"),
        ("transcribe", "the text of a recording"),
        ("compare", "what changed from one results file to another, and whether it is worse"),
    ):
        passed = commands.add_parser(verb, help=text, add_help=False)
        passed.add_argument("-h", "--help", action="store_true")
        passed.set_defaults(command=lambda _options, verb=verb: _pass_on(verb, ["--help"]))
    return parser


def _doctor(options: argparse.Namespace) -> None:
    folder = bundle_folder()
    runtime = options.runtime
    if runtime is None and (folder / BUNDLE_FILE).is_file():
        runtime = read_bundle_document(folder).run.runtime
    document = report(runtime, folder)
    print(json.dumps(document, indent=1) if options.json else "\n".join(lines(document)))
    if not document["ok"]:
        raise RuntimeUnavailable("; ".join(lacks(document)))


def _verify(_options: argparse.Namespace) -> None:
    bundle = read_bundle(bundle_folder())
    print(f"{len(bundle.document.files)} files, each as {BUNDLE_FILE} says")


def _compile(_options: argparse.Namespace) -> None:
    _require_numpy()
    from leanear.runtimes.artifact import read_artifact
    from leanear.runtimes.backends.engines import compiled_folder
    from leanear.runtimes.choose import require_runtime

    bundle = _ready_bundle()
    for role, folder in bundle.artifacts.items():
        options = _session_options(bundle, role)
        runtime = require_runtime(bundle.runtime, options)
        artifact = read_artifact(folder)
        made = runtime.compile(artifact, options, compiled_folder(artifact))
        print(f"{role}: {made}" if made is not None else f"{role}: {bundle.runtime} has nothing to do ahead of time")


def _ready_bundle() -> Bundle:
    """The bundle, verified and unpacked."""
    bundle = read_bundle(bundle_folder())
    unpack_bundle(bundle)
    return bundle


def _classify(options: argparse.Namespace) -> None:
    _require_numpy()
    from leanear.benchmarks.device.classify import classify_files, print_labels

    bundle = _ready_bundle()
    artifact = options.artifact or bundle.artifacts["slim"]
    answers = classify_files(artifact, options.audio, bundle.runtime, _session_options(bundle), options.top)
    print_labels(answers, as_json=options.json)


def _session_options(bundle: Bundle, role: str = "slim") -> SessionOptions:
    from leanear.runtimes.sessions import SessionOptions

    return SessionOptions(threads=bundle.threads, precision=bundle.precision_of(role))


def _pass_on(verb: str, given: list[str]) -> int:
    """The exit status of the device command VERB, the bundle's own filled in where `given` says nothing."""
    _require_numpy()
    from leanear.benchmarks.device.commands import main as benchmarks_main

    in_bundle = (bundle_folder() / BUNDLE_FILE).is_file()
    has_clips = in_bundle and read_bundle_document(bundle_folder()).clips is not None
    bundled = (*(["artifact"] if in_bundle else []), *(["clips"] if has_clips else []))
    if verb == "compare" or given == ["--help"] or not in_bundle:
        return benchmarks_main([verb, *given], PROGRAM, bundled)
    bundle = _ready_bundle()
    filled = ["--runtime", bundle.runtime, "--precision", bundle.precision, "--threads", str(bundle.threads)]
    if verb in ON_A_BUNDLE:
        filled += _own_inputs(verb, bundle, given)
    elif not _names_an_artifact(given):
        filled.append(str(bundle.artifacts["slim"]))
    return benchmarks_main([verb, *filled, *given], PROGRAM, bundled)


def _own_inputs(verb: str, bundle: Bundle, given: list[str]) -> list[str]:
    """The bundle's artifacts, clips and budget, as flags that flags in `given` override."""
    filled, run = ["--clips", str(bundle.clips)] if bundle.clips is not None else [], bundle.document.run
    if verb == "bench":
        filled += ["--budget", str(run.budget_s), "--sustained", str(run.sustained_s)]
    if _names_an_artifact(given):
        return filled
    if verb == "bench" and "dense" in bundle.artifacts:
        filled += ["--dense", str(bundle.artifacts["dense"]), "--dense-precision", bundle.precision_of("dense")]
    return [*filled, str(bundle.artifacts["slim"])]


def _names_an_artifact(given: list[str]) -> bool:
    return any((Path(argument) / "manifest.json").is_file() for argument in given)


def _require_numpy() -> None:
    """Nothing where numpy can be imported."""
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        from leanear.benchmarks.device.doctor import remedy

        raise RuntimeUnavailable(f"numpy: {error}; mend it with: {remedy('numpy')}") from None


if __name__ == "__main__":
    sys.exit(main())
