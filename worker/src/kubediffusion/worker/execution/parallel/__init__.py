"""One worker over several GPUs: ranks that call the denoiser together (docs/adr/0031).

Rank 0 is the worker as it is. It alone knows of jobs, prompts, schedulers and pixels. The other ranks are processes
that it starts, which hold the same denoiser and call it whenever rank 0 does, with the tensors that rank 0 has.
"""
