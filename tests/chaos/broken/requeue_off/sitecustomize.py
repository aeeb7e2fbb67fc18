"""An operator that leaves jobs with workers that are gone."""

from kubediffusion.operator import scheduling

scheduling.release = lambda view: iter(())
