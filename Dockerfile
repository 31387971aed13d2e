# bids_cmb: one image for GPU and CPU, Docker and Apptainer.
#
#   docker build -t bids_cmb .
#   docker build -t bids_cmb:cpu --build-arg BASE=debian:bookworm-slim --build-arg LOCK=cpu .
#
# BASE needs Python 3.11 to 3.13, or apt to get it from. The CUDA libraries come once, with
# TensorFlow's own wheels: the small CUDA base image brings none of its own.
ARG BASE=nvidia/cuda:12.6.3-base-ubuntu24.04

FROM ${BASE} AS python
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# No versions here: the base image is what is pinned, and distributions drop old packages.
# hadolint ignore=DL3008
RUN if ! command -v python3 >/dev/null || ! python3 -c 'import venv, ensurepip' 2>/dev/null; then \
      apt-get update -q \
      && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        python3 python3-venv ca-certificates \
      && rm -rf /var/lib/apt/lists/*; \
    fi

# --- Dependencies, by hash; then the app ----------------------------------------------------------
FROM python AS build
ARG LOCK=gpu
COPY .ci/${LOCK}.lock /tmp/lock
COPY .ci/strip.py /tmp/strip.py
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --no-compile --no-deps --require-hashes -r /tmp/lock
COPY pyproject.toml README.md LICENSE /src/
COPY bids_cmb /src/bids_cmb
COPY run.py LICENSE README.md CITATION.cff /opt/bids_cmb/
# Whoever runs it may have any user id, no name and no home: all may read, nobody need write. Said
# here, since in a later layer every file would be stored a second time.
RUN /opt/venv/bin/pip install --no-cache-dir --no-compile --no-deps --no-build-isolation /src \
    && /opt/venv/bin/python /tmp/strip.py /opt/venv \
    && chmod -R a+rX /opt

# --- The atlases, through TemplateFlow's client; TEMPLATES=none where there is no network ----
FROM build AS templates
ARG TEMPLATES=fetch
RUN mkdir /opt/templateflow \
    && if [ "${TEMPLATES}" = fetch ]; then \
      export TEMPLATEFLOW_HOME=/opt/templateflow \
      && /opt/venv/bin/python -c 'from bids_cmb.anatomy.atlases import find_atlases; find_atlases(fetch=True)' \
      && find /opt/templateflow -type f -empty -delete \
      && find /opt/templateflow -type d -empty -delete \
      && find /opt/templateflow -name '*.nii.gz' -exec sha256sum {} +; \
    fi \
    && chmod -R a+rX /opt/templateflow

# --- The image ------------------------------------------------------------------------------------
FROM python AS image
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
ARG IMAGE=bids_cmb:${VERSION}
ARG SOURCE=
LABEL org.opencontainers.image.title="bids_cmb" \
      org.opencontainers.image.description="Counts cerebral microbleeds on susceptibility MRI. For research only." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/bids_cmb /opt/bids_cmb
COPY --from=templates /opt/templateflow /opt/templateflow
RUN printf '%s\n' "${VERSION}" > /version \
    && chmod a+r /version \
    && mkdir /models \
    && useradd --create-home --uid 1000 --non-unique bids_cmb \
    && chmod 0755 /home/bids_cmb
# Nothing from the user's ~/.local; no bytecode on a read-only root; GPU memory as it is needed.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    KERAS_BACKEND=tensorflow \
    TF_CPP_MIN_LOG_LEVEL=3 \
    TF_FORCE_GPU_ALLOW_GROWTH=true \
    TF_ENABLE_ONEDNN_OPTS=1 \
    BIDS_CMB_MODEL_DIR=/models \
    BIDS_CMB_IMAGE=${IMAGE} \
    BIDS_CMB_CODE_URL=${SOURCE} \
    TEMPLATEFLOW_HOME=/opt/templateflow \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
ENTRYPOINT ["/opt/venv/bin/python", "/opt/bids_cmb/run.py"]
