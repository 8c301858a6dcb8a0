# Search, server and app in a container that runs as an ordinary user (docs/docker.md).
#
#   docker build -t diptych .
#   docker run --rm -v "$PWD:/work" diptych search runs/demo "a fox" --images photos
#
# diptych comes from the package index or, if `python -m build` has made one, from the wheel in dist/.
FROM python:3.12-slim

# https://download.pytorch.org/whl/cu130 for NVIDIA cards. The build for CPUs is a tenth of that size.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=search,serve,app,export

RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch
# The Dockerfile is named too, because COPY wants a file that exists; there may be no dist/.
COPY Dockerfile dist* /tmp/dist/
RUN pip install --no-cache-dir --find-links /tmp/dist "diptych[$EXTRAS]"

# Whatever user the container is given, as in `docker run --user "$(id -u)"`, can write its caches.
ENV HOME=/home/diptych PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --home-dir "$HOME" --create-home diptych && chmod 1777 "$HOME" && mkdir -m 1777 /work
USER diptych
WORKDIR /work

# `diptych serve` listens at 8080, `diptych app` at 7860; both need --host 0.0.0.0 here.
EXPOSE 8080 7860
ENTRYPOINT ["diptych"]
CMD ["--help"]
