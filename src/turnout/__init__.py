"""turnout: routing for Transformers models. The public names, each re-exported as itself."""

from turnout._version import __version__ as __version__
from turnout.errors import UserError as UserError
from turnout.execute.routing import trace as trace
from turnout.hosts import Family as Family
from turnout.hosts import Stack as Stack
from turnout.hosts import register_family as register_family
from turnout.install import install as install
from turnout.install import uninstall as uninstall
from turnout.route import Route as Route
from turnout.route import Site as Site
from turnout.route import Trace as Trace
from turnout.routers import ROUTERS as ROUTERS
from turnout.routers import Router as Router
from turnout.routers import RouterConfig as RouterConfig
