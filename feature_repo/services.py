"""The versioned sets of features that models read. To change the features, add a new version; never edit one."""

from feast import FeatureService
from views import aircraft_facts, carrier_daily, destination_daily, flight_facts, origin_hourly, weather_hourly

flight_delay_v1 = FeatureService(
    name="flight_delay_v1",
    description="Will a flight out of New York arrive 15 minutes late or more, or not at all? Asked 1-2 hours ahead.",
    features=[weather_hourly, origin_hourly, carrier_daily, destination_daily, aircraft_facts[["seats"]], flight_facts],
)
