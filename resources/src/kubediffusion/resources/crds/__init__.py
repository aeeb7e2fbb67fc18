"""CustomResourceDefinitions and admission policies, generated from the typed models and applied to clusters."""
