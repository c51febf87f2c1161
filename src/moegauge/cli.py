"""The command line `moegauge`: one module per command, imported only when that command runs."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from typing import NoReturn

import click

from moegauge import __version__
from moegauge.errors import MoegaugeError
from moegauge.text import printable

# name -> (module in moegauge.commands, one line for `moegauge --help`). The module exposes a click command `command`.
COMMANDS: dict[str, tuple[str, str]] = {
    "backtest": ("backtest", "Estimate open models as if they were closed; say how far off."),
    "batching": ("batching", "What a batch does to speed, price and inversion."),
    "bench": ("bench", "Measure the read roof, kernels or whole decode steps here."),
    "claims": ("claims", "What claims about closed models would need."),
    "compare": ("compare", "Measured against predicted tokens/s, leaving each model out."),
    "count": ("count", "Count dense and routed parameters from safetensors headers."),
    "doctor": ("doctor", "Is this machine fit to measure: other load, clocks, memory, the roof's noise."),
    "env": ("env", "What machine and software this is, as records name it."),
    "estimate": ("estimate", "Estimate closed models from published tokens/s."),
    "formula": ("formula", "Where tokens/s = bandwidth / active bytes holds."),
    "models": ("models", "List the model shapes that ship with the package."),
    "predict": ("predict", "Predict tokens/s of a model on a device."),
    "report": ("report", "One HTML page from records."),
    "validate": ("validate", "Count, measure, predict, compare and report on this machine."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"moegauge.commands.{entry[0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from moegauge.errors import UnknownNameError

            raise UnknownNameError("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="MOEGAUGE_DEBUG=1 shows tracebacks. HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are obeyed.",
)
@click.version_option(__version__, prog_name="moegauge")
def group() -> None:
    """Count an MoE checkpoint exactly, measure what decoding it costs here, and say how far the law
    tokens/s = bandwidth / active bytes carries."""


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 good, 1 failed, 2 bad usage, 130 interrupted.

    Every `MoegaugeError` becomes one line on stderr; `MOEGAUGE_DEBUG=1` lets the traceback through.
    """
    debug = os.environ.get("MOEGAUGE_DEBUG", "") not in ("", "0")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding has no µ and no name of every script
            stream.reconfigure(errors="backslashreplace")
    try:
        code = group.main(args=argv, prog_name="moegauge", standalone_mode=False)
        sys.stdout.flush()  # a full disk behind stdout is an error here, and only noise at exit
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        _say("interrupted.")
        sys.exit(130)
    except click.ClickException as error:
        text = io.StringIO()
        error.show(file=text)
        usage, _, message = text.getvalue().removesuffix("\n").partition("Error: ")
        click.echo(f"{usage}Error: {printable(message)}", err=True)  # it quotes words it was given
        sys.exit(error.exit_code)
    except MoegaugeError as error:
        if debug:
            raise
        _say(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our stdout went away (`| head`): no message, and no second failure when Python flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        _say(f"{where}the system refuses: {error.strerror or error}.")
        with contextlib.suppress(OSError):  # what is left in the buffer cannot be written either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        _say(f"unexpected {type(error).__name__}: {error} Run again with MOEGAUGE_DEBUG=1 and report it.")
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)  # click returns the code of `ctx.exit`, --help's among them


def _say(message: str) -> None:
    click.echo(f"moegauge: {printable(message)}", err=True)
