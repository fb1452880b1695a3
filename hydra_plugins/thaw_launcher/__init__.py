"""Thaw's launchers, found by Hydra because of where this folder lies; what they do is in ``src/sweeps``.

There must be no ``__init__.py`` in ``hydra_plugins`` itself: it would hide every other installed plugin.
"""
