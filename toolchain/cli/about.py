"""`leanear targets` and `leanear doctor`."""

import json

import click

from leanear.cli.sections import command
from leanear.cli.voice import narrated


@command()
@click.argument("names", nargs=-1, metavar="[TARGET]...")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@narrated
def targets(names: tuple[str, ...], as_json: bool) -> None:
    """The targets that `deploy` knows, or those named, and what this machine can do for each.

    TARGET is a name or the path of a .toml file.

    \b
    Examples:
      leanear targets
      leanear targets rtx own.toml --json
    """
    from leanear.targets.doctor import readiness
    from leanear.targets.target import read_target, target_names

    found = [read_target(name) for name in names or target_names()]
    if as_json:
        told = [{**readiness(target).as_json(), "description": target.description} for target in found]
        click.echo(json.dumps(told))
        return
    for target in found:
        click.echo(f"{target.name:12} {target.description}; {target.precision}; {readiness(target).text}")


@command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@narrated
def doctor(as_json: bool) -> None:
    """What this machine has for leanear, what it lacks, and the command that would install it.

    Exit status 1 where something is lacking that every target needs.

    \b
    Example:
      leanear doctor
    """
    from leanear.targets.doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps([{"name": f.name, "ok": f.ok, "text": f.text} for f in findings]))
    else:
        for finding in findings:
            click.echo(f"{'ok     ' if finding.ok else 'missing'} {finding.name:14} {finding.text}")
    if not all(finding.ok for finding in findings if not finding.name.startswith("target ")):
        raise click.exceptions.Exit(1)
