"""What a job will cost before it is begun: bytes, FLOPs, time, money and memory, against what the alternatives cost."""
