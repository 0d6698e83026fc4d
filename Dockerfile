# The steps of the README on a CUDA base. This image is not built in CI, and has not been run on a GPU.
#   docker build --tag msngan .
#   docker run --gpus all --volume "$PWD/runs:/msngan/runs" --volume "$PWD/data:/msngan/data" msngan
#   docker run --gpus all --volume "$PWD/runs:/msngan/runs" --volume "$PWD/data:/msngan/data" msngan \
#       python train.py --config configs/cifar10_msngan.yaml
# torch's wheels bring their own CUDA libraries; the base gives the driver's interface.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# torch.compile (training.compile=true) needs a C compiler and Python's headers.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv python3-dev gcc make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /msngan
COPY . .
RUN make setup
ENV PATH=/msngan/.venv/bin:$PATH
CMD ["make", "train"]
