"""The custom resources as typed models, their state machine, names and labels; CRDs and policies are made from it."""
