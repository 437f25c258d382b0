"""Step: windows that the monitor has not judged."""

from kfp import dsl

from components._step import step


@step
def judge_windows(loop: str, as_of: str, status: dsl.Output[dsl.Artifact]):
    """Have the monitor judge every window that was not judged yet, and tell the trigger about episodes.

    Args:
        loop: the use case, as JSON or a reference to it.
        as_of: windows that end later stay out, ISO 8601.
        status: the monitor's status afterwards, as JSON.
    """
    import json
    from pathlib import Path

    from kubeloop.config import instant, settings
    from kubeloop.steps import batch, loops

    Path(status.path).write_text(json.dumps(batch.judge(loops.read(loop, settings()), settings(), instant(as_of))))
