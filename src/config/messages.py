"""Rewrites the errors of Hydra and OmegaConf about a command line as one sentence with what is allowed."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator

from hydra.errors import CompactHydraException, ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from ..errors import UserError, did_you_mean, listed, wants_traceback
from .schema import CONF, type_message


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Print a user's mistake that leaves the block as one sentence to stderr and exit with code 1."""
    if wants_traceback():
        yield
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # without it, Hydra does not raise its exceptions
    try:
        yield
    except (UserError, CompactHydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {sentence(error)}")
    finally:
        del os.environ["HYDRA_FULL_ERROR"]


def sentence(error: Exception) -> str:
    """Return a user's mistake as one sentence."""
    text = str(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, MissingConfigException):
        return _unknown_option(text)
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return type_message(cause)
    if isinstance(error, ConfigCompositionException) and (key := _unknown_key(text)):
        allowed = _keys_beside(key)
        parent, _, name = key.rpartition(".")
        if any(argument.startswith(f"{parent}=") and "," in argument for argument in sys.argv[1:]):
            # Hydra composes once without the swept overrides, where the group has its default option.
            return f"{parent} is swept, so '{key}' must be swept too: give it as {key}=choice(...)"
        where = f"{parent} has" if parent else "the keys are"
        return f"there is no key '{key}'{did_you_mean(name, allowed)}; {where}: {listed(allowed, 40)}"
    return " ".join(line.strip() for line in text.splitlines() if line.strip() and "full_key" not in line)


def _unknown_key(text: str) -> str | None:
    for start in ("Could not override ", "Could not append to config.*?", "In '[^']+': .*?Key "):
        if found := re.search(f"{start}'([^']+)'", text, re.DOTALL):
            return found[1].removeprefix("/")
    return None


def _unknown_option(text: str) -> str:
    """Rewrite Hydra's ``Could not find 'strategy/frozzen'`` with the options that exist."""
    found = re.search(r"Could not find '([^']+)'", text)
    options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
    if not found:
        return " ".join(text.split())
    group, _, name = found[1].rpartition("/")
    return f"{group}={name}: there is no such option{did_you_mean(name, options)}; allowed: {listed(options)}"


def _keys_beside(key: str) -> list[str]:
    """Return the keys that exist beside ``key`` in the configuration with the same group choices."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {key}  # conf/sweep is not a config group
    choices = [a for a in sys.argv[1:] if re.fullmatch(r"[\w@./]+=[\w-]+", a) and re.split("[@=]", a)[0] in groups]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            node = compose("config", overrides=choices)
    except (CompactHydraException, OmegaConfBaseException):
        return []
    parent = OmegaConf.select(node, key.rpartition(".")[0], default=None) if "." in key else node
    return [str(name) for name in parent] if isinstance(parent, DictConfig) else []
