"""Two gloo ranks save one tensor, half of it each: `hf_shards.py FOLDER RANK`, into FOLDER/stock as DCP's safetensors
and into FOLDER/ours through `lg.torch.Writer`."""

from __future__ import annotations

import sys
import warnings

import lastgood as lg
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

warnings.simplefilter("ignore")


def main(folder: str, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    whole = torch.arange(1, 65, dtype=torch.float32).reshape(16, 4)
    state = {"w": distribute_tensor(whole, init_device_mesh("cpu", (2,)), [Shard(0)])}
    stock = dcp.HuggingFaceStorageWriter(f"{folder}/stock", save_distributed=True)
    dcp.save(state, storage_writer=stock)
    dcp.save(state, checkpoint_id=1, storage_writer=lg.torch.Writer(f"{folder}/ours"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
