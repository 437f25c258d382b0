"""What a protobuf message says on the wire, in a form that two descriptions of it can be compared by."""

from typing import Any


def fields(package: Any, name: str) -> dict[str, Any]:
    """Describe a message of a generated module, or of a mapping from names to classes."""
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
