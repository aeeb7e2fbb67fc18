"""The doors for other programs' clients: in each package a door's routes, its schemas, and its words for a job."""
