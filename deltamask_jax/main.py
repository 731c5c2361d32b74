"""Command line: python -m deltamask_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Any setting can be changed behind it: --config.rounds=10 --config.mask.theta_init=0.9; configs/common.py says
what each means. The same command continues a run that was stopped.
"""

import re
import sys
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from deltamask_jax import config as config_lib
from deltamask_jax import config_files

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, for example configs/quickstart.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder the run writes to; made if it does not exist.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "Several hosts: HOST:PORT of process 0, or 'auto'.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes; every one runs this command.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")
_PATIENCE = flags.DEFINE_float("patience", 300, "Seconds to wait for the other processes to start.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")


class _ConfigFile(flags.ArgumentParser):
    """Loads the file behind --config, before its settings are overridden; its mistakes are one line."""

    def parse(self, argument: str) -> ConfigDict:
        config = config_files.load(argument)
        try:
            config_lib.check_names(config)
        except ValueError as error:
            raise ValueError(f"{argument}: {error}") from None
        return config.lock()


FLAGS["config"].parser = _ConfigFile()


def _stop(message: object) -> NoReturn:
    sys.exit(f"error: {message}")


def _located(argv: list[str]) -> list[str]:
    """The command line with the config's file found, and `--config FILE` written `--config=FILE`."""
    at = next((i for i, arg in enumerate(argv) if arg.split("=")[0] in ("-config", "--config")), None)
    if at is None or (at + 1 == len(argv) and "=" not in argv[at]):
        return argv
    if "=" not in argv[at]:
        argv = [*argv[:at], f"--config={argv[at + 1]}", *argv[at + 2 :]]
    named = argv[at].partition("=")[2]
    return [*argv[:at], f"--config={config_files.locate(named)}", *argv[at + 1 :]]


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; a mistake ends the program with one line that says what to change."""
    argv = _located(argv)
    try:
        rest = FLAGS(argv)
        if not FLAGS["verbosity"].present:  # orbax and jax tell a story a round
            logging.set_verbosity(logging.WARNING)
        if _CONFIG.value is None:
            _stop("say which config to run, for example --config=configs/quickstart.py")
        if len(rest) > 1:
            _stop(f"unexpected argument {rest[1]!r}; settings are changed by --config.name=value")
        config_lib.validate(_CONFIG.value)
        return rest
    except (AttributeError, KeyError):  # an override of a setting that does not exist
        known = config_lib.flatten(config_files.defaults())
        for arg in argv:
            section, dot, name = arg.lstrip("-").split("=")[0].partition(".")
            if dot and section in ("config", "noconfig") and name not in known:  # --noconfig.x: x = False
                _stop(f"unknown setting config.{name}: {config_lib.nearest(name, known)}")
        raise
    except OSError as error:
        shipped = ", ".join(sorted(file.stem for file in config_files.FOLDER.glob("*.py")))
        reason = f"{error.filename}: {error.strerror}" if error.filename else error
        _stop(f"cannot load the config file: {reason}; configs/NAME.py of the package: {shipped}")
    except flags.Error as error:
        first = next(line.strip() for line in str(error).splitlines() if line.strip())
        _stop(re.sub(r"^flag --config=\S+: ", "", first))
    except ValueError as error:
        _stop(error)


def main(argv: list[str]) -> None:
    """Run the experiment that the flags describe; an error ends the program with one line."""
    try:  # jax, after the command line is known to be good
        from deltamask_jax import devices, experiment
        from deltamask_jax.federation import hosts
        from deltamask_jax.federation.rounds import TooFewClients
    except ValueError as error:  # a variable that jax reads when it is imported
        _stop(f"jax does not start: {error}")

    try:
        devices.keep_compilations()
        hosts.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _PATIENCE.value)
        with hosts.ending_together():
            experiment.run(_CONFIG.value, hosts.workdir(_WORKDIR.value or "runs/" + _CONFIG.value.method))
    except (ValueError, OSError, FloatingPointError, MemoryError, TooFewClients) as error:
        if _DEBUG.value:
            raise
        _stop(error)
    except KeyboardInterrupt:
        fresh = " without --config.resume=fresh" if _CONFIG.value.resume == "fresh" else ""
        _stop(f"interrupted; the same command{fresh} continues the run")


def entry_point() -> None:
    """Start of the `deltamask` command."""
    if __name__ != "__main__":  # absl's --help is about the script that was started: let it tell of this one
        sys.modules["__main__"].__doc__ = __doc__
        for flag in FLAGS.flags_by_module_dict()[__name__]:
            FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    entry_point()
