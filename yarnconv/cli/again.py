"""A command line, again: the words that were given."""

from collections.abc import Collection

import typer


def given_words(context: typer.Context, without: Collection[str]) -> tuple[list[str], list[str]]:
    """The operands and the options that stand on the command line. without: parameters to leave out."""
    operands: list[str] = []
    options: list[str] = []
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        source = context.get_parameter_source(name)
        if name in without or source is None or source.name != "COMMANDLINE":
            continue
        if parameter.param_type_name == "argument":
            operands.append(str(value))
        elif isinstance(value, bool):
            options.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            options += [parameter.opts[0], str(value)]
    return operands, options
