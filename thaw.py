"""The second name of ``src`` in a checkout. A wheel installs ``src`` as ``thaw`` and does not contain this file."""

from src import __path__, __version__  # noqa: F401
