# topic-bridge as a container. Mount your configuration over /etc/topic-bridge/bridge.toml, and keep /data,
# where the outbox is:
#
#   docker build -t topic-bridge .
#   docker run -p 8080:8080 -p 127.0.0.1:9090:9090 -v "$PWD/bridge.toml:/etc/topic-bridge/bridge.toml:ro" \
#       -v topic-bridge:/data --stop-timeout 15 topic-bridge
#
# It runs as nobody in particular (user 10001) and writes nothing outside of /data, so `--read-only
# --cap-drop ALL` is alright, and a folder of the host in place of the volume must belong to 10001. Needs
# Docker 23 or later (BuildKit).

FROM rust:1.95-bookworm AS build
WORKDIR /src
# The brokers that are built in: `--build-arg FEATURES=nats` makes a smaller image, and sooner.
ARG FEATURES=kafka,nats,rabbitmq
COPY . .
# librdkafka and its OpenSSL are built from source, with the compilers, make and perl of this image. The caches
# keep what was fetched and compiled, so that the next build compiles only what changed.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --profile dist --locked --bin topic-bridge --no-default-features --features "$FEATURES" \
    && cp target/dist/topic-bridge /usr/local/bin/

FROM debian:bookworm-slim
# Certificates of the public authorities, for brokers that have one.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 10001 -g 10001 -m 0700 /data
COPY --from=build /usr/local/bin/topic-bridge /usr/local/bin/
COPY <<EOF /etc/topic-bridge/bridge.toml
# Mount your own configuration here, or write it in TOPIC_BRIDGE_SECTION__KEY variables.
EOF
# Inside of the container these are fixed, whatever the file says, for only here does the outside know them;
# -e changes them. Give /data a volume: the outbox has to survive the container.
ENV TOPIC_BRIDGE_CONFIG=/etc/topic-bridge/bridge.toml \
    TOPIC_BRIDGE_INGRESS__LISTEN=0.0.0.0:8080 \
    TOPIC_BRIDGE_ADMIN__LISTEN=0.0.0.0:9090 \
    TOPIC_BRIDGE_OUTBOX__PATH=/data/topic-bridge.db
EXPOSE 8080 9090
VOLUME /data
WORKDIR /data
USER 10001:10001
STOPSIGNAL SIGTERM
# Healthy while it can take callbacks, also without its broker. There is no curl here; bash can speak TCP.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/9090 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && grep -q '^HTTP/1.. 200 ' <&3"]
ENTRYPOINT ["topic-bridge"]
