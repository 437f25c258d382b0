"""The wire format of a protobuf message, in a form in which two descriptions can be compared."""

from typing import Any


def fields(package: Any, name: str) -> dict[str, Any]:
    """Describe a message by its generated module, or by a mapping from names to classes."""
    if isinstance(package, dict):
        message = package[name]
    else:
        message = package
        for part in name.split("."):
            message = getattr(message, part)
    return {
        field.name: [
            field.number,
            field.type,
            field.is_repeated,
            field.message_type and field.message_type.name,
            field.containing_oneof and field.containing_oneof.name,
        ]
        for field in message.DESCRIPTOR.fields
    }
