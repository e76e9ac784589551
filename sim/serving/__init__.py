"""What both engines share of serving: requests on their way, limits, queues, meters, sensors."""
