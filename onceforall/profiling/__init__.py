"""Where devices and costs meet: latency models from measurements, and measurements of what was predicted."""
