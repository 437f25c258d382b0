"""A node in a process of its own, which the applier of one machine talks to."""

from tests.unit.node.conftest import kit as kit
