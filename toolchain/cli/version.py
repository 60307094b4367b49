"""What `--version` prints: leanear's own version and those of what it stands on."""

from importlib.metadata import PackageNotFoundError, version

import click

STANDS_ON = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")


def versions() -> str:
    """One line; packages that are not installed are left out."""
    found = []
    for name in STANDS_ON:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"leanear {version('leanear')} ({', '.join(found)})"


def print_versions(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    """The callback of the option."""
    if asked and not context.resilient_parsing:
        click.echo(versions())
        context.exit()


version_option = click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=print_versions,
    help="Show leanear's version and those of the runtimes.",
)
