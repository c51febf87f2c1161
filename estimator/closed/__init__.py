"""From a served speed back to a closed model's size: assumptions, inversion, back-tests, public claims."""
