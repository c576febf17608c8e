# The images of the operator (target controller), of the task executor (target
# task-executor) and of the operator's scorecard tests (target scorecard): one static
# program each, no shell.
#
# The programs are built before, by `make docker-build`, `make
# docker-build-task-executor` and `make docker-build-scorecard`: the Go compiler
# cross-compiles for every platform with one cache, and the image build needs neither a
# compiler nor emulation, nor, with BASE_IMAGE=scratch, a registry.
ARG BASE_IMAGE=gcr.io/distroless/static:nonroot

FROM ${BASE_IMAGE} AS controller
ARG TARGETOS
ARG TARGETARCH
ARG VERSION
LABEL org.opencontainers.image.title="OpenSandbox operator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY bin/${TARGETOS}_${TARGETARCH}/manager /manager
USER 65532:65532
ENTRYPOINT ["/manager"]

FROM ${BASE_IMAGE} AS task-executor
ARG TARGETOS
ARG TARGETARCH
ARG VERSION
LABEL org.opencontainers.image.title="OpenSandbox task executor" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# The kernel lets nobody look into a process whose program its user may not read: the
# executor has a key in its environment. The launcher's copy is for all sandboxes.
COPY --chmod=0711 bin/${TARGETOS}_${TARGETARCH}/task-executor /task-executor
COPY --chmod=0755 bin/${TARGETOS}_${TARGETARCH}/task-executor /launcher
USER 65532:65532
ENTRYPOINT ["/task-executor"]

# The operator's scorecard tests, which `make scorecard` runs; no part of the operator.
FROM ${BASE_IMAGE} AS scorecard
ARG TARGETOS
ARG TARGETARCH
ARG VERSION
LABEL org.opencontainers.image.title="OpenSandbox operator's scorecard tests" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY bin/${TARGETOS}_${TARGETARCH}/scorecard /scorecard
USER 65532:65532
ENTRYPOINT ["/scorecard"]
