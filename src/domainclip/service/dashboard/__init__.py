"""A page that shows what the service is doing, and the stream of events that keeps it up to date."""
