"""The command line: `kubeloop --help`."""

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer.core import TyperGroup
from typer.exceptions import TyperException

from kubeloop import config, errors
from kubeloop.cli import backtest, called, extras, init, judge, kubeflow
from kubeloop.config import Loop, Settings
from kubeloop.errors import KubeloopError


class _Commands(TyperGroup):
    """The commands; an error of kubeloop ends one with a sentence and an exit code, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command of the command line."""
        try:
            return super().invoke(ctx)
        except KubeloopError as error:
            _fail(error, errors.exit_code(error))
        except (TyperException, typer.Abort, typer.Exit, BrokenPipeError):
            # A reader such as `head` that closes the pipe is ended quietly by the command line's library.
            raise
        except Exception as error:  # noqa: BLE001 - the last resort of a program: say what is wrong, keep the trace
            _crash(error)


app = typer.Typer(
    cls=_Commands,
    help="The closed machine-learning loop: train, serve, watch, retrain, promote.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)

Folder = Annotated[
    Path, typer.Option("--dir", "-C", help="Folder with loop.yaml and the feature repo.", show_default="this folder")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine instead of text.")]
HERE = Path()


def _open(folder: Path) -> tuple[Loop, Settings]:
    settings = config.settings(folder)
    config.adopt(settings)
    return config.load(settings.loop_file), settings


def _say(text: str) -> None:
    # On stderr, since stdout may be for a machine.
    _err.print(f"[dim]{escape(text)}[/]", soft_wrap=True)


def _fail(message: object, code: int = errors.LASTING) -> NoReturn:
    # Not wrapped, since some messages contain a line to copy.
    _err.print(f"[red]error:[/] {escape(str(message))}", soft_wrap=True)
    raise typer.Exit(code)


def _print(content: Any) -> None:
    print(json.dumps(content, indent=2, default=str))


class _Screen:
    """Shows a replay: events as lines and progress as a bar; prints plain lines if there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]{task.fields[day]}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=1.0, day="", facts="", visible=False)
        self._started = time.monotonic()
        self._next = 0.0
        self._shown: datetime | None = None

    def __enter__(self) -> "_Screen":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        self._console.print(
            f"[dim]{time.monotonic() - self._started:6.1f} s[/]  {escape(text)}",
            soft_wrap=not self._console.is_terminal,
        )

    def progress(self, progress: Any) -> None:
        """Show the progress of the replay."""
        whole = (progress.until - progress.begin).total_seconds()
        done = (progress.moment - progress.begin).total_seconds() / whole
        facts = (
            f"{progress.served:,} predictions, {progress.rate():,.0f}/s, p50 {progress.latency(0.5):.0f} ms, "
            f"{progress.errors:,} failed" + (", retraining" if progress.retraining else "")
        )
        if self._console.is_terminal:
            self._bar.update(
                self._task, completed=done, day=f"{progress.moment:%Y-%m-%d}", facts=facts, visible=done < 1
            )
        elif time.monotonic() >= self._next and progress.moment != self._shown:
            self._next, self._shown = time.monotonic() + 5, progress.moment
            self.say(f"{progress.moment:%Y-%m-%d}: {facts}")


@app.command()
def run(
    folder: Folder = HERE,
    fast: Annotated[bool, typer.Option("--fast", help="Replay a smaller sample of fewer months.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete everything from earlier runs first.")] = False,
    as_json: Json = False,
) -> None:
    """Run the whole loop on the table of loop.yaml.

    The command trains the first model, serves it, replays the rest of the table as traffic, watches for drift and
    retrains. If you stop it with Ctrl-C, run it again to continue.
    """
    from kubeloop import report
    from kubeloop.session import run as session

    loop, settings = _open(folder)
    _ready_or_fail(loop, settings, state=not fresh)
    _migrate(settings)
    try:
        with _Screen(_err if as_json else _out) as screen:
            summary = session.run(loop, settings, config.inherited(), screen, plan=session.Plan(fast), fresh=fresh)
            page = report.write(loop, settings, summary)
    except KeyboardInterrupt:
        _fail("stopped; the services have ended and nothing is lost. Run the same command again to continue.", 130)
    if as_json:
        _print(summary)
        return
    _tell(summary)
    _out.print(f"\nReport: {page}\nSummary: {settings.state / 'summary.json'}")
    _out.print(
        "Next: `kubeloop report --open`, `kubeloop status`, `kubeloop mlflow`; your own table: `kubeloop init --help`."
    )
    if hint := called.hint():
        _out.print(escape(hint), soft_wrap=True)


def _crash(error: Exception) -> NoReturn:
    """End after an unexpected error: name the fault of the state that caused it, or write the trace to a file."""
    import traceback

    from kubeloop import state

    # The settings that the command has adopted.
    settings = config.settings()
    found = state.explain(error, settings)
    trace = settings.logs / "kubeloop.log"
    text = "".join(traceback.format_exception(error))
    try:
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text(text)
    except OSError as problem:
        if found:
            _fail(found, errors.exit_code(found))
        _fail(f"{text}\nThis is not expected; {trace} could not be written: {problem.strerror}", 2)
    if found:
        _fail(found, errors.exit_code(found))
    _fail(f"{type(error).__name__}: {error}\nThis is not expected; the trace is in {trace}", 2)


def _tell(summary: dict[str, Any]) -> None:
    """Print the result of a run."""
    from kubeloop.report import words

    predictions, found = summary["predictions"], summary["quality"]
    _out.print(
        f"\n[bold]{summary['name']}[/]: {predictions['served']:,} predictions served, "
        f"{predictions['logged']:,} logged, {predictions['dropped']:,} dropped, {predictions['errors']:,} failed, "
        f"in {summary['wall_s']:.0f} s"
    )
    for sentence in words.accounts(summary):
        _out.print(f"[yellow]{escape(sentence)}[/]")
    table = Table("version", "trained on", "decision", box=None, pad_edge=False)
    for version in summary["versions"]:
        passed = "[red]not served[/]" if version["gate"].get("promote") else "[yellow]rejected[/]"
        word = "[green]promoted[/]" if version["promoted"] else passed
        span = f"{version['trained_from'][:10]} to {version['trained_to'][:10]}"
        table.add_row(version["version"], span, f"{word} {escape(str(version['reason']))}")
    _out.print(table)
    if found["difference"] is not None:
        low, high = found["ci95"]
        _out.print(
            f"{found['title']} since the first promotion: loop {found['loop']:.4f}, frozen first model "
            f"{found['frozen']:.4f}, difference {found['difference']:+.4f} (95% interval {low:+.4f} to {high:+.4f}, "
            f"{found['rows']:,} predictions)"
        )


@app.command()
def status(folder: Folder = HERE, as_json: Json = False) -> None:
    """Show the champion, the open episode, the active run and the running services."""
    from kubeloop.report import overview

    loop, settings = _open(folder)
    found = overview.read(loop, settings)
    if as_json:
        _print(found)
        return
    for line in overview.lines(found):
        _out.print(line)
    for sentence in found["broken"]:
        _out.print(f"[red]broken[/]      {escape(sentence)}", soft_wrap=True)


@app.command()
def report(
    folder: Folder = HERE,
    show: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write the HTML report from the stored state and print its path."""
    from kubeloop import report as page
    from kubeloop.session import summary

    loop, settings = _open(folder)
    if not settings.state.is_dir():
        _fail("nothing has run here yet; start with `kubeloop run`")
    path = page.write(loop, settings, summary.read(settings))
    if as_json:
        _print({"report": str(path)})
    else:
        _out.print(str(path))
    if show and typer.launch(path.as_uri()):
        _fail(f"no browser could be opened; open {path} yourself")


@app.command()
def serve(folder: Folder = HERE) -> None:
    """Serve the stored champion until Ctrl-C, with collector, monitor and trigger."""
    from kubeloop.features.online import Materializer
    from kubeloop.models import registry
    from kubeloop.session import client
    from kubeloop.session import run as session
    from kubeloop.session.services import Services

    loop, settings = _open(folder)
    _ready_or_fail(loop, settings)
    if registry.champion(settings, loop.name) is None:
        _fail("there is no champion to serve yet; `kubeloop run` trains one")
    _migrate(settings)
    try:
        with Services(loop, settings, config.inherited(), _out.print) as services:
            session.prepare(loop, settings, _out.print)
            stands = client.present(loop, settings)
            rows = Materializer(settings.features, loop.features.service).advance(stands or datetime.now(UTC))
            where = f"at {stands:%Y-%m-%d %H:%M} UTC, the replay's position" if stands else "now"
            _out.print(f"Online store: {rows:,} rows, the newest row of every key {where}.")
            session.start(loop, services)
            session.resume_serving(loop, settings, _out.print)
            base = f"{services.url('node')}/v2/models/{loop.name}"
            _out.print(f"Send requests to {base}/infer; GET {base} describes their inputs. Press Ctrl-C to stop.")
            while True:
                services.check()
                time.sleep(0.5)
    except KeyboardInterrupt:
        _out.print("Stopped.")


@app.command()
def predict(
    rows: Annotated[str, typer.Argument(help="JSON: one object per prediction, or a list of them; `-` reads stdin.")],
    folder: Folder = HERE,
    at: Annotated[
        str | None,
        typer.Option(
            help="Moment of the prediction, ISO 8601. Features that became known later count as missing.",
            show_default="now, or the replay's position",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask the running inference service for predictions.

    A row holds the entity keys and request-time fields; `kubeloop predict '{}'` lists them.
    """
    from kubeloop.session import client
    from kubeloop.tasks import port

    loop, settings = _open(folder)
    answers = client.predict(loop, settings, sys.stdin.read() if rows == "-" else rows, at)
    if as_json:
        _print(answers)
        return
    if answers["note"]:
        _out.print(f"[yellow]{escape(answers['note'])}[/]")
    task = port.of(loop)
    for answer in task.read(answers):
        _out.print(f"{escape(task.text(answer))}  [dim]version {answers['version']}[/]")


@app.command()
def monitor(folder: Folder = HERE, as_json: Json = False) -> None:
    """Show what the monitor found: windows, drifted features, live performance, episodes."""
    from kubeloop.report import overview
    from kubeloop.tasks import port

    loop, settings = _open(folder)
    found = overview.windows(loop, settings)
    if as_json:
        _print(found)
        return
    if not found["windows"]:
        _out.print("No window has been judged yet; start with `kubeloop run`.")
        return
    title = port.of(loop).headline.title
    table = Table(box=None, pad_edge=False)
    for column in ("window", "version", "rows", title, "verdict", "drifted features (effect)"):
        table.add_column(column, no_wrap=column == "window")
    for row in found["windows"]:
        table.add_row(*overview.window_cells(row))
    _out.print(table)
    for row in found["episodes"]:
        _out.print(f"{row['opened_at']:%Y-%m-%d} episode {row['id']}: {escape(row['reason'])} {row['outcome'] or ''}")


@app.command()
def retrain(
    folder: Folder = HERE,
    reason: Annotated[str, typer.Option(help="Reason; stored with the version.")] = "asked for by hand",
    as_of: Annotated[
        str | None, typer.Option(help="Use only what was known at this moment.", show_default="the newest label")
    ] = None,
    as_json: Json = False,
) -> None:
    """Retrain now; the gate decides as always. A cooldown does not prevent it, but an active run does."""
    from kubeloop.session import retraining

    loop, settings = _open(folder)
    _ready_or_fail(loop, settings)
    _migrate(settings)
    try:
        with _Screen(_err if as_json else _out) as screen:
            record = retraining.run(loop, settings, config.inherited(), screen.say, reason=reason, as_of=as_of)
    except KeyboardInterrupt:
        _fail("stopped; run the same command again to resume the run", 130)
    if as_json:
        _print(record)
    else:
        _out.print(f"{record['outcome']}: {escape(str(record['detail']))}")
    if record["outcome"] == "failed":
        raise typer.Exit(errors.LASTING if record["lasting"] else errors.PASSING)


@app.command()
def doctor(folder: Folder = HERE, as_json: Json = False) -> None:
    """Find what is missing, wrong or too old, and print the command that fixes it."""
    from kubeloop.cli import doctor as check

    found = check.examine(config.settings(folder))
    if as_json:
        _print([finding.to_dict() for finding in found])
    else:
        for finding in found:
            mark = "[green]ok[/]     " if finding.ok else "[red]problem[/]"
            fix = f"\n        fix: {finding.fix}" if finding.fix and not finding.ok else ""
            _out.print(f"{mark} {escape(finding.what)}{fix}", soft_wrap=True)
    if not all(finding.ok for finding in found):
        raise typer.Exit(1)


def _ready_or_fail(loop: Loop, settings: Settings, *, state: bool = True) -> None:
    """Make the environments that are made at their first use, then look at what would fail at once."""
    from kubeloop.cli import doctor as check
    from kubeloop.session import environments

    try:
        environments.ensure(loop, settings, _say)
    except KeyboardInterrupt:
        _fail("stopped; run the same command again, and the environment is made", 130)
    if wrong := [str(finding) for finding in check.quick(settings, state=state) if not finding.ok]:
        _fail("\n".join(wrong))


@app.command()
def migrate(folder: Folder = HERE) -> None:
    """Migrate the ledger's and the monitor's database to the schema of this version, as `kubeloop run` does."""
    from kubeloop.session import migration

    for sentence in migration.upgrade_all(config.settings(folder)):
        _out.print(sentence, soft_wrap=True)


def _migrate(settings: Settings) -> None:
    """Migrate databases on a server; the program that opens a file migrates it."""
    from kubeloop.session import migration

    for _ in migration.upgrade_all(settings, sqlite=False):
        pass


@app.command("config")
def show_config(as_json: Json = False) -> None:
    """Explain every setting of loop.yaml, with its default."""
    from kubeloop.config import explain

    if as_json:
        _print(Loop.model_json_schema())
        return
    _out.print(explain.text())


backtest.register(app)
judge.register(app)
init.register(app)
extras.register(app)
kubeflow.register(app)


def main() -> None:
    """Run the command line."""
    app()
