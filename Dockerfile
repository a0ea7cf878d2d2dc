# diffin on a processor. Not built by the tests of the project.
#
#   docker build -t diffin --build-arg TORCH_INDEX=<PyTorch's index of builds for processors> .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" diffin score problem.py runs/a -o scores/a
#
# A problem file imports what it needs: start another image FROM this one, and install it there.
FROM python:3.11-slim

WORKDIR /opt/diffin
COPY constraints.txt ./
# Without the index, which pytorch.org/get-started tells, pip takes the build for CUDA: several gigabytes more.
ARG TORCH_INDEX=""
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt ".[report]"

RUN useradd --create-home diffin
USER diffin
# With --user there may be no home to write to.
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["diffin"]
CMD ["--help"]
