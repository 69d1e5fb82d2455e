"""WHERE: the only folder that knows the internals of Transformers; families are data."""

from turnout.hosts.families import FAMILIES as FAMILIES
from turnout.hosts.families import register_family as register_family
from turnout.hosts.family import Family as Family
from turnout.hosts.family import Leaf as Leaf
from turnout.hosts.family import Stack as Stack
from turnout.hosts.family import leaves as leaves
