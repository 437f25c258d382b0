"""What `kubeloop run` shows of a pipeline run in progress, from the run's log."""

from pathlib import Path

from kubeloop.session.requests import Steps

DONE = "05:00:01.000 - INFO - Task \x1b[96m'validate-data'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m\n"
HELD = "    [KFP Executor 2026-11-29 05:00:00,000 WARNING]: Held back: 4 of 90 rows of training_set: 4 by unique\n"


def test_steps_and_rows_that_were_held_back_are_news_once(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    steps = Steps(log)
    assert steps.news() == []
    log.write_text(HELD + DONE + HELD[:40])
    held, done = steps.news()
    assert held == "    Held back: 4 of 90 rows of training_set: 4 by unique"
    assert done.startswith("  validate data: done in ")
    with log.open("a") as file:
        file.write(HELD[40:] + "05:00:02 - INFO - Task 'train-model' was cached\n")
    assert steps.news() == [held, "  train model: kept from before"]
    assert steps.news() == []
