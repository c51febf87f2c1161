"""Judge measurements: predicted against measured, record against record, launch mode against launch mode."""
