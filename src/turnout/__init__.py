"""turnout: routing for Transformers models. The public names, each re-exported as itself.

They are imported when first used, so that ``turnout --help`` need not wait for PyTorch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from turnout._version import __version__ as __version__
from turnout.errors import UserError as UserError

if TYPE_CHECKING:
    from turnout.cost import trace_bytes as trace_bytes
    from turnout.cost import trace_share as trace_share
    from turnout.execute.paths import average_paths as average_paths
    from turnout.execute.routing import trace as trace
    from turnout.hosts import Family as Family
    from turnout.hosts import Stack as Stack
    from turnout.hosts import register_family as register_family
    from turnout.hosts.tasks_model import HeadConfig as HeadConfig
    from turnout.hosts.tasks_model import TasksModel as TasksModel
    from turnout.hosts.tasks_model import add_head as add_head
    from turnout.hosts.tasks_model import with_heads as with_heads
    from turnout.install import install as install
    from turnout.install import install_lora as install_lora
    from turnout.install import uninstall as uninstall
    from turnout.noise import NOISES as NOISES
    from turnout.noise import NoiseConfig as NoiseConfig
    from turnout.route import Route as Route
    from turnout.route import Site as Site
    from turnout.route import Trace as Trace
    from turnout.routers import ROUTERS as ROUTERS
    from turnout.routers import Router as Router
    from turnout.routers import RouterConfig as RouterConfig
    from turnout.train.calibrate import calibrate as calibrate
    from turnout.train.noise import size_noise as size_noise
    from turnout.train.prepare import prepare as prepare
    from turnout.train.risk import bound_risk as bound_risk
    from turnout.train.saving import load as load

_HOMES = {
    "turnout.cost": ("trace_bytes", "trace_share"),
    "turnout.execute.paths": ("average_paths",),
    "turnout.execute.routing": ("trace",),
    "turnout.hosts": ("Family", "Stack", "register_family"),
    "turnout.hosts.tasks_model": ("HeadConfig", "TasksModel", "add_head", "with_heads"),
    "turnout.install": ("install", "install_lora", "uninstall"),
    "turnout.noise": ("NOISES", "NoiseConfig"),
    "turnout.route": ("Route", "Site", "Trace"),
    "turnout.routers": ("ROUTERS", "Router", "RouterConfig"),
    "turnout.train.calibrate": ("calibrate",),
    "turnout.train.noise": ("size_noise",),
    "turnout.train.prepare": ("prepare",),
    "turnout.train.risk": ("bound_risk",),
    "turnout.train.saving": ("load",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """Keeps `turnout.install` the function: importing the module of that name would replace it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOME_OF})


sys.modules[__name__].__class__ = _Package
