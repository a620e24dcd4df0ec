# syntax=docker/dockerfile:1
# One static-enough binary on a bare Debian; the model pinhole is inside the binary.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# Caches stay out of the image; the binary is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked && install -D target/release/darkroom /out/darkroom

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin darkroom \
    && install -d -o darkroom -g darkroom -m 0750 /data
COPY --from=build /out/darkroom /usr/local/bin/darkroom
COPY config/default.toml /etc/darkroom/default.toml
USER darkroom
WORKDIR /data
VOLUME /data
ENV DARKROOM_DATA_DIR=/data DARKROOM_SERVER__LISTEN=0.0.0.0:7860 DARKROOM_LOG__FORMAT=json
EXPOSE 7860
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["darkroom", "health"]
ENTRYPOINT ["darkroom"]
CMD ["serve"]
