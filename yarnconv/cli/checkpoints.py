"""The command for checkpoints: hf."""

from yarnconv.cli.options import takes_rope_options
from yarnconv.cli.root import AsJson, Force, Model, OutputDirectory, Revision, app, ends_with_exit_code
from yarnconv.rope.request import RopeRequest


@app.command()
@ends_with_exit_code
@takes_rope_options
def hf(
    model: Model,
    request: RopeRequest,
    force: Force = False,
    output: OutputDirectory = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint for transformers, vLLM and SGLang that carries the plan, its weights linked."""
    from yarnconv.cli.convert import convert_to_checkpoint

    convert_to_checkpoint(
        model,
        request,
        replace=force,
        output=output,
        revision=revision,
        as_json=as_json,
    )
