"""The demonstration: an airport bills its airlines for a real year of flights, under fire."""
