"""How many requests a service answers in time: arrivals, a cheap client, the highest rate, a null server."""
