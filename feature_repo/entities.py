"""What the features are about. An entity tagged `feature: categorical` is itself a feature of the model."""

from feast import Entity, ValueType

FEATURE = {"feature": "categorical"}

origin = Entity(name="origin", value_type=ValueType.STRING, tags=FEATURE, description="Airport of departure.")
carrier = Entity(name="carrier", value_type=ValueType.STRING, tags=FEATURE, description="Two-letter airline code.")
destination = Entity(
    name="destination", join_keys=["dest"], value_type=ValueType.STRING, tags=FEATURE, description="Airport of arrival."
)
aircraft = Entity(name="aircraft", join_keys=["tailnum"], value_type=ValueType.STRING, description="Tail number.")
