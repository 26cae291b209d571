"""Engines that execute a run: in this process, on several devices, or on a Ray cluster."""
