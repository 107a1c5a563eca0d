# topic-bridge as a container. Mount your configuration at /etc/topic-bridge/bridge.toml and a volume at /data,
# where the outbox is:
#
#   docker build -t topic-bridge .
#   docker run -p 8080:8080 -p 127.0.0.1:9090:9090 -v "$PWD/bridge.toml:/etc/topic-bridge/bridge.toml:ro" \
#       -v topic-bridge:/data --stop-timeout 25 topic-bridge
#
# It runs as the unprivileged user 10001 and writes only to /data, so `--read-only --cap-drop ALL` works, and
# a host directory mounted instead of the volume must belong to 10001. There is no shell in it. Needs Docker
# 23 or later (BuildKit).

FROM rust:1.95-bookworm AS build
WORKDIR /src
# The brokers that are built in: `--build-arg FEATURES=nats` makes a smaller image, faster.
ARG FEATURES=kafka,nats,rabbitmq
# What `--version` and the log name, because the repository stays outside:
# `--build-arg GIT_COMMIT="$(git rev-parse --short=12 HEAD)"`.
ARG GIT_COMMIT
COPY . .
# librdkafka and its OpenSSL are built from source, with this image's compilers, make and perl. The caches keep
# what was fetched and compiled, so that the next build compiles only what changed. The line tables of backtraces are
# most of the program: they become a file of their own.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --profile dist --locked --bin topic-bridge --no-default-features --features "$FEATURES" \
    && install -d /image/usr/local/bin /image/etc/topic-bridge /debug \
    && objcopy --only-keep-debug target/dist/topic-bridge /debug/topic-bridge.debug \
    && objcopy --strip-all --add-gnu-debuglink=/debug/topic-bridge.debug \
        target/dist/topic-bridge /image/usr/local/bin/topic-bridge
# Mount your own configuration there, or set TOPIC_BRIDGE_SECTION__KEY environment variables.
RUN touch /image/etc/topic-bridge/bridge.toml && install -d -o 10001 -g 10001 -m 0700 /data

# For a debugger: docker build --target debug --output . .
FROM scratch AS debug
COPY --from=build /debug/ /

# libc, the public CAs for brokers whose certificate is from one of them, and nothing else.
FROM gcr.io/distroless/cc-debian12:nonroot
ARG GIT_COMMIT
LABEL org.opencontainers.image.title="topic-bridge" \
    org.opencontainers.image.description="Takes a chat platform's topic-created callbacks durably and publishes them as CloudEvents" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${GIT_COMMIT:-unknown}" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image/ /
COPY --from=build --chown=10001:10001 /data /data
# Fixed inside the container, whatever the file says, because published ports and volumes depend on them; -e
# changes them. Mount a volume at /data: the outbox has to survive the container.
ENV TOPIC_BRIDGE_CONFIG=/etc/topic-bridge/bridge.toml \
    TOPIC_BRIDGE_INGRESS__LISTEN=0.0.0.0:8080 \
    TOPIC_BRIDGE_ADMIN__LISTEN=0.0.0.0:9090 \
    TOPIC_BRIDGE_OUTBOX__PATH=/data/topic-bridge.db
EXPOSE 8080 9090
VOLUME /data
WORKDIR /data
USER 10001:10001
STOPSIGNAL SIGTERM
# Healthy while it can accept callbacks, even without its broker.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["topic-bridge", "check", "--ready"]
ENTRYPOINT ["topic-bridge"]
