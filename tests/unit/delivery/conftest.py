"""A node in its own process, which the applier of one machine talks to."""

from tests.unit.node.conftest import kit as kit
