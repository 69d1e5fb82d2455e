"""WHAT: units that a host lacks."""
