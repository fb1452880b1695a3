"""Thaw's launchers. Hydra finds them because they are in a package below ``hydra_plugins``.

``hydra_plugins`` itself must have no ``__init__.py``: it would hide every other installed plugin.
"""
