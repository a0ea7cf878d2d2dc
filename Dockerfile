# diffin on a processor. Not built by the tests of the project.
#
#   docker build -t diffin .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" diffin score problem.py runs/a -o scores/a
#
# A problem file imports what it needs: start another image FROM this one, and install it there.
FROM python:3.11-slim

WORKDIR /opt/diffin
COPY constraints.txt ./
# From the index of builds without CUDA, which would add several gigabytes.
RUN pip install --no-cache-dir -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
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
