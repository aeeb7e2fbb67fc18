"""HTTP only: each route takes a request apart, calls the service and builds the response."""
