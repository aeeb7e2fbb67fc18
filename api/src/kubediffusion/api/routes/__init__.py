"""HTTP only: each route takes a request apart, calls the service and puts the answer together."""
