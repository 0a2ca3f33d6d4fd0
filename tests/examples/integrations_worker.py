"""Runs under torchrun: the recipes that a user would start so; every rank leaves its parameters in a file."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import diffusion_nft_loop
import flow_grpo_loop

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder, found = Path(sys.argv[1]), {}
    for recipe in (diffusion_nft_loop, flow_grpo_loop):
        model, _ = recipe.train()
        found[recipe.__name__] = model.state_dict()
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()
