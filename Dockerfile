# This repository in verl's own image. Not built here: this project's machines have no Docker.
#
#   docker build -t saw . && docker run --gpus all --ipc=host -it saw bash scripts/quickstart.sh
#
# The tag is the one that verl's continuous integration uses with vLLM 0.24.0: CUDA 13.0.2 (NVIDIA driver 580 or newer),
# Python 3.12, torch 2.11.0, flash-attn 2.8.3, and no verl, which is installed below. verl's documentation also names
# vllm024.latest.
ARG BASE=verlai/verl:vllm024.dev2
FROM ${BASE}
WORKDIR /workspace/saw
COPY . .
# What was built for the image's CUDA stays; pip fails rather than replace it. The last line checks the whole.
RUN pip list --format=freeze | grep -iE '^(torch|torchvision|torchaudio|vllm|flash.attn)==' > /tmp/kept.txt \
    && pip install --no-cache-dir --constraint /tmp/kept.txt --editable '.[all]' \
    && SAW_VENV=active bash scripts/setup.sh
ENV SAW_VENV=active
