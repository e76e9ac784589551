"""The router side by side with other routers, on the same cheap servers and load."""
