"""MOVE and COMPUTE, given a route. `reference` is the slow and obvious definition of correct."""

from turnout.execute.routing import Routing as Routing
from turnout.execute.routing import trace as trace
from turnout.execute.scope import reference_execution as reference_execution
