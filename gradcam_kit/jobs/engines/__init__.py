"""Where a run is executed: in this process, on several devices, or on a Ray cluster."""
